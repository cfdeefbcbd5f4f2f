"""What is written into the dense table of a compact embedding is written into the embedding, and is not lost."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from test_compact import table
from torch import nn

from recbole_prune.sparse.compact import CompactEmbedding, compact, compact_modules, expand_in_place, take_writes

Case = tuple[CompactEmbedding, nn.Embedding, torch.Tensor]
EVERY_ROW = torch.arange(9)
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda module: torch.optim.SGD(module.parameters(), lr=0.1),
    "fused adam": lambda module: torch.optim.Adam(module.parameters(), lr=0.1, fused=True),
}


@pytest.fixture
def case() -> Case:
    """A compact embedding, the dense one it was made from, and the mask."""
    dense, mask = table(9, 6, 0.4)
    return compact(copy.deepcopy(dense), mask), dense, mask


def optimizer_of(name: str, module: nn.Module) -> torch.optim.Optimizer:
    try:
        return OPTIMIZERS[name](module)
    except (RuntimeError, TypeError):
        pytest.skip("this torch has no fused Adam on a CPU")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("through", ["data", "no_grad"])
def test_a_write_does_not_undo_the_step_after_it(case: Case, optimizer: str, through: str) -> None:
    found = []
    for module in case[:2]:
        module.zero_grad()
        plain = not isinstance(module, CompactEmbedding)
        if plain:
            module.weight.register_hook(lambda gradient: gradient * case[2])
        step = optimizer_of(optimizer, module)
        looked_up = module(EVERY_ROW)
        with torch.no_grad():
            # torch 1.13 refuses the backward pass of its own embedding after a write that it counts
            (module.weight.data if through == "data" or plain else module.weight)[0] = 0
        looked_up.sum().backward()
        step.step()
        found.append(module(EVERY_ROW))
    torch.testing.assert_close(found[0], found[1])


USES: dict[str, Callable[[CompactEmbedding], torch.Tensor]] = {
    "lookup": lambda module: module(EVERY_ROW),
    "weight": lambda module: module.weight,
    "state_dict": lambda module: module.state_dict()["weight"],
    "to_dense": lambda module: module.to_dense().weight,
    "expand_in_place": lambda module: expand_in_place(module).weight,
    "deepcopy": lambda module: copy.deepcopy(module)(EVERY_ROW),
    "pickle": lambda module: pickle.loads(pickle.dumps(module))(EVERY_ROW),
    "double": lambda module: module.double()(EVERY_ROW).float(),
    "train": lambda module: module.train().rows.expand(module.values),
    "compact_modules": lambda module: [m.rows.expand(m.values) for _, m in compact_modules(module)][0],
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("through", ["data", "no_grad", "view"])
def test_every_use_sees_a_write(case: Case, use: str, through: str) -> None:
    small, dense, mask = case
    with torch.no_grad():
        if through == "view":
            small.weight[:].fill_(7)
        else:
            (small.weight.data if through == "data" else small.weight).fill_(7)
    assert torch.equal(USES[use](small), torch.where(mask, 7.0, 0.0))


def test_every_handle_is_the_same_tensor(case: Case) -> None:
    small, _, mask = case
    first, second = small.weight.data, small.weight.data
    small(EVERY_ROW)
    first.fill_(5)
    assert torch.equal(second, first)
    assert torch.equal(small(EVERY_ROW), torch.where(mask, 5.0, 0.0))


def test_a_handle_shows_what_a_step_made(case: Case) -> None:
    small, _, mask = case
    handle = small.weight.data
    with torch.no_grad():
        small.values.fill_(3)
    assert small.weight.data is handle and torch.equal(handle, torch.where(mask, 3.0, 0.0))


def test_moving_takes_writes_first(case: Case) -> None:
    small, _, mask = case
    small.weight.data.fill_(5)
    moved = mask.view(-1).roll(1).view(mask.shape)
    small.move(moved)
    assert torch.equal(small.weight, torch.where(mask & moved, 5.0, 0.0))


def test_pruned_entries_cannot_be_written(case: Case) -> None:
    small, dense, mask = case
    with torch.no_grad():
        small.weight[~mask] = 1
        assert torch.equal(small.weight, dense.weight)


@pytest.mark.parametrize("grad", [True, False])
def test_a_write_that_would_be_lost_is_an_error(case: Case, grad: bool) -> None:
    small, dense, _ = case
    for write in (lambda: nn.init.normal_(small.weight), lambda: small.weight.__setitem__(0, 1.0)):
        with torch.set_grad_enabled(True), pytest.raises(RuntimeError, match=r"is lost: write to weight\.data"):
            write()
    with torch.no_grad():
        old = small.weight
    small.values.data.mul_(2)
    with torch.set_grad_enabled(grad):
        _ = small.weight
        small.train()
        with pytest.raises(RuntimeError, match="is lost"):
            old.fill_(3)
    assert torch.equal(small(EVERY_ROW), dense.weight * 2)


@pytest.mark.parametrize("mode", [True, False])
def test_the_table_of_no_grad_is_never_older_than_the_values(case: Case, mode: bool) -> None:
    """Fused optimizers change a parameter without counting its version."""
    small = case[0].train(mode)
    optimizer = optimizer_of("fused adam", small)
    with torch.no_grad():
        _ = small.weight
    small(EVERY_ROW).sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(small.weight, small(EVERY_ROW))


def test_in_inference_mode(case: Case) -> None:
    small, dense, _ = case
    with torch.inference_mode():
        assert torch.equal(small.weight, dense.weight) and small.weight is small.weight
        assert torch.equal(small(EVERY_ROW), dense.weight)
    small(EVERY_ROW).sum().backward()


def test_operations_on_the_table_give_plain_tensors(case: Case) -> None:
    weight = case[0].weight
    for result in (weight * 2, weight[0], weight.t(), nn.functional.embedding(EVERY_ROW, weight), weight.detach()):
        assert type(result) is torch.Tensor
    (weight * 2).sum().backward()
    assert torch.equal(case[0].values.grad, torch.full_like(case[0].values, 2.0))


def test_a_value_that_is_not_finite_can_be_overwritten(case: Case) -> None:
    small, _, mask = case
    with torch.no_grad():
        small.values.fill_(float("nan"))
    small.weight.data.fill_(5)
    assert torch.equal(small.weight, torch.where(mask, 5.0, 0.0))


def test_a_table_that_was_written_to_can_still_be_read(case: Case) -> None:
    small = case[0]
    with torch.no_grad():
        written = small.weight
        written.fill_(7)
    small.fill(torch.ones(9, 6))
    assert float(written.sum()) == 7 * 54


def test_writes_into_all_tables_of_a_model_are_taken(case: Case) -> None:
    small, _, mask = case
    model = nn.Sequential(nn.Linear(2, 2), small)
    small.weight.data.fill_(5)
    take_writes(model)
    assert torch.equal(small.values, torch.full((int(mask.sum()),), 5.0))
