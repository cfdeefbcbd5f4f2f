"""Measured figures: files of ``tests/figures`` are whole, and the README quotes them as ``bench table`` prints them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from bench_section import FIGURES, documents, present_section, section

from recbole_prune.bench.results import Results, read_document
from recbole_prune.bench.table import markdown

FILES = sorted(FIGURES.glob("*.json"))
needs_figures = pytest.mark.skipif(not FILES, reason="tests/figures is empty: nothing was measured for this version")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


def figures(text: str) -> dict[str, list[list[str]]]:
    """The rows of all tables in a section, by the file that they name."""
    found: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| file |"):
            name, *rest = cells(line)
            found.setdefault(name, []).append([cell for cell in rest if cell])
    return found


def is_part(quoted: list[str], line: str) -> bool:
    """Whether the quoted cells stand in a line of a table, in this order."""
    printed = iter(cells(line))
    return line.startswith("| ") and all(cell in printed for cell in quoted)


def assert_quoted(text: str, shown: dict[str, Any]) -> None:
    rows = figures(text)
    assert set(rows) == set(shown)
    for name, document in shown.items():
        lines = markdown(document).splitlines()
        assert len(rows[name]) == sum(bool(candidate["measures"]) for candidate in document["candidates"])
        assert [row for row in rows[name] if not any(is_part(row, line) for line in lines)] == []


@needs_figures
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_is_whole_and_is_printed(file: Path) -> None:
    document = read_document(file)
    text = markdown(document)
    assert document["complete"] and "INCOMPLETE" not in text
    assert document["candidates"] and document["command"].startswith("recbole-prune bench ")
    for candidate in document["candidates"]:
        assert f"| {candidate['name']} |" in text


@needs_figures
def test_readme_quotes_the_files() -> None:
    assert_quoted(present_section(), documents())
    assert present_section() == section(documents()), "run: python tests/bench_section.py --write"


@needs_figures
def test_readme_quotes_what_units_save() -> None:
    """In a sentence, of two files."""
    tables = [markdown(read_document(FIGURES / f"{name}-units.json")).splitlines() for name in ("train", "eval")]
    trained, ranked = (next(cells(line) for line in lines if "| 50 % |" in line) for lines in tables)
    text = " ".join((FIGURES.parent.parent / "README.md").read_text(encoding="utf-8").split())
    [found] = re.findall(r"NeuMF at half its units trains ([\d.]+), ranks ([\d.]+) times faster than plain", text)
    assert found[0] in trained and found[1] in ranked


# ---- the section of figures made up here -----------------------------------------------------------------------------


def document(benchmark: str, command: list[str], reference: str, **samples: list[float]) -> dict[str, Any]:
    """A whole document: a reference, a rival, and ours at 90 %."""
    results = Results(benchmark, {"seconds": "seconds"}, [reference, "rival"], command=[benchmark, *command])
    for name, seconds in samples.items():
        for second in seconds:
            results.add(name, 0.9 if name == "ours" else None, seconds=second)
    results.settings = {"model": "BPR", "dataset": "d"}
    results.complete = True
    return results.document()


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    common = ["--dataset=d", "--to=f.json", "--threads=1"]
    timed = {"plain": [2.0, 4.0, 3.0], "rival": [1.0], "ours": [0.5, 0.25]}
    top = {"torch": [1.0], "rival": [7.0], "ours": [0.5]}
    return {
        "train-bpr": document("train", ["--model=BPR", *common], "plain", **timed),
        "eval": document("eval", ["--model=BPR", *common, "--repeats=2"], "plain", **timed),
        "recommend-bpr": document("recommend", ["--artifact=a b", "--threads=1"], "torch", **top),
    }


def test_section_quotes_medians_and_ratios_to_the_first_reference(shown: dict[str, Any]) -> None:
    text = section(shown)
    assert_quoted(text, shown)
    assert "| file | candidate | sparsity | seconds | times faster than plain |" in text
    assert "| train-bpr | ours | 90 % | 375 ms | 8.00 |" in text
    assert "| recommend-bpr | rival |  | 7 s | 0.14 |" in text
    assert "min - max" not in text and "than rival" not in text


def test_a_changed_figure_is_found(shown: dict[str, Any]) -> None:
    changed = section(shown).replace("8.00", "9.00")
    with pytest.raises(AssertionError):
        assert_quoted(changed, shown)
