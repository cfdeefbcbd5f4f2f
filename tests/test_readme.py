"""The README says what the code does."""

from __future__ import annotations

from pathlib import Path

import compare_section
from bench_section import FIGURES

from recbole_prune.bench.results import read_document
from recbole_prune.commands import COMMANDS
from recbole_prune.config.paths import property_names

README = Path(__file__).resolve().parent.parent / "README.md"
SET_UP = (
    "python -m venv .venv && . .venv/bin/activate && pip install torch==2.13.0 . && "
    "recbole-prune --model=BPR --dataset=ml-100k --pruner=imp",
    'python -m venv .venv && . .venv/bin/activate && pip install torch==2.13.0 -e ".[test]" && pytest -n 2',
)
MOST_BYTES = 12_000


def test_every_pruner_and_command_is_described() -> None:
    text = README.read_text(encoding="utf-8")
    named = " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    for name in property_names("pruner"):
        assert f"`{name}`" in named
    for command in COMMANDS:
        assert command == "run" or f"recbole-prune {command}" in text
    assert "PLACEHOLDER" not in text


def test_both_commands_of_the_set_up_stand_there() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert [line.strip() for line in lines[:30] if line.strip() in SET_UP] == list(SET_UP)


def test_it_is_short() -> None:
    assert len(README.read_bytes()) <= MOST_BYTES


def test_the_start_is_that_of_its_file() -> None:
    document = read_document(FIGURES / "start.json")
    plain, *_, ours = (
        c["measures"]["one_user"]["median"] for c in document["candidates"] if "one_user" in c["measures"]
    )
    said = f"takes {ours:.2f} s from command to end, from RecBole's checkpoint {plain:.1f} s"
    assert said in README.read_text(encoding="utf-8")


def test_the_comparison_is_that_of_its_file() -> None:
    text = compare_section.section(compare_section.comparisons())
    assert compare_section.present_section() == text, "run: python tests/compare_section.py --write"
