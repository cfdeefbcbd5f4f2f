"""Propagation on CSR: losses, gradients and scores are those of plain RecBole up to rounding, for every graph model."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from recbole.utils import KGDataLoaderState, get_model, init_seed
from scipy.sparse import coo_matrix
from training_bench import Bench
from zoo import all_models, kind_of

from recbole_prune.anatomy.propagation import faster_parts
from recbole_prune.sparse.propagation import FixedMatrix, speed_up_propagation
from recbole_prune.training import codec
from recbole_prune.training import state as states

# model -> settings, and whether its training multiplies one of the matrices it keeps (else what it makes per batch)
GRAPH_MODELS: dict[str, tuple[dict[str, Any], bool]] = {
    "LightGCN": ({}, True),
    "NGCF": ({}, True),
    "NGCF with node dropout": ({"node_dropout": 0.2}, False),
    "SGL": ({}, True),
    "SGL with random walks": ({"type": "RW"}, True),
    "NCL": ({}, True),
    "SpectralCF": ({}, True),
    "GCMC": ({}, True),
    "DGCF": ({}, True),
    "KGAT": ({}, True),
    "KGIN": ({}, False),
    "KGIN without dropout": ({"node_dropout_rate": 0.0}, True),
    "MCCLK": ({}, False),
    "MCCLK without dropout": ({"node_dropout_rate": 0.0}, True),
}


@pytest.fixture(params=[torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)], ids=str)
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param  # type: ignore[no-any-return]


def random_matrix(
    rows: int, columns: int, symmetric: bool, seed: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """A COO matrix with repeated positions, not coalesced."""
    generator = torch.Generator().manual_seed(seed)
    count = 3 * rows
    indices = torch.stack([torch.randint(n, (count,), generator=generator) for n in (rows, columns)])
    values = torch.randn(count, generator=generator, dtype=dtype)
    if symmetric:
        matrix = torch.sparse_coo_tensor(indices, values, (rows, columns)).to_dense()
        return (matrix + matrix.t()).to_sparse()
    return torch.sparse_coo_tensor(indices, values, (rows, columns))


@pytest.fixture
def count_products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    shapes: list[torch.Size] = []
    apply = FixedMatrix._apply

    def counted(self: Any, function: Any, dense: torch.Tensor, *arguments: int) -> torch.Tensor:
        shapes.append(dense.shape)
        return apply(self, function, dense, *arguments)

    mean = FixedMatrix.unfinished_mean

    def counted_mean(self: Any, *arguments: Any) -> tuple[torch.Tensor, ...] | None:
        found = mean(self, *arguments)
        shapes.extend(() if found is None else (found[0].shape,))
        return found

    monkeypatch.setattr(FixedMatrix, "_apply", counted)
    monkeypatch.setattr(FixedMatrix, "unfinished_mean", counted_mean)
    return shapes


WAYS = {
    "torch.sparse.mm": torch.sparse.mm,
    "torch.mm": torch.mm,
    "torch.spmm": torch.spmm,
    "torch.matmul": torch.matmul,
    "@": lambda a, b: a @ b,
    "method mm": lambda a, b: a.mm(b),
    "method matmul": lambda a, b: a.matmul(b),
}


@pytest.mark.parametrize("way", slow_but(["@"], WAYS))
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), symmetric=st.booleans(), seed=st.integers(0, 99))
def test_products_and_gradients_are_those_of_the_dense_matrix(
    way: str, rows: int, columns: int, symmetric: bool, seed: int
) -> None:
    matrix = random_matrix(rows, rows if symmetric else columns, symmetric, seed, torch.float64)
    fixed = FixedMatrix.of(matrix)
    dense = torch.randn(matrix.shape[1], 3, dtype=torch.float64, requires_grad=True)
    product = WAYS[way](fixed, dense)
    expected = matrix.to_dense() @ dense
    assert type(product) is torch.Tensor and torch.allclose(product, expected)
    weights = torch.randn_like(product)
    gradients = [torch.autograd.grad((weights * result).sum(), dense)[0] for result in (product, expected)]
    assert torch.allclose(*gradients)
    assert torch.autograd.gradcheck(lambda x: WAYS[way](fixed, x), dense)
    assert torch.autograd.gradgradcheck(lambda x: WAYS[way](fixed, x), dense)


@given(rows=st.integers(1, 9), symmetric=st.booleans(), seed=st.integers(0, 99), layers=st.integers(0, 4))
def test_mean_of_layers_is_the_mean_of_the_stacked_layers(rows: int, symmetric: bool, seed: int, layers: int) -> None:
    matrix = random_matrix(rows, rows, symmetric, seed, torch.float64)
    fixed = FixedMatrix.of(matrix)
    ego = torch.randn(rows, 2, dtype=torch.float64, requires_grad=True)
    stack = [ego]
    for _ in range(layers):
        stack.append(matrix.to_dense() @ stack[-1])
    assert torch.allclose(fixed.mean_of_layers(ego, layers), torch.stack(stack, dim=1).mean(dim=1))
    assert torch.autograd.gradcheck(lambda x: fixed.mean_of_layers(x, layers), ego)


def test_only_products_with_dense_matrices_are_taken_over(
    count_products: list[torch.Size], device: torch.device
) -> None:
    matrix = random_matrix(5, 5, False, 0).to(device)
    fixed = FixedMatrix.of(matrix)
    dense = torch.randn(5, 3, device=device)
    assert torch.allclose(fixed @ dense, matrix.to_dense() @ dense, atol=1e-6) and len(count_products) == 1
    assert torch.equal((fixed @ dense[:, 0]), matrix @ dense[:, 0])
    assert torch.equal(torch.sparse.mm(fixed, matrix).to_dense(), torch.sparse.mm(matrix, matrix).to_dense())
    with pytest.raises(RuntimeError):
        fixed @ dense[:2]
    for operation in (
        lambda x: x.t().to_dense(),
        lambda x: x.coalesce().values(),
        lambda x: x._indices(),
        lambda x: (x * 2).to_dense(),
        lambda x: torch.sparse.sum(x, dim=1).to_dense(),
        lambda x: torch.cat([x, x]).to_dense(),
        lambda x: torch.stack([x, x]).to_dense(),
    ):
        assert type(operation(fixed)) is torch.Tensor and torch.equal(operation(fixed), operation(matrix))
    assert len(count_products) == 1
    assert (
        fixed.shape == matrix.shape and fixed._nnz() == matrix._nnz() and fixed.is_coalesced() is matrix.is_coalesced()
    )
    assert fixed.layout is torch.sparse_coo and fixed.is_sparse and fixed.device == matrix.device


def test_copies_and_files_hold_plain_tensors(tmp_path: Path) -> None:
    matrix = random_matrix(6, 4, False, 1)
    fixed = FixedMatrix.of(matrix)
    buffer = io.BytesIO()
    torch.save({"a": fixed}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer)
    tree = codec.decode(codec.encode({"a": fixed}))
    for copied in (copy.deepcopy(fixed), pickle.loads(pickle.dumps(fixed)), saved["a"], tree["a"], fixed.to("cpu")):
        assert type(copied) is torch.Tensor and torch.allclose(copied.to_dense(), matrix.to_dense())
    assert b"recbole_prune" not in buffer.getvalue() + pickle.dumps(fixed)


def test_a_matrix_changed_in_place_is_converted_again() -> None:
    matrix = random_matrix(5, 5, True, 2)
    fixed = FixedMatrix.of(matrix)
    dense = torch.randn(5, 2)
    before = fixed @ dense
    fixed.mul_(3)
    assert torch.allclose(fixed @ dense, 3 * before)


def test_autocast_multiplies_in_the_type_of_the_matrix() -> None:
    matrix = random_matrix(5, 5, True, 3)
    dense = torch.randn(5, 2, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = FixedMatrix.of(matrix) @ dense
    product.sum().backward()
    assert product.dtype is torch.float32 and dense.grad is not None and dense.grad.dtype is torch.bfloat16
    assert torch.allclose(product, matrix.to_dense() @ dense.float())


class Holder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        matrix = random_matrix(4, 4, True, 4)
        self.matrix, self.again, self.listed, self.named = matrix, matrix, [matrix, 1], {"a": [matrix]}
        self.trained = random_matrix(4, 4, True, 5).requires_grad_()
        self.dense, self.counts = torch.eye(3), random_matrix(4, 4, True, 6).long()
        self.weight = torch.nn.Parameter(torch.ones(3))


def test_replacement_reaches_containers_and_happens_once() -> None:
    model = torch.nn.Sequential(Holder())
    speed_up_propagation(model)
    holder = model[0]
    fixed = holder.matrix
    assert type(fixed) is FixedMatrix
    assert fixed is holder.again and fixed is holder.listed[0] and fixed is holder.named["a"][0]
    assert {type(value) for value in (holder.trained, holder.dense, holder.counts)} == {torch.Tensor}
    before = dict(vars(holder))
    speed_up_propagation(model)
    assert all(vars(holder)[name] is value for name, value in before.items())
    speed_up_propagation(twin := copy.deepcopy(model))
    assert type(twin[0].matrix) is FixedMatrix and twin[0].matrix is not fixed


def test_replaced_matrices_are_no_change_to_resume_from() -> None:
    model = Holder()
    watch = states.AttributeWatch(model)
    speed_up_propagation(model)
    assert watch.changed() == {}
    model.matrix = model.matrix * 2
    speed_up_propagation(model)
    assert list(watch.changed()) == ["matrix"]


def sparse_attributes(model: Any) -> int:
    """Fixed sparse matrices among the attributes of a model, by the slow obvious way."""

    def count(value: Any) -> int:
        if isinstance(value, (list, tuple)):
            return sum(map(count, value))
        return int(isinstance(value, torch.Tensor) and value.is_sparse)

    return sum(count(value) for module in model.modules() for value in vars(module).values())


@pytest.mark.parametrize("name", ["LightGCN", "NGCF"])
@pytest.mark.parametrize("repeated", [False, True])
def test_graphs_from_arrays_are_recboles_entry_by_entry(name: str, repeated: bool, tiny_data: Path) -> None:
    model = Bench(name, tiny_data).plain_model()
    if repeated:  # what is there twice is one edge
        pairs = model.interaction_matrix
        twice = (np.concatenate([part, part[::3]]) for part in (pairs.data, pairs.row, pairs.col))
        data, *places = twice
        model.interaction_matrix = coo_matrix((data, places), pairs.shape)
    expected = model.get_norm_adj_mat()
    found = fast(model).get_norm_adj_mat()
    assert type(model).get_norm_adj_mat.__module__ == "recbole_prune.anatomy.propagation"
    assert found.shape == expected.shape
    assert torch.equal(found._indices(), expected._indices()) and torch.equal(found._values(), expected._values())
    assert found.dtype == expected.dtype


def fast(model: Any) -> Any:
    """The model with all that this module offers, wired as a mask-aware model is."""
    base = type(model)

    class Fast(*faster_parts(base), base):  # type: ignore[misc]
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            speed_up_propagation(self)
            return self

    model.__class__ = Fast
    return model


def trajectory(
    bench: Bench, model: Any, steps: int
) -> tuple[list[list[float]], list[torch.Tensor], list[torch.Tensor]]:
    """Losses of some steps, the gradients of the last one and the scores after them."""
    model.train()
    if hasattr(model, "e_step"):
        model.e_step()  # NCL clusters before it trains
    if hasattr(bench.train, "set_mode"):
        bench.train.set_mode(KGDataLoaderState.RS)
    init_seed(3, True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _, batch in zip(range(steps), bench.train):
        optimizer.zero_grad()
        parts = model.calculate_loss(batch)
        parts = parts if isinstance(parts, tuple) else (parts,)
        losses.append([float(part) for part in parts])
        sum(parts).backward()
        optimizer.step()
    if hasattr(model, "update_attentive_A"):
        with torch.no_grad():
            model.update_attentive_A()
    model.eval()
    users = next(iter(bench.valid))[0]
    with torch.no_grad():
        scores = [model.full_sort_predict(users), model.predict(next(iter(bench.train)))]
    return losses, [p.grad for p in model.parameters() if p.grad is not None], scores


@pytest.mark.parametrize("case", slow_but(["LightGCN", "NGCF", "SGL"], GRAPH_MODELS))
def test_graph_models_train_and_score_like_plain_recbole(
    case: str, tiny_data: Path, count_products: list[torch.Size]
) -> None:
    settings, multiplies = GRAPH_MODELS[case]
    bench = Bench(case.split()[0], tiny_data, **settings)
    expected = trajectory(bench, bench.plain_model(), 4)
    assert not count_products
    model = fast(bench.plain_model())
    losses, gradients, scores = trajectory(bench, model, 4)
    assert (len(count_products) >= 4) or not multiplies
    assert len(gradients) == len(expected[1]) > 0
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected[0]), rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(gradients + scores, expected[1] + expected[2]):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * scale + 1e-9)
    assert model.state_dict().keys() == get_model(bench.name)(bench.config, bench.train._dataset).state_dict().keys()


@pytest.mark.slow
def test_no_graph_model_is_missed(tiny_data: Path) -> None:
    """Every model that keeps a sparse matrix is in the table above."""
    keepers = set()
    for name in all_models():
        if kind_of(name) in ("general", "knowledge"):
            model = Bench(name, tiny_data).plain_model().train()
            if sparse_attributes(model):
                keepers.add(name)
    assert keepers == {case.split()[0] for case in GRAPH_MODELS}
