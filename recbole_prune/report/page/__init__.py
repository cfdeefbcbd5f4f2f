"""The report as one page of HTML that needs nothing beside itself: no network, no library, no model.

Everything that run folders hold is a text here: escaped in :mod:`recbole_prune.report.page.markup`, and put in place by
the script as text only. The page forbids itself any script but its own, which a hash in it names.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import recbole_prune
from recbole_prune.report.page import charts, long_tail, parts, provenance, training, whereabouts
from recbole_prune.report.page.entries import Study
from recbole_prune.report.page.front_section import FrontSection
from recbole_prune.report.page.markup import Child, Markup, element, joined
from recbole_prune.report.page.quality import Quality
from recbole_prune.report.page.verdict import headline, tiles, verdict_kind, warnings

_HERE = Path(__file__).parent


def report_page(study: Study, quality: Quality) -> str:
    """The whole page.

    Raises:
        ArtifactError: never for what a run folder holds; that is said on the page.
    """
    front = FrontSection(study, quality)
    sections = [
        front.charts(),
        front.table(),
        training.curves_section(study, quality),
        whereabouts.density_section(study),
        long_tail.long_tail_section(study),
        training.epochs_section(study),
        training.costs_section(study),
        provenance.runs_section(study),
    ]
    title = f"{', '.join(study.models)} on {study.dataset}"
    body = [
        element("a", "To the tickets", href="#comparison", class_="skip"),
        charts.mark_definitions(),
        _header(study, quality, title),
        element("main", sections),
        element("footer", f"Written by recbole_prune {recbole_prune.__version__} from run folders alone."),
        front.views(),
        element("script", _own("page.js")),
    ]
    return "<!doctype html>\n" + element("html", _head(title), element("body", body), lang="en") + "\n"


def _own(name: str) -> Markup:
    return Markup((_HERE / name).read_text(encoding="utf-8").strip())


def _head(title: str) -> Markup:
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(_own(name).encode()).digest()).decode()}'"
        for name in ("page.js", "page.css")
    ]
    policy = f"default-src 'none'; script-src {hashes[0]}; style-src {hashes[1]}; base-uri 'none'; form-action 'none'"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{title}: compression report"),
        element("style", _own("page.css")),
    )


_LINKS = {
    "front": "Quality and cost", "comparison": "All tickets", "curves": "Learning curves", "density": "Density",
    "tail": "Rare items",    "epochs": "Relative epochs", "costs": "Costs", "runs": "Runs and settings",
}  # fmt: skip


def _header(study: Study, quality: Quality, title: str) -> Markup:
    wrong = warnings(study, quality)
    pruned = sum(not entry.is_dense for entry in study.entries)
    counts = f"{len(study.runs)} run folder{'s' * (len(study.runs) > 1)}, {pruned} pruned tickets"
    about = f"Compression report: {counts}; quality on {'test' if study.part == 'test' else 'validation'} data."
    content: list[Child] = [
        element("h1", title),
        parts.paragraph(about, class_="about"),
        parts.paragraph(headline(study, quality), class_=f"verdict {verdict_kind(study, quality)}".strip()),
        tiles(study, quality),
    ]
    if wrong:
        what = parts.paragraph(element("b", "Not all folders are whole"), class_="")
        content.append(
            element("div", what, element("ul", [element("li", each) for each in wrong]), class_="warning", role="note")
        )
    links = [element("li", element("a", text, href=f"#{key}")) for key, text in _LINKS.items()]
    content.append(element("nav", element("ul", links), aria_label="Sections"))
    return element("header", joined(content))
