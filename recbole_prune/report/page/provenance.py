"""Which folders a report is of, and with which settings, versions and commands they were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recbole_prune.report.folders import RunRecord
from recbole_prune.report.page import parts
from recbole_prune.report.page.entries import Study
from recbole_prune.report.page.markup import Child, Markup, element
from recbole_prune.report.page.scales import size

_DESCRIBED = ("settings", "versions")


def runs_section(study: Study) -> Markup:
    """Every run folder with its state, then what it was made with."""
    header = ["run", "state", "tickets", "chosen", "seed", "on disk"]
    rows: list[list[Child]] = []
    for run in study.runs:
        chosen = "-" if run.chosen is None else str(run.chosen["ticket"])
        state = run.state if run.reason is None else f"{run.state}: {run.reason}"
        on_disk = size(sum(run.bytes_on_disk.values()))
        rows.append([name_of(run), parts.cell(state, "text"), str(len(run.tickets)), chosen, str(run.seed), on_disk])
    described = [run for run in study.runs if run.record]
    return parts.section(
        "runs", "Runs, settings, versions",
        parts.table("Run folders of this report", header, rows),
        [_chosen_because(run) for run in described if run.summary is not None],
        parts.details("Commands", element("dl", [_command(run) for run in described])),
        [parts.details(each.capitalize(), _shared(each, described), _own(each, described)) for each in _DESCRIBED],
    )  # fmt: skip


def name_of(run: RunRecord) -> str:
    """The place of a run folder below the folder of all runs."""
    return "/".join(run.path.parts[-3:])


def _chosen_because(run: RunRecord) -> Markup | None:
    reason = (run.summary or {}).get("reason")
    notice = (run.summary or {}).get("notice")
    said = [f"{each}." for each in (reason, notice) if isinstance(each, str)]
    return parts.paragraph(element("b", name_of(run)), f": {' '.join(said)}", class_="note") if said else None


def _command(run: RunRecord) -> list[Child]:
    return [
        element("dt", name_of(run)),
        element("dd", parts.preformatted(str(run.record.get("command", "not recorded")))),
    ]


def _versions(run: RunRecord) -> Mapping[str, object]:
    found = run.record.get("versions")
    return found if isinstance(found, Mapping) else {}


def _facts(run: RunRecord, what: str) -> Mapping[str, object]:
    return run.settings if what == "settings" else _versions(run)


def _shared(what: str, runs: Sequence[RunRecord]) -> Markup:
    """What all runs have in common."""
    found = [_facts(run, what) for run in runs]
    common = {
        str(key): value for key, value in found[0].items() if all(key in each and each[key] == value for each in found)
    }
    if not common:
        return parts.paragraph(f"The runs have no {what} in common.")
    title = (
        f"{what.capitalize()} of all runs; others have their defaults" if what == "settings" else "Versions of all runs"
    )
    return parts.table(
        title, ["name", "value"], [[key, parts.cell(str(value), "text")] for key, value in common.items()]
    )


def _own(what: str, runs: Sequence[RunRecord]) -> Markup | None:
    """What differs from run to run."""
    first = _facts(runs[0], what)
    names = dict.fromkeys(str(key) for run in runs for key in _facts(run, what))
    differing = [
        name
        for name in names
        if any(name not in _facts(run, what) or _facts(run, what)[name] != first.get(name) for run in runs)
    ]
    if not differing:
        return None
    rows: list[list[Child]] = [
        [name_of(run), *(parts.cell(str(_facts(run, what).get(name, "-")), "text") for name in differing)]
        for run in runs
    ]
    return parts.table(f"{what.capitalize()} that differ", ["run", *differing], rows)
