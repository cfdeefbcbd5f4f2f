"""Means of layers of which only some rows are computed: equal to the whole mean, to plain RecBole, and in every way."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from recbole.utils import get_trainer
from test_propagation import random_matrix
from test_trajectories import assert_close, trajectory
from torch import nn
from training_bench import Bench

from recbole_prune.anatomy.vectors import shared_propagation
from recbole_prune.data import random_streams
from recbole_prune.masking.masks import MaskSet
from recbole_prune.sparse import graph_products
from recbole_prune.sparse.compact import CompactEmbedding, compact
from recbole_prune.sparse.compiling import available
from recbole_prune.sparse.propagation import FixedMatrix
from recbole_prune.sparse.rows import CompressedRows
from recbole_prune.sparse.unfinished import Unfinished
from recbole_prune.training.session import Files

WAYS = [pytest.param(True, marks=pytest.mark.skipif(not available(), reason="no numba")), False]


@contextmanager
def way(loops: bool) -> Iterator[None]:
    """Products by compiled loops or by torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_products, "available", lambda: loops)
        yield


def _noting(product: Callable[..., torch.Tensor], results: list[int], *args: Any, **kwargs: Any) -> torch.Tensor:
    result = product(*args, **kwargs)
    results.append(len(result))
    return result


@contextmanager
def counted(names: str) -> Iterator[dict[str, list[int]]]:
    """For each product, of how many rows its results are."""
    found: dict[str, list[int]] = {name: [] for name in names.split()}
    with pytest.MonkeyPatch.context() as patch:
        for name, results in found.items():
            patch.setattr(graph_products, name, partial(_noting, getattr(graph_products, name), results))
        yield found


@contextmanager
def rows_have(edges: int) -> Iterator[None]:
    """Rows that are asked for count so many edges, which decides whether all are computed in their place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_products, "entries_of_rows", lambda csr, rows: edges)
        yield


def two_tables(sizes: list[int], width: int, seed: int, density: float | None) -> list[nn.Embedding]:
    """Dense, or compact ones of a density."""
    torch.manual_seed(seed)
    tables = [nn.Embedding(size, width, dtype=torch.float64) for size in sizes]
    for table in tables:
        if density is not None:
            mask = torch.rand(table.weight.shape) < density
            table.weight.data.mul_(mask)
            compact(table, mask)
    return tables


def gradients(tables: list[nn.Embedding]) -> list[torch.Tensor]:
    """In dense form."""
    found = []
    for table in tables:
        parameter = next(table.parameters())
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = None
        found.append(table.rows.expand(gradient) if isinstance(table, CompactEmbedding) else gradient)
    return found


@pytest.mark.parametrize("loops", WAYS)
@pytest.mark.parametrize("asked", ["rows", "rows and tables", "tables"])
@given(
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    width=st.sampled_from([1, 3, 20]),
    symmetric=st.booleans(),
    layers=st.integers(1, 4),
    density=st.sampled_from([None, 0.0, 0.1, 0.7]),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_stacked_layers(
    loops: bool,
    asked: str,
    sizes: tuple[int, int],
    width: int,
    symmetric: bool,
    layers: int,
    density: float | None,
    seed: int,
) -> None:
    matrix = random_matrix(sum(sizes), sum(sizes), symmetric, seed, torch.float64)
    tables = two_tables(list(sizes), width, seed, density)
    ids = [torch.randint(size, (2, 3)) for size in (*sizes, sizes[1])]
    weights = [torch.randn(2, 3, width, dtype=torch.float64) for _ in ids]

    def loss(users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        if "rows" in asked:
            rows = users[ids[0]], items[ids[1]], items[ids[2]]
            total = total + torch.stack([(weight * row).sum() for weight, row in zip(weights, rows)]).sum()
        return total + (items.square().sum() + torch.tanh(users).sum() if "tables" in asked else 0)

    layer = torch.cat([table.weight for table in tables])
    stack = [layer]
    for _ in range(layers):
        stack.append(matrix.to_dense() @ stack[-1])
    expected = loss(*torch.split(torch.stack(stack).mean(0), list(sizes)))
    expected.backward()
    expected_gradients = gradients(tables)
    with way(loops):
        found_tables = FixedMatrix.of(matrix).unfinished_mean(tables, sizes, layers)
        assert found_tables is not None
        found = loss(*found_tables)
        found.backward()
    torch.testing.assert_close(found, expected)
    for mine, other, table in zip(gradients(tables), expected_gradients, tables):
        live = table.rows.expand(torch.ones_like(table.values)) if isinstance(table, CompactEmbedding) else 1
        torch.testing.assert_close(mine, other * live)


@pytest.mark.skipif(not available(), reason="no numba")
@pytest.mark.parametrize("density", [0.02, 0.5])
def test_loops_give_what_torch_gives_and_the_same_in_threads(density: float) -> None:
    nodes, width = 9000, 40
    csr = FixedMatrix.of(random_matrix(nodes, nodes, False, 1))._compressed().csr
    live = CompressedRows.of(torch.rand(nodes, width) < density)
    table, own = torch.randn(nodes, width), torch.randn(nodes, width)
    rows = torch.randint(nodes, (500,))
    vectors = torch.randn(500, width)

    def products() -> list[torch.Tensor]:
        return [
            graph_products.multiply(csr, own, 0.3, table, 0.7),
            graph_products.multiply(csr, None, 0.0, table),
            graph_products.multiply(csr, own, 0.3, table.t().contiguous().t(), 0.7),
            graph_products.multiply_rows(csr, own[rows], 0.3, table, 0.7, rows),
            graph_products.multiply_live(csr, table, live),
            graph_products.spread(csr, rows, vectors),
        ]

    threads = torch.get_num_threads()
    by_loops = products()
    try:
        torch.set_num_threads(3)
        in_threads = products()
    finally:
        torch.set_num_threads(threads)
    with way(False):
        by_torch = products()
    for mine, again, other in zip(by_loops, in_threads, by_torch):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
        assert torch.equal(mine, again)


def unfinished(layers: int = 2) -> tuple[Any, Any]:
    """Tables of 4 users and 6 items."""
    found = FixedMatrix.of(random_matrix(10, 10, True, 7, torch.float64)).unfinished_mean(
        two_tables([4, 6], 3, 0, None), [4, 6], layers
    )
    assert found is not None
    return found[0], found[1]


def test_nothing_is_computed_for_what_says_nothing_of_the_numbers() -> None:
    with counted("multiply multiply_rows") as products:
        users, items = unfinished()
        before = len(products["multiply"])
        assert users.shape == (4, 3) and len(items) == 6 and items.dim() == 2 and items.size(1) == 3
        assert users.dtype is torch.float64 and users.requires_grad and users.device.type == "cpu"
        assert (len(products["multiply"]), products["multiply_rows"]) == (before, [])
        assert users[torch.tensor([0, 3, 3])].shape == (3, 3)
        assert (len(products["multiply"]), products["multiply_rows"]) == (before, [3])
        assert type(users * 2) is torch.Tensor and type(items.detach()) is torch.Tensor
        assert len(products["multiply"]) == before + 1, "both are finished by one product"


def test_keys_of_every_kind_are_those_of_a_tensor() -> None:
    users, items = unfinished()
    for table in (users, items):
        whole = table.clone()
        assert type(whole) is torch.Tensor and not whole.isnan().any()
        ids = [torch.tensor(ids) for ids in ([-1, 0], [[2], [0]], 2)]
        others = [0, -1, slice(1, 3), [0, 2], None, whole[:, 0] > 0, (torch.tensor([1]), 2), ids[0][:0]]
        for key in (*ids, *others):
            torch.testing.assert_close(table[key], whole[key])
    assert torch.equal(nn.functional.embedding(torch.tensor([1]), users), users.clone()[1:2])
    assert torch.equal(torch.cat([users, items])[:4], users.clone())
    assert users.grad_fn is not None and users.tolist() == users.clone().tolist()
    with pytest.raises(IndexError):
        users[torch.tensor([4])]


def test_what_reads_the_memory_itself_finds_no_number() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, table: torch.Tensor) -> torch.Tensor:
            return table * 2

    users, _ = unfinished()
    with torch._C.DisableTorchFunction():
        assert Twice.apply(users).isnan().all()


def test_a_step_leaves_no_layer_behind() -> None:
    users, items = unfinished(3)
    mean = weakref.ref(users._mean)
    gc.disable()
    try:
        loss = (users[torch.tensor([1])] * items[torch.tensor([2])]).sum() + items.sum()
        del users, items
        assert mean() is None, "the graph of the backward pass does not hold the layers"
        loss.backward()
    finally:
        gc.enable()


MODELS = [("LightGCN", layers) for layers in (1, 2, 3)] + [("SGL", 2)]


@pytest.mark.parametrize("loops", WAYS)
@pytest.mark.parametrize(("name", "layers"), slow_but([("LightGCN", 2)], MODELS))
@pytest.mark.parametrize("density", [None, 0.1])
@pytest.mark.parametrize("by_rows", slow_but([True], [True, False]))
def test_trajectories_are_those_of_recboles_own_products(
    tiny_data: Path, name: str, layers: int, density: float | None, loops: bool, by_rows: bool
) -> None:
    """Over 50 steps: dense ones of plain RecBole, compact ones of masks on its model with its own products."""
    bench = Bench(name, tiny_data, train_batch_size=256, learning_rate=0.003, n_layers=layers)
    masks = MaskSet.dense(bench.scope()) if density is None else bench.masks(density)
    with way(loops), rows_have(0 if by_rows else 1 << 30), counted("multiply_rows spread") as products:
        found = trajectory(bench, bench.trainer(bench.model(masks, "compact"), Files()))
    if by_rows:
        assert len(products["multiply_rows"]) >= 3 * 50 <= 3 * len(products["spread"])
    else:
        assert not products["multiply_rows"] and not products["spread"]
    if density is None:
        random_streams.reseed(bench.loaders, bench.config["seed"])
        trainer_class = get_trainer(bench.config["MODEL_TYPE"], bench.name)
        expected = trajectory(bench, trainer_class(bench.config, bench.plain_model()))
    else:
        model = bench.model(masks, "masked")
        model.own_products = False
        expected = trajectory(bench, bench.trainer(model, Files()))
    assert_close(found, expected)


def test_a_batch_of_lightgcn_computes_its_rows_of_the_last_layer(tiny_data: Path) -> None:
    bench = Bench("LightGCN", tiny_data, n_layers=3)
    model = bench.model(bench.masks(0.1), "compact").train()
    batch = next(iter(bench.train))
    with rows_have(0), counted("multiply multiply_rows multiply_live spread") as products:
        model.calculate_loss(batch).backward()
    nodes, live = (
        model.n_users + model.n_items,
        sum(len(model.get_parameter(f"{kind}_embedding.values")) for kind in ("user", "item")),
    )
    assert products["multiply_rows"] == [len(batch)] * 3
    assert products["multiply_live"] == [live] and products["spread"] == [nodes]
    assert products["multiply"] == [nodes] * 3
    with counted("multiply multiply_rows multiply_live spread") as products:
        model.calculate_loss(batch).backward()
    # with these batches the rows of all edges cost less: the third layer once, and its backward
    assert products["multiply_live"] == [live] and not products["spread"] and len(products["multiply_rows"]) < 3
    assert products["multiply"] == [nodes] * 5


def test_added_losses_and_evaluation_get_finished_tables(tiny_data: Path) -> None:
    model = Bench("LightGCN", tiny_data).model(None).train()
    assert {type(table) for table in model.forward()} == {Unfinished}
    with shared_propagation(model):
        assert {type(table) for table in model.forward()} == {torch.Tensor}
    with torch.no_grad():
        assert {type(table) for table in model.forward()} == {torch.Tensor}
    assert {type(table) for table in model.eval().forward()} == {torch.Tensor}


def test_a_subclass_with_another_first_layer_keeps_it(tiny_data: Path) -> None:
    from recbole.model.general_recommender import LightGCN

    from recbole_prune.training.model import mask_aware

    class Doubled(LightGCN):  # type: ignore[misc]
        def get_ego_embeddings(self) -> torch.Tensor:
            return 2 * super().get_ego_embeddings()

    bench = Bench("LightGCN", tiny_data)
    batch = next(iter(bench.train))
    losses = [bench.plain_model(kind).train().calculate_loss(batch) for kind in (Doubled, mask_aware(Doubled))]
    torch.testing.assert_close(*losses)
