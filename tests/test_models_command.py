"""``recbole-prune models``: its table is true of every model, and it prints without torch and RecBole."""

from __future__ import annotations

from pathlib import Path

import pytest
from marks import slow_but
from model_table import can_be_looked_at, row_of
from zoo import all_models, missing_package

from recbole_prune import cli
from recbole_prune.anatomy.prunable import ALL, FILE, as_text, read_models
from recbole_prune.commands import models
from recbole_prune.config.schema import method_names
from recbole_prune.errors import ConfigError

QUICK = ("BPR", "CKE", "DeepFM", "SASRec", "S3Rec", "UltraGCN", "XGBoost")


@pytest.mark.parametrize("model", slow_but(QUICK, all_models()))
def test_model_row_is_current(model: str, tiny_data: Path) -> None:
    [row] = [row for row in read_models() if row.name == model]
    if not can_be_looked_at(model):
        pytest.skip(f"{model}: {missing_package(model)}")
    assert row == row_of(model, tiny_data), "run: python tests/model_table.py --write"


def test_file_is_read_as_it_is_written() -> None:
    assert as_text(read_models()) == FILE.read_text(encoding="utf-8")


def test_everything_is_printed_within_the_width(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    words = " ".join(" ".join(lines).split())
    for model in read_models():
        assert f" {model.name} {model.targets}" in words
        assert model.notes in words
        assert not model.reasons or model.reasons.split("; ")[0] not in words, "only of a model that is named"


def test_a_named_model_says_why_it_cannot_be_taught(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "deepfm", "BPR", "EASE", "--kind=tree"]) == 0
    out = capsys.readouterr().out
    words = " ".join(out.split())
    assert "taught by all sequential" not in words and "taught by hint, kd, sad DeepFM reads bundles of fields" in words
    assert words.count("its rows have no lists of items") == 1
    assert "taught by none without a gradient it" in words
    assert words.count("taught by none") == 3, "XGBoost and LightGBM, without reasons"
    assert words.count("cannot learn from a teacher") == 1
    assert max(map(len, out.splitlines())) <= 100


def test_every_distiller_of_the_table_exists() -> None:
    for model in read_models():
        names = set(model.taught_by.removeprefix(f"{ALL} but ").replace(ALL, "").split(", ")) - {""}
        assert names <= set(method_names("distiller"))
        assert bool(model.reasons) == (model.taught_by != ALL)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["bpr", "FFM"], ["BPR", "FFM"]),
        (["--kind=tree"], ["LightGBM", "XGBoost"]),
        (["--kind=tree", "Pop"], ["Pop", "LightGBM", "XGBoost"]),
    ],
)
def test_some_are_chosen(words: list[str], names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "] == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["LightGNC"], "'LightGNC' is no model; did you mean LightGCN"),
        (["zzzzz"], "'zzzzz' is no model; recbole-prune models lists all"),
        (["--kind=generl"], "'generl' is no kind; did you mean general?"),
        (["--kind=7"], "'7' is no kind; there are general, sequential"),
        (["--model=BPR"], "'--model=BPR' is no option; there are --kind="),
    ],
)
def test_wrong_words_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        models.main(words)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["BPR", "-h"]):
        assert cli.main(["models", *words]) == 0
        assert capsys.readouterr().out.startswith("usage: recbole-prune models")
