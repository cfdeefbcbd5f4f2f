"""What the report computes: the Pareto front, scales, densities from packed masks, changes over users, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_folders import MARGIN, METRICS, SHAPES, USERS, consumed, masks_of, write_run

from recbole_prune.disk.seals import sha256
from recbole_prune.errors import ArtifactError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scope import Scope, Target
from recbole_prune.report.folders import read_run
from recbole_prune.report.page import charts, comparison, densities, pareto
from recbole_prune.report.page.entries import study_of
from recbole_prune.report.page.pareto import Point, front_of
from recbole_prune.report.page.quality import Quality
from recbole_prune.report.page.scales import scale_over, size, three
from recbole_prune.report.page.verdict import headline
from recbole_prune.report.statistics import paired_test
from recbole_prune.report.users import UserValues

numbers = st.one_of(st.none(), st.integers(1, 6).map(float))
planes = st.lists(st.tuples(numbers, numbers), max_size=12)


@given(planes, st.booleans())
def test_the_front_is_what_nothing_dominates(plane: list[tuple[float | None, float | None]], smaller: bool) -> None:
    points = [Point(str(number), cost, quality) for number, (cost, quality) in enumerate(plane)]

    def dominated(cost: float, quality: float) -> bool:
        for other, better in plane:
            if other is not None and better is not None:
                as_good = better <= quality if smaller else better >= quality
                if other <= cost and as_good and (other, better) != (cost, quality):
                    return True
        return False

    wanted = [c is not None and q is not None and not dominated(c, q) for c, q in plane]
    assert front_of(points, smaller) == wanted


@given(st.lists(st.tuples(st.floats(1, 1e9), st.floats(-1, 1)), min_size=1, max_size=20))
def test_everything_of_a_view_lies_in_the_chart(plane: list[tuple[float, float]]) -> None:
    points = [
        Point(f"imp {number}", cost, quality, (quality - 0.1, quality + 0.1), 2 * cost)
        for number, (cost, quality) in enumerate(plane)
    ]
    places, heights = pareto.places_of(points), pareto.heights_of(points)
    for x, y, whisker, span in zip(places["x"], heights["y"], heights["whiskers"], places["spans"]):
        assert pareto.LEFT <= x < span <= pareto.RIGHT
        assert pareto.TOP <= whisker[1] <= y <= whisker[0] <= pareto.BOTTOM
    assert all(pareto.TOP <= height <= pareto.BOTTOM for height, _ in heights["ticks"])
    view = pareto.front_view(points, places["x"], heights["y"])
    labelled = [index for index, *_ in view["labels"]]
    assert len(set(labelled)) == len(labelled) and all(view["front"][index] for index in labelled)


def test_one_late_list_does_not_squeeze_the_chart() -> None:
    points = [Point("a", 1.0, 0.5, None, 2.0), Point("b", 4.0, 0.6, None, 4000.0)]
    places = pareto.places_of(points)
    assert places["x"][1] - places["x"][0] > 200 and places["spans"][1] == pareto.RIGHT
    assert places["x"][0] < places["spans"][0] < places["x"][1]


def test_a_front_as_a_staircase() -> None:
    points = [Point("a", 10, 0.1), Point("b", 100, 0.5), Point("c", 1000, 0.3), Point("d", None, 0.9)]
    x, y = [60, 250, 440, None], [200, 100, 150, 20]
    view = pareto.front_view(points, x, y)
    assert (view["front"], view["line"]) == ([1, 1, 0, 0], f"M60 200H250V100H{pareto.RIGHT}")
    assert pareto.places_of(points)["x"][1] == round((pareto.LEFT + pareto.RIGHT) / 2)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.booleans())
def test_ticks_are_round_few_and_within(low: float, spread: float, log: bool) -> None:
    scale = scale_over([abs(low) + 1, abs(low) + 1 + spread] if log else [low, low + spread], 0, 100, log=log)
    ticks = scale.ticks()
    assert len(ticks) <= 12 and all(0 <= scale(tick) <= 100 for tick in ticks)
    assert all(a < b for a, b in zip(ticks, ticks[1:]))


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (672512, "673 kB"), (1.5e9, "1.5 GB"),
                        (5e15, "5,000 TB")],
)  # fmt: skip
def test_sizes(value: float, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.03212, "0.0321"), (12.345, "12.3"), (1234.5, "1,234"), (0, "0"), (99.96, "100.0")]
)
def test_three_digits(value: float, text: str) -> None:
    assert three(value) == text


def test_labels_of_lines_that_end_together_keep_their_order() -> None:
    lines = [(str(n), "k0", [(1.0, 0.5), (2.0, 0.5 + n / 1e4)], None) for n in range(8)]
    svg = charts.curve_chart(lines, "eight lines")
    found = [(int(y), label) for y, label in re.findall(r'<text x=\d+ y=(\d+) class="name k0">(\d)</text>', svg)]
    assert [label for _, label in sorted(found)] == list("76543210")
    heights = sorted(height for height, _ in found)
    assert all(b - a >= 11 for a, b in zip(heights, heights[1:]))


def test_a_long_line_is_thinned_and_keeps_its_best_epoch() -> None:
    line = [(float(epoch), float(epoch % 7)) for epoch in range(1, 1001)]
    svg = charts.curve_chart([("0", "dense", line, 333.0)], "long")
    [way] = re.findall(r'<path d="(M[^"]*)" class="curve dense"', svg)
    assert 30 <= len(re.findall(r"-?\d+", way.partition("l")[2])) / 2 <= 40 and svg.count("<circle") == 1


# ---- densities -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_live_entries_are_those_of_the_mask(rows: int, width: int, seed: int) -> None:
    """Against MaskSet, which training uses; blocks of any size, rows that do not begin at a byte."""
    mask = np.random.default_rng(seed).random((rows, width)) < 0.5
    mask[0] = True
    target = Target("t.weight", "embedding", (rows, width), (0,), ())
    masks = MaskSet(Scope([target], [], rows * width), {"t.weight": torch.from_numpy(mask)})
    counts = densities._count(np.packbits(mask.reshape(-1)), densities.Target("t.weight", rows, width, (0,)))
    assert counts[0] == 0 and counts[1:].tolist() == masks.per_row("t.weight").tolist()


def test_densities_of_a_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, (0.0, 0.5)))
    targets = densities.targets_of(run.scope)
    found = densities.live_per_row(run, run.tickets[1], targets)
    masks = masks_of(1, 0.5)
    for target in targets:
        mask = masks[target.name][1:]
        assert densities.density_of(found, [target]) == pytest.approx(mask.mean())
        assert found[target.name][1:].tolist() == mask.sum(1).tolist()
    together = np.concatenate([masks[target.name][1:] for target in targets])
    assert densities.density_of(found, targets) == pytest.approx(together.mean())


def test_groups_hold_equally_many_interactions() -> None:
    counts = np.array([0, 5, 1, 1, 2, 1, 0, 10, 0])
    found = densities.grouped("item", counts)
    # 20 interactions, so 2 in a group: item 7 opens group 0, item 1 group 5, then 4, 2, 3, 5, and those without any
    assert found.group.tolist() == [-1, 5, 8, 9, 7, 9, 9, 0, 9]
    assert found.members() == [1, 0, 0, 0, 0, 1, 0, 1, 1, 4]


@given(st.lists(st.integers(0, 30), min_size=2, max_size=60), st.integers(0, 2**32 - 1))
def test_density_by_group_is_a_partition(counts: list[int], seed: int) -> None:
    popularity = densities.grouped("user", np.array([0, *counts[1:]]))
    live = np.random.default_rng(seed).integers(0, 5, len(counts))
    live[0] = 0
    table = densities.Target("t", len(counts), 4, (0,))
    found = densities.density_by_group({"t": live}, popularity, [table])
    members = popularity.members()
    total = sum(density * size_ * 4 for density, size_ in zip(found, members) if density is not None)
    assert total == pytest.approx(live.sum()) and [d is None for d in found] == [m == 0 for m in members]
    for group, density in enumerate(found):
        rows = popularity.group == group
        assert density is None or density == pytest.approx(live[rows].mean() / 4)
    order = [popularity.interactions[popularity.group == group] for group in range(densities.GROUPS)]
    shown = [each for each in order if len(each)]
    assert all(upper.min() >= lower.max() for upper, lower in zip(shown, shown[1:]))


def test_popularity_is_what_the_artifact_lists(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path))
    users, items = densities.popularities(run)
    pairs = consumed()
    assert users.interactions[1:].tolist() == [sum(user == each for each, _ in pairs) for user in range(1, USERS + 1)]
    assert items.interactions[5] == sum(item == 5 for _, item in pairs)
    targets = densities.targets_of(run.scope)
    assert [target.name for target in densities.tables_of(users, [users, items], targets)] == ["users.weight"]
    assert densities.tables_of(users, [users, densities.grouped("item", users.interactions)], targets) == []


@pytest.mark.parametrize("name", ["../../secret.safetensors", "masks/../masks/ticket-001.safetensors", "/etc/passwd"])
def test_no_file_outside_the_masks_is_read(tmp_path: Path, name: str) -> None:
    run = read_run(write_run(tmp_path))
    with pytest.raises(ArtifactError, match="is not where a run keeps a mask"):
        densities.live_per_row(run, {**run.tickets[1], "mask_file": name}, densities.targets_of(run.scope))


def test_a_mask_of_another_scope_is_refused(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path))
    targets = densities.targets_of(run.scope)
    file = run.path / "masks" / "ticket-001.safetensors"
    with pytest.raises(ArtifactError, match="does not fit"):
        densities.live_per_row(run, run.tickets[1], targets[:1])
    file.write_bytes(b"\xff" * 100)
    line = {**run.tickets[1], "mask_sha256": sha256(b"\xff" * 100)}
    with pytest.raises(ArtifactError, match="is not a readable safetensors file"):
        densities.live_per_row(run, line, targets)
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(ArtifactError, match="symbolic link"):
        densities.live_per_row(run, line, targets)


@pytest.mark.parametrize(
    ("name", "shape", "padding"),
    [
        (None, [2], []), (1, [2], []), ("a", None, []), ("a", [2], None), ("a", [], []), ("a", [True], []),
        ("a", [2, 1 << 60], []), ("a", [2, 2], [2]), ("a", [2, -2], []), ("a", [0], []),
    ],
)  # fmt: skip
def test_a_scope_is_checked_before_memory_is_taken(name: Any, shape: Any, padding: Any) -> None:
    for target in ({"name": name, "shape": shape, "padding_rows": padding}, name):
        with pytest.raises(ArtifactError, match="scope.json is damaged"):
            densities.targets_of({"targets": [target]})


# ---- quality ---------------------------------------------------------------------------------------------------------


def quality_of(folder: Path) -> tuple[Any, Quality]:
    found = study_of([read_run(folder)])
    return found, Quality(found)


def test_changes_have_the_interval_of_a_paired_t_test(tmp_path: Path) -> None:
    from scipy import stats

    from recbole_prune.report.users import read_users

    folder = write_run(tmp_path)
    found, quality = quality_of(folder)
    users, entry = read_users(folder), found.entries[2]
    for metric in METRICS:
        dense, ticket = (users.values("test", number, metric).astype(np.float64) for number in (0, 2))
        wanted = stats.ttest_rel(ticket, dense).confidence_interval(0.95)
        change, low, high = quality.numbers_of(entry, metric)
        assert change == pytest.approx(100 * (ticket - dense).mean() / dense.mean())
        assert (low, high) == pytest.approx((100 * wanted.low / dense.mean(), 100 * wanted.high / dense.mean()))
        bounds = quality.interval_of(entry, metric)
        usual = found.entries[0].metric("test", metric)
        assert bounds == pytest.approx((usual * (1 + low / 100), usual * (1 + high / 100)))
    assert quality.numbers_of(found.entries[0], METRICS[0]) == (None, None, None)


def test_rows_of_one_user_are_one_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sequential data, where intervals of rows would be too narrow; as the tests of the run have it."""
    folder = write_run(tmp_path)
    found, quality = quality_of(folder)
    [users] = quality._users.values()
    assert users is not None
    ids = np.arange(USERS) // 4
    doubled = UserValues({**users.arrays, "test/users": ids})
    monkeypatch.setattr(Quality, "_read_users", lambda self, run: doubled)
    dense, ticket = (
        users.values("test", number, METRICS[0]).astype(np.float64).reshape(-1, 4).mean(1) for number in (0, 2)
    )
    wanted = paired_test(dense, ticket, MARGIN)
    change, low, high = Quality(found).numbers_of(found.entries[2], METRICS[0])
    assert (change, low, high) == pytest.approx((wanted.change_percent, *wanted.interval_percent))
    assert (low, high) != pytest.approx(quality.numbers_of(found.entries[2], METRICS[0])[1:])


def test_a_run_without_users_has_changes_and_no_interval(tmp_path: Path) -> None:
    found, quality = quality_of(write_run(tmp_path, users=False))
    dense, entry = found.entries[0], found.entries[1]
    before, now = (each.metric("test", METRICS[0]) for each in (dense, entry))
    assert quality.numbers_of(entry, METRICS[0]) == (pytest.approx(100 * (now - before) / before), None, None)
    assert quality.interval_of(entry, METRICS[0]) is None


def judged(tmp_path: Path, **block: Any) -> str:
    """The sentence at the top where the run has tested its chosen ticket so."""
    run = read_run(write_run(tmp_path, (0.0, 0.5)))
    assert run.summary is not None
    tickets = [
        {**ticket, "as_good": {**(ticket["as_good"] or {}), **block} or None} for ticket in run.summary["tickets"]
    ]
    found = study_of([replace(run, summary={**run.summary, "tickets": tickets})])
    return headline(found, Quality(found))


def test_the_sentence_says_what_to_do(tmp_path: Path) -> None:
    gains = "1.91 times smaller on disk and 2.00 times slower to rank"
    said = judged(tmp_path / "a", as_good="yes", margin=0.01)
    assert said.startswith(f"Take imp 1: {gains}, and test recall@10 changes by -")
    assert said.endswith("as good as the dense model within 1 %.") and "% of dense (95 % interval -" in said
    assert judged(tmp_path / "b", as_good="no", margin=0.02).startswith("Keep the dense model if 2 % matters. imp 1 ")
    said = judged(tmp_path / "c", as_good="open", margin=0.05, decidable=False, users=1234)
    assert "whether it is as good within 5 % is open" in said and said.endswith(
        "1,234 users cannot decide it at this size."
    )
    for number, nonsense in enumerate(("<b>", 1, None, ["yes"])):
        said = judged(tmp_path / f"d{number}", as_good=nonsense)
        assert said.endswith("Whether it is as good was not tested: its run kept no values of users.")


def several(tmp_path: Path, *blocks: dict[str, Any]) -> str:
    """The sentence about runs, each sparser than the one before, that tested their tickets so."""
    runs = [read_run(write_run(tmp_path, (0.0, sparsity), run_hash=f"{number:010d}", settings={"prune_rate": number}))
            for number, sparsity in enumerate((0.2, 0.5, 0.8))]  # fmt: skip
    found = []
    for run, block in zip(runs, blocks):
        assert run.summary is not None
        tickets = [{**ticket, "as_good": {"margin": 0.01, **block}} for ticket in run.summary["tickets"]]
        found.append(replace(run, summary={**run.summary, "tickets": tickets}))
    study = study_of(found)
    return headline(study, Quality(study))


def test_of_several_the_smallest_is_named_that_is_as_good(tmp_path: Path) -> None:
    good, undecided = {"as_good": "yes"}, {"as_good": "open"}
    assert several(tmp_path, good, good, undecided).startswith("Take imp (prune_rate=1) 1: ")


def test_who_is_picked_from_several_runs_has_to_be_surer(tmp_path: Path) -> None:
    """0.01 and 0.03 of three runs are 0.03 and 0.09."""
    sure, barely, undecided = ({"as_good": "yes", "p_adjusted": p} for p in (0.01, 0.03, 0.04))
    assert several(tmp_path / "a", sure, barely, undecided).startswith("Take imp (prune_rate=0) 1: ")
    said = several(tmp_path / "b", barely, undecided, {"as_good": "open"})
    assert said.startswith("imp (prune_rate=1) 1 does best") and "picked from 3 runs that is no longer sure" in said


# ---- CSV and LaTeX ---------------------------------------------------------------------------------------------------


def test_csv_says_what_the_journal_says(tmp_path: Path) -> None:
    found, quality = quality_of(write_run(tmp_path))
    rows = list(csv.DictReader(io.StringIO(comparison.csv_text(found, quality))))
    assert len(rows) == 3
    for row, line in zip(rows, found.runs[0].tickets):
        assert float(row["sparsity"]) == line["sparsity"] and int(row["kept"]) == line["kept"]
        assert float(row[f"test {METRICS[1]}"]) == line["test"][METRICS[1]]
        assert (row["p_adjusted"] == "not measured") == (line["ticket"] == 0) and row["seed"] == "2020"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_no_text_is_a_formula(text: str, tmp_path: Path) -> None:
    found, quality = quality_of(write_run(tmp_path, dataset=text))
    row = next(csv.DictReader(io.StringIO(comparison.csv_text(found, quality), newline="")))
    assert row["dataset"] == (f"'{text}" if text.isprintable() else repr(text).strip("'"))
    assert comparison._csv_cell(-0.5) == "-0.5" and comparison._csv_cell(2.0) == "2"


@given(st.text(max_size=30))
def test_latex_holds_no_command_of_a_text(text: str) -> None:
    escaped = comparison.latex(text)
    assert escaped.isascii() and "\n" not in escaped
    rest = escaped
    for command in sorted((c for c in comparison._LATEX.values()), key=len, reverse=True):
        rest = rest.replace(command, "")
    assert not set(rest) & set("\\{}$&%#_~^[]*")


def test_latex_has_a_row_for_every_ticket(tmp_path: Path) -> None:
    found, quality = quality_of(write_run(tmp_path))
    lines = comparison.latex_text(found, quality).splitlines()
    body = [line for line in lines if line.endswith(r"\\")]
    assert len(body) == 4 and {line.count(" & ") for line in body} == {3 + len(METRICS) + 1}
    assert body[2].startswith("imp 1 & 50.0 \\% & ")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_latex_compiles(tmp_path: Path) -> None:
    found, quality = quality_of(write_run(tmp_path, metrics=("a_b%$#&^~\\{}@1", "[x]*@2")))
    document = "\\documentclass{article}\\usepackage{booktabs,textcomp}\\begin{document}%s\\end{document}"
    (tmp_path / "t.tex").write_text(document % comparison.latex_text(found, quality))
    subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )


def test_shapes_of_the_folder_are_told_apart() -> None:
    assert len({rows for rows, _ in SHAPES.values()}) == len(SHAPES)
