"""Small forms of tables: what they decode to, how they are stored and read, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recbole_prune.artifact import files, forms, read_artifact, write_artifact
from recbole_prune.artifact.encoding import encode
from recbole_prune.artifact.fields import Fields
from recbole_prune.artifact.forms import TableForm, column_groups, forms_from_bytes, forms_to_bytes
from recbole_prune.errors import ArtifactError
from recbole_prune.training.computed_tables import FormedTable, compute_tables


@st.composite
def any_form(draw: st.DrawFn) -> tuple[TableForm, np.ndarray]:
    """A form and the table that it is, by another way of computing it."""
    kind = draw(st.sampled_from(sorted(forms.FORMS)))
    rows, width = draw(st.integers(1, 20)), draw(st.integers(1, 9))
    padding = tuple(sorted(draw(st.sets(st.integers(0, rows + 1), max_size=2))))
    padding = tuple(row for row in padding if row < rows + len(padding))
    source = np.random.default_rng(draw(st.integers(0, 2**31)))
    numbers = lambda *shape: source.standard_normal(shape).astype(np.float32)  # noqa: E731
    values = numbers(len(padding), width)
    if kind == "factors":
        left, right = numbers(rows, draw(st.integers(1, width))), None
        right = numbers(left.shape[1], width)
        form = forms.factors(left, right, padding, values)
        counted = (left.astype(np.longdouble) @ right.astype(np.longdouble)).astype(np.float32)
    elif kind == "codes":
        groups, books = draw(st.integers(1, width)), numbers(draw(st.integers(1, 6)), width)
        picked = source.integers(0, len(books), (rows, groups)).astype(np.uint8)
        form = forms.codes(picked, books, padding, values)
        of_column = [g for g, part in enumerate(np.array_split(np.arange(width), groups)) for _ in part]
        counted = np.array([[books[picked[i, of_column[j]], j] for j in range(width)] for i in range(rows)])
    else:
        divider = draw(st.integers(1, rows))
        remainder, quotient = numbers(divider, width), numbers(-(-rows // divider), width)
        form = forms.hashed(remainder, quotient, rows, 11, padding, values)
        places = np.random.RandomState(11).permutation(rows)
        counted = np.array([remainder[p % divider] * quotient[p // divider] for p in places])
    table = np.zeros((rows + len(padding), width), np.float32)
    table[list(padding)] = values
    table[[row for row in range(len(table)) if row not in padding]] = counted
    return form, table


@given(any_form())
@settings(max_examples=150, deadline=None)
def test_a_form_is_its_table_and_comes_back_from_a_file(pair: tuple[TableForm, np.ndarray]) -> None:
    form, table = pair
    if form.encoding == "factors":
        np.testing.assert_allclose(form.decode(), table, rtol=1e-6, atol=1e-6)
        table = form.decode()
    assert form.decode().tobytes() == table.tobytes()
    data = forms_to_bytes({"a.weight": form, "b/c": form})
    assert data == forms_to_bytes({"a.weight": form, "b/c": form})
    found = forms_from_bytes(data, Path("forms"))
    assert list(found) == ["a.weight", "b/c"]
    assert found["b/c"].decode().tobytes() == table.tobytes()
    assert found["b/c"].describe() == form.describe()
    assert form.nbytes == sum(part.nbytes for part in found["b/c"].parts.values())


@given(any_form())
@settings(max_examples=60, deadline=None)
def test_what_trains_is_the_table_that_is_stored(pair: tuple[TableForm, np.ndarray]) -> None:
    form, table = pair
    model = nn.Sequential(nn.Embedding(*form.shape))
    before = set(dict(model.named_parameters()))
    compute_tables(model, {"0.weight": FormedTable(form)})
    assert before == {"0.weight"} and len(dict(model.named_parameters())) == len(form.tables)
    state = model.state_dict()
    assert list(state) == ["0.weight"]
    np.testing.assert_allclose(state["0.weight"].numpy(), table, rtol=1e-5, atol=1e-5)
    if form.encoding != "factors":
        assert torch.equal(state["0.weight"], torch.from_numpy(table))
    model.load_state_dict(state)
    assert set(dict(model.named_parameters())) == before and type(model[0]) is nn.Embedding


def test_one_table_under_two_modules_stays_one() -> None:
    model = nn.ModuleList([nn.Embedding(5, 4), nn.Embedding(5, 4), nn.Embedding(5, 4)])
    model[1].weight = model[0].weight
    source = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    compute_tables(model, {"0.weight": FormedTable(forms.hashed(source[:2], source[2:5], 5, 3))})
    assert len(list(model.parameters())) == 3
    with torch.no_grad():
        next(iter(model[0].parametrizations.parameters())).mul_(2)
    state = model.state_dict()
    assert sorted(state) == ["0.weight", "1.weight", "2.weight"]
    assert torch.equal(state["0.weight"], state["1.weight"])
    model.load_state_dict(state)
    assert model[0].weight is model[1].weight and len(list(model.parameters())) == 2


@given(any_form(), st.sampled_from(["fp16", "int8", "int4"]))
@settings(max_examples=80, deadline=None)
def test_rounded_forms_stay_within_their_bound(pair: tuple[TableForm, np.ndarray], values: str) -> None:
    form, _ = pair
    rounded = form.stored_by(lambda table: encode(table, values=values))
    slack = 1e-6 * (1 + np.abs(form.decode()))
    assert (np.abs(rounded.decode().astype(np.float64) - form.decode()) <= rounded.rounding_error() + slack).all()
    assert not form.rounding_error().any()
    padding = list(form.padding_rows)
    assert rounded.decode()[padding].tobytes() == form.decode()[padding].tobytes()
    assert rounded.codes is form.codes or np.array_equal(rounded.codes, form.codes)
    assert rounded.nbytes <= form.nbytes + 2 * sum(len(table.parts["values"]) for table in form.tables.values())


@pytest.mark.parametrize(("columns", "groups"), [(64, 28), (5, 5), (7, 3), (1, 1), (10, 4)])
def test_columns_are_divided_as_numpy_divides_them(columns: int, groups: int) -> None:
    parts = np.array_split(np.arange(columns), groups)
    assert column_groups(columns, groups) == [(part[0], part[-1] + 1) for part in parts]


# ---- in an artifact --------------------------------------------------------------------------------------------------


def write(folder: Path, **changed: Any) -> dict[str, Any]:
    source = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    tensors = {"plain": encode(source), **changed}
    return write_artifact(
        folder,
        tensors=tensors,
        users=None,
        items=None,
        seen=None,
        tables=list(changed),
        document={"model": "BPR", "dataset": "tiny", "settings": {}},
    )


def test_only_artifacts_with_a_form_need_the_newer_format(tmp_path: Path) -> None:
    assert write(tmp_path / "old")["format_version"] == 1
    small = np.ones((3, 4), np.float32)
    info = write(tmp_path / "new", table=forms.hashed(small, small, 9, 0))
    assert info["format_version"] == 2 <= files.FORMAT_VERSION
    assert info["bytes"]["tables"] == 2 * 4 * 12 and info["bytes"]["tables_dense"] == 4 * 9 * 4
    read = read_artifact(tmp_path / "new")
    assert read.tensor("table").tolist() == [[1.0] * 4] * 9


def form_for_refusals() -> TableForm:
    small = np.ones((4, 6), np.float32)
    return forms.codes(np.zeros((7, 3), np.uint8), small, (0,), small[:1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, p: d.update(shape=[8]), "shape must be rows and columns"),
        (lambda d, p: d.update(shape=[9, 6]), "21 codes do not give 8 rows"),
        (lambda d, p: d.update(padding_rows=[3, 2]), "padding_rows must ascend"),
        (lambda d, p: d.update(padding_rows=[8]), "whole numbers from 0 to 7"),
        (lambda d, p: d.update(subspaces=2), "subspaces must be the 3 codes of a row"),
        (lambda d, p: d.update(dtype="float64"), "dtype must be that of its parts, float32"),
        (lambda d, p: d.update(encoding="factors"), "factors needs left, right"),
        (lambda d, p: d["parts"].pop("padding"), "codes has no part padding.values"),
        (lambda d, p: p.update(codes=p["codes"] + 4), "code 4 is beyond the 4 rows of values"),
        (lambda d, p: p.update(codes=p["codes"].astype(np.int16)), "must be a list of uint8"),
        (lambda d, p: p.pop("codes"), "codes are stored with the encoding codes"),
    ],
)
def test_what_contradicts_itself_is_refused(change: Callable[[Any, Any], object], message: str) -> None:
    form = form_for_refusals()
    described, parts = json.loads(json.dumps(form.describe())), dict(form.parts)
    change(described, parts)
    with pytest.raises(ArtifactError, match=message):
        TableForm.from_description(Fields(described, Path("ticket.json"), "tensors.table"), parts)


@pytest.mark.parametrize("field", [{"divider": 0}, {"divider": 10}, {"operation": "sum"}, {"seed": -1}])
def test_an_impossible_division_is_refused(field: dict[str, Any]) -> None:
    small = np.ones((3, 4), np.float32)
    form = forms.hashed(small, small, 9, 0)
    described = Fields({**form.describe(), **field}, Path("ticket.json"), "tensors.table")
    with pytest.raises(ArtifactError, match=f"{next(iter(field))} must be"):
        TableForm.from_description(described, form.parts)


def test_a_smaller_table_that_is_pruned_is_refused() -> None:
    small = np.ones((3, 4), np.float32)
    form = forms.hashed(small, small, 9, 0)
    pruned = encode(np.tril(small), np.tril(small) > 0)
    with pytest.raises(ArtifactError, match=r"remainder must be a whole table of \[3, 4\].*6 of its entries are live"):
        replace(form, tables={**form.tables, "remainder": pruned})._check()


def test_infinite_products_are_refused() -> None:
    large = np.full((3, 4), 1e30, np.float32)
    with pytest.raises(ArtifactError, match="not finite"):
        forms.hashed(large, large, 9, 0).decode()


def test_a_damaged_file_of_forms_is_refused() -> None:
    data = forms_to_bytes({"a": form_for_refusals()})
    for broken in (data[:-1], data[:20], b"", data.replace(b"padding_rows", b"padding_rowz")):
        with pytest.raises(ArtifactError):
            forms_from_bytes(broken, Path("forms/ticket-001.safetensors"))
