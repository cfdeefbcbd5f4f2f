"""The page of a report: what stands in it, that nothing of a folder is markup in it, its size and its colours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from run_folders import MARGIN, METRICS, write_run

from recbole_prune import cli
from recbole_prune.report import page
from recbole_prune.report.folders import find_runs
from recbole_prune.report.page import comparison
from recbole_prune.report.page.entries import Study, study_of
from recbole_prune.report.page.quality import Quality
from recbole_prune.report.statistics import average_seeds, verdicts
from recbole_prune.report.users import read_users

WITHOUT_END = {"meta", "br", "input"}


def study(*folders: Path) -> Study:
    found = find_runs(folders)
    return study_of(found.runs, found.problems)


def made(*folders: Path) -> str:
    found = study(*folders)
    return page.report_page(found, Quality(found))


class Outline(HTMLParser):
    """Elements of a page with their attributes and texts; it fails where one is not closed in its place.

    Cells and rows end, as HTML has it, where the next one begins or their part of the table ends.
    """

    IMPLIED: Mapping[str, tuple[str, ...]] = {"td": ("td", "th"), "th": ("td", "th"), "tr": ("td", "th", "tr")}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._end(self.IMPLIED.get(tag, ()))
        if tag not in WITHOUT_END:
            self._open.append(tag)

    def _end(self, tags: tuple[str, ...]) -> None:
        while self._open and self._open[-1] in tags:
            self._open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self._end(self.IMPLIED["tr"] if tag in ("thead", "tbody") else ())
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.setdefault(self._open[-1] if self._open else "", []).append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def views(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id=views>(.*?)</script>', text)
    assert found is not None
    return json.loads(found[1])


def test_every_ticket_and_every_metric_is_there(tmp_path: Path) -> None:
    text = made(write_run(tmp_path))
    outline = Outline(text)
    for name in ("dense", "imp 1", "imp 2"):
        assert any(name in texts for texts in outline.texts["th"]) or f"{name} *" in outline.texts["th"]
    assert [each["name"] for each in views(text)["metrics"]] == list(METRICS)
    for line in study(tmp_path).runs[0].tickets:
        assert f"{line['test'][METRICS[0]]:.4f}" in outline.texts["td"]
        values = [each["cells"]["test"] for each in views(text)["metrics"]]
        assert [column[line["ticket"]] for column in values] == [f"{line['test'][name]:.4f}" for name in METRICS]


def test_equal_folders_give_equal_bytes(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    assert made(folder) == made(folder)


def test_page_is_sound_html(tmp_path: Path) -> None:
    """One h1, headings without gaps, ids once, links that lead somewhere, tables with caption and scope."""
    text = made(write_run(tmp_path), write_run(tmp_path, method="random"))
    outline = Outline(text)
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {str(each["href"])[1:] for each in outline.all("a")}
    assert targets and targets <= set(ids)
    assert {attributes["href"][1:] for attributes in outline.all("use") if attributes["href"]} <= set(ids)
    levels = [int(tag[1]) for tag, _ in outline.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    assert len(outline.all("table")) == len(outline.all("caption")) > 5
    assert all(each.get("scope") in ("row", "col") for each in outline.all("th"))
    assert all(
        each.get("role") == "img" and each.get("aria-label")
        for each in outline.all("svg")
        if each.get("class") == "chart"
    )
    assert outline.all("html") == [{"lang": "en"}]


def test_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    """No address but anchors in the page and the name of SVG; its policy allows its own script and style only."""
    text = made(write_run(tmp_path))
    outline = Outline(text)
    addresses = [
        value
        for _, attributes in outline.elements
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data")
    ]
    assert addresses and all(str(each).startswith("#") for each in addresses)
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in text and "url(" not in text
    assert not outline.all("link") and not any(
        "style" in a or any(n.startswith("on") for n in a) for _, a in outline.elements
    )
    policy = next(each["content"] for each in outline.all("meta") if each.get("http-equiv"))
    assert str(policy).startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in str(policy)


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;\u202e</td>{{x}}\x1b[31m"


def test_nothing_of_a_folder_is_markup(tmp_path: Path) -> None:
    """Every text that a folder may hold: the page has the same elements as with harmless ones."""
    name = "recall@10</script><b>"
    hostile = write_run(
        tmp_path / "hostile", dataset=HOSTILE, model="BPR", settings={"prune_rate": HOSTILE}, command=HOSTILE,
        metrics=(name, "ndcg@10"), users=False,
        lines={1: {"measured": {"energy": {"train": {"gpu_reason": HOSTILE}}}}},
    )  # fmt: skip
    text, usual = made(hostile), made(write_run(tmp_path / "other", users=False))
    outline = Outline(text)
    assert "<script>alert" not in text and "<img" not in text and text.count("<b>") == usual.count("<b>")
    assert len(outline.all("script")) == 2 and not outline.all("img")
    assert {tag for tag, _ in outline.elements} <= {tag for tag, _ in Outline(usual).elements}
    assert views(text)["metrics"][0]["name"] == name
    assert "\u202e" not in text and "\x1b" not in text
    assert [tag for tag, _ in outline.elements].count("section") == usual.count("<section")


def test_hundred_tickets_fit_into_300_kilobytes(tmp_path: Path) -> None:
    """RecBole's five default metrics, validated over a hundred epochs."""
    metrics = ("recall@10", "mrr@10", "ndcg@10", "hit@10", "precision@10")
    for number in range(4):
        sparsities = [step / 26 for step in range(26)]
        write_run(
            tmp_path,
            sparsities,
            method="imp",
            run_hash=f"{number:010d}",
            metrics=metrics,
            epochs=100,
            settings={"prune_rate": number},
        )
    found = study(tmp_path)
    assert sum(not entry.is_dense for entry in found.entries) == 100
    assert len(made(tmp_path).encode()) < 300_000


def test_no_torch_recbole_or_pandas_is_loaded(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    code = (
        "import sys; from recbole_prune import cli; "
        f"assert cli.main(['report', {str(folder)!r}, '--to=page.html', '--csv=all.csv', '--latex=all.tex']) == 0; "
        "print([name for name in ('torch', 'recbole', 'pandas', 'sklearn', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert {"page.html", "all.csv", "all.tex"} <= {file.name for file in tmp_path.iterdir()}


def test_what_was_not_measured_says_so(tmp_path: Path) -> None:
    bare = {ticket: {"measured": None, "history": [], "losses": []} for ticket in range(3)}
    text = made(write_run(tmp_path, users=False, artifact=False, finished=False, lines=bare))
    assert "Sizes: not measured" in text and "Speed: not measured" in text
    assert "Not measured in any run: bytes, times smaller, as good, latency (ms), p95 (ms), front." in text
    assert "No validation was recorded" in text and "density by popularity is not recorded" in text
    assert "is unfinished: 3 tickets so far" in text


def test_rare_items_stand_beside_the_dense_models(tmp_path: Path) -> None:
    """Also where version 0.1.0 wrote two recalls only, and where it wrote nothing."""
    write_run(tmp_path, (0.0, 0.5), lines={0: {"checkpoint_sha256": "a"}, 1: {"checkpoint_sha256": "b"}})
    row = re.search("<tr><th scope=row>imp 1(<td>10<td>.*?)</tbody>", made(tmp_path))
    assert row is not None
    assert re.split("<td[^>]*>", row[1])[1:] == [
        "10",
        "0.4900",
        "-2.0",
        "0.1500",
        "-25.0",
        "25.0 %",
        "50.0 %",
        "0.750",
        "12.5",
    ]
    old = {
        number: {"popularity": None, "recall_by_popularity": {"k": 20, "popular": 0.4, "unpopular": None}}
        for number in (0, 1)
    }
    text = made(write_run(tmp_path / "old", (0.0, 0.5), lines=old))
    assert "<td>20<td>0.4000<td>+0.0" in text
    assert "recall, rare, change (%), rare in lists, items covered, Gini index, average popularity." in text
    bare = {number: {"popularity": ["nonsense"]} for number in range(2)}
    assert "Not measured in any run.</p></section>" in made(write_run(tmp_path / "bare", (0.0, 0.5), lines=bare))


def test_seeds_stand_apart_and_averaged(tmp_path: Path) -> None:
    """Against the statistics themselves; other settings are no other seed."""
    folders = [write_run(tmp_path, (0.0, 0.5, 0.75), run_hash=f"{seed:010d}", seed=seed) for seed in (1, 2, 3)]
    write_run(tmp_path, (0.0, 0.5), run_hash="a" * 10, seed=4, settings={"prune_rate": 0.5})
    text = made(tmp_path)
    for name in ("dense (seed 1)", "imp (seed 2) 1", "imp (seed 3) 2"):
        assert name in text
    users = [read_users(folder) for folder in folders]
    pairs = {n: [tuple(each.values("test", k, METRICS[0]) for k in (0, n)) for each in users] for n in (1, 2)}
    averages = {number: average_seeds(found) for number, found in pairs.items()}
    tests = verdicts(averages[1].dense, {number: each.ticket for number, each in averages.items()}, MARGIN)
    for number, test in tests.items():
        low, high = test.interval_percent
        level = averages[number].dense.mean()
        each = ", ".join(f"{seed}: {100 * c / level:+.2f}" for seed, c in zip((1, 2, 3), averages[number].changes))
        wanted = f"<td>3<td>{test.change_percent:+.2f} [{low:+.2f}, {high:+.2f}]<td>{each}"
        assert f"<tr><th scope=row>imp {number}{wanted}" in text
        assert averages[number].confirm(test).as_good in text.partition(wanted)[2][:40]
    assert text.count("<tr><th scope=row>imp 1<") == 1, "one seed is not averaged"
    assert "over seeds" not in made(folders[0])


@pytest.mark.parametrize("number", [0, -1, 1e308, -1e308, 5e-324, 10**19], ids=str)
@pytest.mark.parametrize("ticket", [0, 1])
def test_numbers_that_no_run_measures_spoil_nothing(number: float, ticket: int, tmp_path: Path) -> None:
    """A sealed journal of somebody else's: its numbers are finite, and that is all that is known of them."""
    count = abs(int(number)) if abs(number) < 1e20 else 0
    times = dict.fromkeys(("latency_median_s", "latency_p95_s", "seconds", "users"), number)
    line = {
        **dict.fromkeys(("kept", "prunable", "parameters", "epochs", "best_epoch"), count),
        **dict.fromkeys(("sparsity", "valid_score", "train_seconds", "eval_seconds", "relative_epochs"), number),
        "valid": dict.fromkeys(METRICS, number), "test": dict.fromkeys(METRICS, number), "losses": [number, 1.0],
        "history": [[number, number], [1, 0.5]], "popularity": {"k": number, "popular": number, "share": number},
        "measured": {
            **dict.fromkeys(("latency", "ranking"), times), "peak_memory": {"training": {"host_bytes": number}},
            "macs": number, "energy": {"train": {"cpu_energy_J": number}},
        },
    }  # fmt: skip
    folder = write_run(tmp_path, (0.0, 0.5), lines={ticket: line}, users=False)
    assert "imp 1" in made(folder)
    found = study(folder)
    assert comparison.csv_text(found, Quality(found)).count("\n") == 3
    assert comparison.latex_text(found, Quality(found)).count(r"\\") == 3


def test_a_damaged_folder_is_shown_and_spoils_nothing(tmp_path: Path) -> None:
    write_run(tmp_path)
    broken = write_run(tmp_path, method="random")
    (broken / "tickets.jsonl").write_bytes(b"{}\n")
    text = made(tmp_path)
    assert "tiny/BPR/random-0123456789 is damaged and left out" in text
    assert "imp 2" in text and "random 1" not in text


def test_damage_beside_the_journal_costs_one_part_only(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    (folder / "masks" / "ticket-001.safetensors").write_bytes(b"nonsense")
    (folder / "users.safetensors").write_bytes(b"nonsense")
    text = made(tmp_path)
    assert "not recorded: " in text and "its sha256 is not that of the journal" in text
    assert "no intervals: " in text and "imp 2" in text


def test_runs_of_one_name_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    for number, rate in enumerate((0.2, 0.5)):
        write_run(tmp_path, run_hash=f"{number:010d}", settings={"prune_rate": rate})
    assert study(tmp_path).series() == [
        "dense (prune_rate=0.2)", "dense (prune_rate=0.5)", "imp (prune_rate=0.2)", "imp (prune_rate=0.5)",
    ]  # fmt: skip
    write_run(tmp_path, run_hash="9" * 10, settings={"prune_rate": 0.5, "x" * 50: 1})
    assert study(tmp_path).series()[-1].startswith("imp 9999999999")


def test_runs_that_differ_in_how_far_they_prune_are_one_series(tmp_path: Path) -> None:
    for number, target in enumerate((0.6, 0.7)):
        lines = {0: {"checkpoint_sha256": "a" * 64}, 2: {"sparsity": target}}
        write_run(tmp_path, run_hash=f"{number:010d}", settings={"prune_target_sparsity": target}, lines=lines)
    found = study(tmp_path)
    assert found.series() == ["dense", "imp"]
    names = [entry.name for entry in found.entries]
    assert names[0] == "dense" and {"imp 60.0 %", "imp 70.0 %"} < set(names) and len(set(names)) == len(names)
    same = [name for name in names if name.endswith(" 1")]
    assert same == ["imp (prune_target_sparsity=0.6) 1", "imp (prune_target_sparsity=0.7) 1"], "of equal sparsity"


def test_a_shared_dense_model_is_one_row(tmp_path: Path) -> None:
    same = {0: {"checkpoint_sha256": "a" * 64}}
    write_run(tmp_path, lines=same)
    write_run(tmp_path, method="random", lines=same)
    names = [entry.name for entry in study(tmp_path).entries]
    assert names == ["dense", "imp 1", "imp 2", "random 1", "random 2"]


# ---- colours ---------------------------------------------------------------------------------------------------------


def palettes() -> dict[str, dict[str, str]]:
    """The colours of the stylesheet by scheme."""
    css = (Path(page.__file__).parent / "page.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    found = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in blocks]
    assert len(found) == 3
    return {"light": found[0], "dark": found[1], "print": {**found[0], **found[2]}}


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_contrast_is_that_of_wcag_aa(scheme: str) -> None:
    """Text 4.5 to 1 on both grounds, marks and lines that mean something 3 to 1 (WCAG 2.1, 1.4.3 and 1.4.11)."""
    colours: Mapping[str, str] = palettes()[scheme]
    for ground in ("ground", "raised"):
        for text in ("ink", "muted", "accent", "good", "bad"):
            assert contrast(colours.get(text, palettes()["light"][text]), colours[ground]) >= 4.5, (text, ground)
    for mark in (*(f"c{number}" for number in range(8)), "grey", "strong", "k5", "k3"):
        assert contrast(colours[mark], colours["ground"]) >= 3, mark


def test_contrast_is_measured() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_without_an_output_the_page_is_written_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "pruned")
    assert cli.main(["report", "pruned"]) == 0
    assert capsys.readouterr().out.startswith("report.html: 3 tickets of 1 run folder, ")
    assert Path("report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report"], "report: name a folder"),
        (["report", "nowhere"], "nowhere: there is no such folder"),
        (["report", "pruned", "--tto=x.html"], "report: '--tto=x.html' is no option; did you mean --to?"),
        (["report", "pruned", "--to=pruned"], "--to= takes a file to write, no folder or device"),
        (["report", "pruned", "--to=x", "--csv=x"], "is named twice"),
        (["report", "pruned", "--csv=pruned/tiny/BPR/imp-0123456789/tickets.jsonl"], "lies in a run folder"),
    ],
)  # fmt: skip
def test_bad_words(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "pruned")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize(
    ("first", "other", "message"),
    [
        ({}, {"dataset": "zoo"}, "dataset is tiny in one and zoo in the other"),
        ({}, {"settings": {"eval_args": {"split": {"LS": "valid_and_test"}}}}, "eval_args split is {'RS'"),
        ({}, {"model": "SASRec"}, "eval_args split is {'RS'"),
        ({}, {"settings": {"user_inter_num_interval": "[5,inf)"}}, "user_inter_num_interval is [0,inf) in one"),
        ({}, {"metrics": ("map@5",)}, "no metric in common: recall@10, ndcg@10"),
        ({"settings": {"eval_args": {"mode": "uni100"}}}, {}, "eval_args mode is"),
    ],
)  # fmt: skip
def test_mixed_folders_are_refused(
    first: dict[str, Any], other: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_run(tmp_path / "pruned", **first)
    another = write_run(tmp_path / "pruned", **{"method": "random", **other})
    assert cli.main(["report", "pruned"]) == 2
    error = capsys.readouterr().err
    assert message in error and str(one) in error and str(another) in error
    assert not Path("report.html").exists()


def test_a_split_that_is_said_equals_the_usual_one(tmp_path: Path) -> None:
    usual = {
        "split": {"RS": [0.8, 0.1, 0.1]},
        "order": "RO",
        "group_by": "user",
        "mode": {"valid": "full", "test": "full"},
    }
    write_run(tmp_path)
    write_run(tmp_path, method="random", settings={"eval_args": usual})
    assert len(study(tmp_path).entries) == 6


def test_only_damaged_folders_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "pruned")
    (folder / "tickets.jsonl").write_bytes(b"")
    assert cli.main(["report", "pruned"]) == 2
    assert "there is nothing to show" in capsys.readouterr().err


def test_metrics_that_only_some_runs_share_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first has one in common with each other run, and none with both."""
    for number, metrics in enumerate((METRICS, METRICS[:1], METRICS[1:])):
        write_run(tmp_path / "pruned", run_hash=f"{number:010d}", metrics=metrics)
    assert cli.main(["report", "pruned"]) == 2
    error = capsys.readouterr().err
    assert "the runs have no metric in common" in error and all(f"{name} in " in error for name in METRICS)


def test_where_nothing_was_found_it_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deep" / "/".join("abcdefghijklmnop")).mkdir(parents=True)
    assert cli.main(["report", "deep"]) == 2
    assert "what lies deeper was not looked at" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes")
def test_no_file_takes_the_place_of_what_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Renamed over a device such as /dev/null, a file would end it for all."""
    write_run(tmp_path / "pruned")
    os.mkfifo("pipe")
    Path("leads").symlink_to("pipe")
    for name in ("pipe", "leads"):
        assert cli.main(["report", "pruned", f"--csv={name}"]) == 2
        assert (
            f"--csv={name} is not allowed: --csv= takes a file to write, no folder or device" in capsys.readouterr().err
        )
    assert Path("pipe").is_fifo() and Path("leads").is_symlink()
    Path("far").mkdir()
    Path("here.csv").symlink_to("far/all.csv")
    assert cli.main(["report", "pruned", "--csv=here.csv"]) == 0
    assert Path("here.csv").is_symlink() and Path("far/all.csv").read_text().startswith("model,")
