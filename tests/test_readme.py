"""The README says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_table import HEADER, README, can_be_looked_at, present_table, row_of
from zoo import all_models, missing_package

from recbole_prune.cli import COMMANDS
from recbole_prune.config.paths import property_names


@pytest.mark.parametrize("model", all_models())
def test_model_row_is_current(model: str, tiny_data: Path) -> None:
    table = present_table()
    assert table[:2] == HEADER
    [row] = [row for row in table if row.startswith(f"| {model} |")]
    if not can_be_looked_at(model):
        pytest.skip(f"{model}: {missing_package(model)}")
    assert row == row_of(model, tiny_data), "run: python tests/model_table.py --write"


def test_every_pruner_and_command_is_described() -> None:
    text = README.read_text(encoding="utf-8")
    for name in property_names("pruner"):
        assert f"| `{name}` |" in text
    for command in COMMANDS:
        assert command == "run" or f"recbole-prune {command}" in text
    assert "PLACEHOLDER" not in text
