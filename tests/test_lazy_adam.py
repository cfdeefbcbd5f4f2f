"""Adam whose rows wait until they are read, beside torch's Adam, which steps all of them every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow_but
from torch import nn
from training_bench import Bench, MemoryFiles
from zoo import gradient_models

from recbole_prune.sparse.compiling import available
from recbole_prune.training import codec, lazy_adam
from recbole_prune.training.lazy_adam import lazy_tables, rows_wait

pytestmark = pytest.mark.skipif(not available(), reason="the loops need numba")


def pair(rows: int, width: int, seed: int = 0, **arguments: Any) -> tuple[nn.Embedding, nn.Embedding]:
    """Two equal tables."""
    torch.manual_seed(seed)
    one = nn.Embedding(rows, width, **arguments)
    with torch.no_grad():
        one.weight.mul_(0.1)
    two = nn.Embedding(rows, width, **arguments)
    two.load_state_dict(one.state_dict())
    return one, two


def exactly(table: nn.Embedding) -> tuple[nn.Embedding, torch.optim.Adam]:
    """The table in float64 with torch's Adam."""
    table = table.double()
    return table, torch.optim.Adam(table.parameters(), lr=0.01)


def loss_of(table: nn.Embedding, ids: torch.Tensor, scale: float) -> torch.Tensor:
    found = table(ids)
    return scale * ((found - 0.05).square().sum() + found[0].sum())


def train(table: nn.Embedding, optimizer: torch.optim.Optimizer, batches: list[torch.Tensor], scale: float) -> None:
    for ids in batches:
        optimizer.zero_grad()
        loss_of(table, ids, scale).backward()
        optimizer.step()


@torch.no_grad()
def agree(lazy: tuple[Any, ...], exact: tuple[Any, ...], start: torch.Tensor) -> None:
    """Parameters and moments, as far as steps in float32 can agree with such in float64."""
    (one, first), (two, second) = lazy, exact
    moved = float((two.weight - start).abs().max())
    torch.testing.assert_close(one.weight.double(), two.weight, rtol=1e-5, atol=moved * 1e-4)
    assert float((one.weight - two.weight).abs().mean()) <= moved * 2e-6
    assert float(first.state[one.weight]["step"]) == float(second.state[two.weight]["step"])
    for name in ("exp_avg", "exp_avg_sq"):
        expected = second.state[two.weight][name]
        found = first.state[one.weight][name].double()
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=float(expected.abs().max()) * 1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-7])
def test_steps_are_those_of_adam(scale: float) -> None:
    """Gradients far above and far below eps, over the steps made one by one and those made at once."""
    one, two = pair(300, 5)
    start = two.weight.detach().clone().double()
    optimizer = torch.optim.Adam(one.parameters(), lr=0.01)
    exact = exactly(two)
    generator = torch.Generator().manual_seed(1)
    for steps in (40, 300, 700):
        batches = [torch.randint(300, (9,), generator=generator) for _ in range(steps)]
        tables = lazy_tables(one, optimizer, batch_size=9)
        assert len(tables) == 1
        with rows_wait(tables, optimizer):
            train(one, optimizer, batches, scale)
            assert tables[0].is_open
        train(*exact, batches, scale)
        assert type(one) is nn.Embedding and one.weight.grad is None
        agree((one, optimizer), exact, start)


@settings(max_examples=40, deadline=None)
@given(
    batches=st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=4), min_size=1, max_size=30),
    before=st.sampled_from([0, 250, 255, 256, 400, 5000]),
    rates=st.sampled_from([(0.01, 0.01), (0.01, 0.0), (0.001, 0.1)]),
)
def test_any_order_of_rows(batches: list[list[int]], before: int, rates: tuple[float, float]) -> None:
    """Rows that come often, twice in a batch, or never; any place of a training; a rate that changes."""
    one, two = pair(40, 3)
    start = two.weight.detach().clone().double()
    optimizer, exact = torch.optim.Adam(one.parameters(), lr=rates[0]), exactly(two)
    train(one, optimizer, [torch.arange(40)], 0.01)
    train(*exact, [torch.arange(40)], 0.01)
    for each, table in ((optimizer, one), (exact[1], two)):
        state = each.state[table.weight]
        with torch.no_grad():
            table.weight.copy_(start)
            state["step"].fill_(max(1, before))
            state["exp_avg"].fill_(1e-3)
            state["exp_avg_sq"].fill_(1e-6)
    for rate in rates:
        for each in (optimizer, exact[1]):
            each.param_groups[0]["lr"] = rate
        ids = [torch.tensor(batch) for batch in batches]
        with rows_wait(lazy_tables(one, optimizer, batch_size=4), optimizer):
            train(one, optimizer, ids, 0.01)
        train(*exact, ids, 0.01)
    agree((one, optimizer), exact, start)


def test_whoever_reads_the_whole_table_finds_it_stepped() -> None:
    one, two = pair(200, 4)
    start = two.weight.detach().clone().double()
    optimizer, exact = torch.optim.Adam(one.parameters(), lr=0.01), exactly(two)
    ids = [torch.randint(200, (5,), generator=torch.Generator().manual_seed(n)) for n in range(8)]
    tables = lazy_tables(one, optimizer, batch_size=5)
    with rows_wait(tables, optimizer):
        train(one, optimizer, ids, 1.0)
        train(*exact, ids, 1.0)
        for table, each in ((one, optimizer), exact):
            each.zero_grad()
            rows = loss_of(table, ids[0], 1.0)
            (rows + table.weight.square().sum() + loss_of(table, ids[1], 1.0)).backward()
            each.step()
        assert not tables[0].is_open
        agree((one, optimizer), exact, start)
        train(one, optimizer, ids, 1.0)  # an ordinary table for the rest of the epoch
        train(*exact, ids, 1.0)
    agree((one, optimizer), exact, start)


def test_reading_without_a_gradient_and_asking_for_parameters_count_as_reading() -> None:
    for read in (lambda table: table.weight.detach().sum(), lambda table: sum(p.sum() for p in table.parameters())):
        one, two = pair(200, 4)
        optimizer, exact = torch.optim.Adam(one.parameters(), lr=0.01), exactly(two)
        ids = [torch.randint(200, (5,), generator=torch.Generator().manual_seed(n)) for n in range(8)]
        with rows_wait(lazy_tables(one, optimizer, batch_size=5), optimizer):
            train(one, optimizer, ids, 1.0)
            optimizer.zero_grad()
            loss = loss_of(one, ids[0], 1.0)
            seen = float(read(one))
            loss.backward()
            optimizer.step()
        train(*exact, ids, 1.0)
        assert seen == pytest.approx(float(two.weight.sum()), rel=1e-4)
        train(*exact, ids[:1], 1.0)
        torch.testing.assert_close(one.weight.double(), two.weight, rtol=1e-5, atol=1e-7)


def test_padding_gets_no_gradient_and_a_batch_without_the_table_is_no_step() -> None:
    one, two = pair(100, 4, padding_idx=3)
    other = nn.Linear(4, 1)
    start = two.weight.detach().clone().double()
    optimizer = torch.optim.Adam([*one.parameters(), *other.parameters()], lr=0.01)
    exact = exactly(two)
    with rows_wait(lazy_tables(one, optimizer, batch_size=4), optimizer):
        for number in range(12):
            ids = torch.tensor([3, number, number, 50])
            optimizer.zero_grad()
            (other(torch.ones(1, 4)).sum() if number % 3 == 1 else loss_of(one, ids, 1.0)).backward()
            optimizer.step()
            if number % 3 != 1:
                train(*exact, [ids], 1.0)
    assert float(optimizer.state[one.weight]["step"]) == 8 and float(optimizer.state[other.weight]["step"]) == 4
    agree((one, optimizer), exact, start)
    assert not optimizer.state[one.weight]["exp_avg"][3].any()


def test_an_id_beyond_the_table_is_an_error_of_torch() -> None:
    one, _ = pair(100, 4)
    optimizer = torch.optim.Adam(one.parameters(), lr=0.01)
    with rows_wait(lazy_tables(one, optimizer, batch_size=4), optimizer):
        train(one, optimizer, [torch.tensor([1, 2])], 1.0)
        for wrong in (100, -1):
            with pytest.raises(IndexError):
                one(torch.tensor([2, wrong]))


def test_which_tables_wait() -> None:
    def waiting(model: nn.Module, optimizer: torch.optim.Optimizer, batch: int = 10) -> int:
        tables = lazy_tables(model, optimizer, batch)
        for table in tables:
            table.close()
        return len(tables)

    table, adam = nn.Embedding(100, 4), torch.optim.Adam
    assert waiting(table, adam(table.parameters())) == 1
    assert waiting(table, adam(table.parameters(), fused=True)) == 1
    assert waiting(table, adam(table.parameters()), batch=26) == 0  # read almost whole by every batch
    assert waiting(table, adam(table.parameters(), weight_decay=0.1)) == 0
    assert waiting(table, adam(table.parameters(), amsgrad=True)) == 0
    assert waiting(table, adam(table.parameters(), betas=(0.8, 0.999))) == 0
    assert waiting(table, torch.optim.SGD(table.parameters(), lr=0.1)) == 0
    assert waiting(table, torch.optim.AdamW(table.parameters())) == 0
    tied = nn.ModuleList([nn.Embedding(100, 4), nn.Linear(4, 100)])
    tied[1].weight = tied[0].weight
    assert waiting(tied, adam(tied.parameters())) == 0
    for odd in (nn.Embedding(100, 4, sparse=True), nn.Embedding(100, 4, max_norm=1.0), nn.Embedding(100, 4).double()):
        assert waiting(odd, adam(odd.parameters())) == 0


# ---- in a training


def bench_of(data: Path, model: str) -> Bench:
    return Bench(model, data, train_batch_size=8, epochs=4, stopping_step=9, eval_step=1)


@pytest.mark.parametrize("model", slow_but(["BPR", "NeuMF", "FPMC", "LightGCN", "CKE"], gradient_models()))
def test_a_training_is_that_of_recbole(model: str, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of models that look up rows, and of those that read whole tables in every batch."""
    monkeypatch.setattr(lazy_adam, "_ROWS_FOR_EACH_OF_A_BATCH", 0)
    bench = Bench(model, tiny_data, epochs=2, stopping_step=9, eval_step=1)
    found = []
    for fused in (True, False):
        bench.plain.reseed()
        trainer = bench.trainer(bench.model(), fused=fused)
        bench.fit(trainer)
        found.append((trainer.model.state_dict(), [np.sum(loss) for loss in trainer.train_loss_dict.values()]))
    (lazy, losses), (plain, expected) = found
    assert losses == pytest.approx(expected, rel=1e-5)
    for name in (name for name in plain if "embedding" in name):  # attention has biases that only rounding moves
        torch.testing.assert_close(lazy[name], plain[name], rtol=1e-3, atol=1e-5)


def test_rows_wait_in_a_training(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    close = lazy_adam.LazyTable.close
    monkeypatch.setattr(lazy_adam.LazyTable, "close", lambda table: (steps.append(table._steps), close(table))[1])
    bench = bench_of(tiny_data, "BPR")
    bench.fit(bench.trainer(bench.model()))
    assert steps == [len(bench.train)] * 2 * 4  # two tables, four epochs, to their ends


def test_a_resumed_training_ends_bit_for_bit_alike(tiny_data: Path) -> None:
    bench = bench_of(tiny_data, "BPR")
    bench.plain.reseed()
    whole = bench.trainer(bench.model())
    bench.fit(whole)
    state, checkpoint = whole.files.states[2]
    again = bench.trainer(bench.model(), MemoryFiles(checkpoint), start=codec.decode(state))
    again.start_epoch = 2
    bench.fit(again)
    for name, values in whole.model.state_dict().items():
        assert np.array_equal(again.model.state_dict()[name].numpy(), values.numpy()), name
