"""A compact embedding is a masked one: same lookups, gradients, tables and files, whichever loops run."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_prune.sparse import row_kernels
from recbole_prune.sparse.compact import CompactEmbedding, compact, expand_in_place
from recbole_prune.sparse.rows import CompressedRows
from recbole_prune.sparse.storage import choose_compact, compact_is_smaller


@pytest.fixture(params=["numba", "torch"], autouse=True)
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with the compiled loops and with torch's operations."""
    if request.param == "torch":
        monkeypatch.setattr(row_kernels, "available", lambda: False)
    else:
        pytest.importorskip("numba", reason="numba is not installed: only torch's operations are tested")


def table(rows: int, width: int, density: float, seed: int = 0, **options: Any) -> tuple[nn.Embedding, torch.Tensor]:
    """An embedding and a mask with some empty and some full rows."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, width, generator=generator) < density
    mask[torch.rand(rows, generator=generator) < 0.2] = False
    mask[torch.rand(rows, generator=generator) < 0.2] = True
    module = nn.Embedding(rows, width, **options)
    with torch.no_grad():
        module.weight.copy_(torch.randn(rows, width, generator=generator) * mask)
    return module, mask


def gradient_of(module: nn.Embedding, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Gradient of a weighted sum of looked up rows, as a dense table."""
    module.zero_grad()
    (module(ids) * weights).sum().backward()
    if isinstance(module, CompactEmbedding):
        return module.rows.expand(module.values.grad)
    return module.weight.grad


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (0,), (0, 4), ()])
@pytest.mark.parametrize("width", [1, 8, 300])
@pytest.mark.parametrize("padding_idx", [None, 0, 5])
def test_lookup_and_gradient_equal_the_masked_table(
    shape: tuple[int, ...], width: int, padding_idx: int | None
) -> None:
    dense, mask = table(11, width, 0.3, padding_idx=padding_idx)
    small = compact(copy.deepcopy(dense), mask)
    ids = torch.randint(11, shape, generator=torch.Generator().manual_seed(1))
    if ids.numel() > 1:
        ids.view(-1)[0] = padding_idx or 0
    assert torch.equal(small(ids), dense(ids))
    assert small(ids).shape == (*shape, width)
    weights = torch.randn(*shape, width, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(gradient_of(small, ids, weights), gradient_of(dense, ids, weights) * mask, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("density", [0.3, 0.0])
@pytest.mark.parametrize(("ids", "wrong"), [([0, 11], 11), ([[3], [2**30]], 2**30), ([-1, 5], -1)])
def test_ids_that_are_no_rows_are_an_index_error(ids: Any, wrong: int, density: float, dtype: torch.dtype) -> None:
    dense, mask = table(11, 8, density)
    small = compact(copy.deepcopy(dense), mask if density else torch.zeros_like(mask))
    with pytest.raises(IndexError):
        dense(torch.tensor(ids, dtype=dtype))
    with pytest.raises(IndexError, match=f"row {wrong} of an embedding of 11 rows"):
        small(torch.tensor(ids, dtype=dtype))


def test_differentiating_twice_is_an_error() -> None:
    small = compact(*table(9, 6, 0.4))
    for rows in (small(torch.arange(9)), small.weight):
        [gradient] = torch.autograd.grad(rows.pow(3).sum(), small.values, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()


@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 20),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]),
)
def test_gather_undoes_expand(rows: int, width: int, density: float, seed: int, dtype: torch.dtype) -> None:
    module, mask = table(rows, width, density, seed)
    positions = CompressedRows.of(mask)
    dense = module.weight.detach().to(dtype)
    assert positions.live == int(mask.sum())
    values = positions.gather(dense)
    assert torch.equal(values, dense[mask])
    assert torch.equal(positions.expand(values), dense)
    assert torch.equal(positions.flat(), mask.view(-1).nonzero().view(-1))


class Waits(TorchDispatchMode):
    """Counts the operations for which a GPU must have done all that it was asked before: sizes and numbers of its own.

    On a CPU they cost nothing, and it runs the same ones where there are no compiled loops.
    """

    NAMES = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "_unique2", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        self.count += name in self.NAMES or (name == "repeat_interleave" and kwargs.get("output_size") is None)
        return func(*args, **kwargs)


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="torch 1 makes no subclass of Tensor while calls are seen")
def test_a_step_waits_for_the_device_once_a_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graph models look up rows of each table and read it as a whole, in every batch."""
    monkeypatch.setattr(row_kernels, "available", lambda: False)
    monkeypatch.setattr("recbole_prune.sparse.rows._check", lambda ids, rows: None)  # on a CPU only
    dense, mask = table(10, 4, 0.5, padding_idx=0)
    small = compact(dense, mask)
    ids = torch.tensor([1, 0, 1, 4])

    def step() -> None:
        (small(ids).sum() + small.weight.pow(2).sum()).backward()

    step()  # the pointers are read once, whenever masks move
    with Waits() as waits:
        step()
    assert waits.count == 1


def test_a_table_of_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recbole_prune.sparse.rows._ROWS_AT_ONCE", 3)
    module, mask = table(10, 4, 0.5)
    positions = CompressedRows.of(mask)
    assert torch.equal(positions.expand(positions.gather(module.weight.detach())), module.weight)


@pytest.mark.parametrize(("width", "dtype"), [(256, torch.uint8), (257, torch.int16), (40000, torch.int32)])
def test_columns_take_the_narrowest_type(width: int, dtype: torch.dtype) -> None:
    mask = torch.zeros(2, width, dtype=torch.bool)
    mask[1, width - 1] = True
    positions = CompressedRows.of(mask)
    assert positions.columns.dtype == dtype
    assert positions.expand(torch.ones(1))[1, width - 1] == 1


def test_the_whole_table_is_differentiable() -> None:
    dense, mask = table(9, 6, 0.4)
    small = compact(copy.deepcopy(dense), mask)
    ids = torch.tensor([1, 1, 4])
    for module in (dense, small):
        (module.weight.pow(2).sum() + module(ids).sum()).backward()
    assert torch.allclose(small.rows.expand(small.values.grad), dense.weight.grad * mask)


def test_evaluation_makes_the_table_once_and_sees_every_change() -> None:
    small = compact(*table(9, 6, 0.4))
    with torch.no_grad():
        first = small.weight
        assert small.weight is first
        small.values.add_(1.0)
        assert not torch.equal(small.weight, first)
        again = small.weight
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(torch.arange(9)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.equal(small.weight, again)
    small.train()
    assert small._dense is None


def test_assigning_and_writing_to_weight_data_reaches_the_values() -> None:
    """KTUP normalises its tables that way in every forward pass."""
    small = compact(*table(9, 6, 0.4))
    before = small.weight.detach().clone()
    small.weight.data = small.weight.data * 2
    assert torch.equal(small.weight, before * 2)
    small.weight.data.mul_(0.5)
    assert torch.equal(small(torch.arange(9)), before)


def test_state_dict_is_that_of_the_dense_embedding() -> None:
    dense, mask = table(9, 6, 0.4)
    model = nn.Sequential(copy.deepcopy(dense))
    compact(model[0], mask)
    state = model.state_dict()
    assert list(state) == ["0.weight"] and torch.equal(state["0.weight"], dense.weight)
    other = torch.randn(9, 6)
    model.load_state_dict({"0.weight": other})
    assert torch.equal(model.state_dict()["0.weight"], other * mask)
    with pytest.raises(RuntimeError, match="size mismatch for 0.weight"):
        model.load_state_dict({"0.weight": torch.randn(9, 5)})
    with pytest.raises(RuntimeError, match="Missing key.*0.weight"):
        model.load_state_dict({})
    with pytest.raises(RuntimeError, match='Unexpected key.*: "0.junk", "0.values"'):
        model.load_state_dict({"0.weight": other, "0.junk": other, "0.values": other})
    assert model.load_state_dict({"0.weight": other, "0.junk": other}, strict=False).unexpected_keys == ["0.junk"]


def test_a_deep_copy_is_compact_and_independent() -> None:
    dense, mask = table(9, 6, 0.4)
    small = compact(copy.deepcopy(dense), mask).eval()
    small.record = lambda rows, gradient: pytest.fail("a copy is not recorded")
    copied = copy.deepcopy(nn.ModuleList([small, small]))
    other = copied[0]
    assert copied[1] is other and isinstance(other, CompactEmbedding) and not other.training
    assert list(dict(copied.named_parameters())) == ["0.values"] and len(other.values) == int(mask.sum())
    other(torch.arange(9)).sum().backward()
    torch.optim.SGD(other.parameters(), lr=1.0).step()
    torch.testing.assert_close(other.weight, (dense.weight - 1) * mask)
    assert torch.equal(small.weight, dense.weight) and small.values.grad is None


def test_pickled_as_a_plain_embedding() -> None:
    dense, mask = table(9, 6, 0.4, padding_idx=2)
    small = compact(copy.deepcopy(dense), mask).eval()
    buffer = io.BytesIO()
    torch.save({"module": small, "again": small}, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert loaded["module"] is loaded["again"]
    for module in (pickle.loads(pickle.dumps(small, protocol=4)), loaded["module"]):
        assert type(module) is nn.Embedding and isinstance(module.weight, nn.Parameter)
        assert torch.equal(module.weight, dense.weight) and module.padding_idx == 2 and not module.training


def test_compact_and_back_in_place() -> None:
    dense, mask = table(9, 6, 0.4)
    module = copy.deepcopy(dense)
    assert compact(module, mask) is module and isinstance(module, nn.Embedding)
    assert [name for name, _ in module.named_parameters()] == ["values"]
    assert expand_in_place(module) is module and type(module) is nn.Embedding
    assert [name for name, _ in module.named_parameters()] == ["weight"]
    assert torch.equal(module.weight, dense.weight) and module.weight.requires_grad
    assert vars(module).keys() == vars(dense).keys()


def test_type_changes_keep_positions() -> None:
    dense, mask = table(9, 6, 0.4)
    small = compact(copy.deepcopy(dense), mask).double()
    assert small(torch.arange(9)).dtype == torch.float64
    assert torch.equal(small(torch.arange(9)), dense.weight.double())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    dense, mask = table(50, 8, 0.3)
    small = compact(copy.deepcopy(dense), mask).cuda()
    ids, weights = torch.randint(50, (40,)), torch.randn(40, 8)
    assert torch.equal(small(ids.cuda()).cpu(), dense(ids))
    found = gradient_of(small, ids.cuda(), weights.cuda()).cpu()
    assert torch.allclose(found, gradient_of(dense, ids, weights) * mask, atol=1e-5)
    on_device = compact(copy.deepcopy(dense).cuda(), mask)
    assert on_device.rows.columns.is_cuda and torch.equal(on_device.weight.cpu(), dense.weight)


class Tied(nn.Module):
    """Tables that are reached in other ways than by a lookup."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Embedding(20, 4)
        self.tied = nn.Embedding(20, 4)
        self.output = nn.Linear(4, 20, bias=False)
        self.output.weight = self.tied.weight
        self.listed = nn.Embedding(20, 4)
        self.tables = [self.listed.weight]
        self.limited = nn.Embedding(20, 4, max_norm=1.0)


def test_tables_that_cannot_be_compact_say_why() -> None:
    model = Tied()
    masks = {f"{name}.weight": torch.rand(20, 4) < 0.3 for name in ("plain", "tied", "listed", "limited")}
    chosen, refused = choose_compact(model, masks, "compact")
    assert chosen == {"plain.weight": model.plain}
    assert refused == {
        "tied.weight": "is the same tensor as output.weight",
        "listed.weight": "the model also keeps it in the attribute tables",
        "limited.weight": "uses the option max_norm of nn.Embedding",
    }
    assert choose_compact(model, masks, "masked") == ({}, {})
    assert choose_compact(model, {"plain.weight": torch.ones(20, 4, dtype=torch.bool)}, "compact") == ({}, {})


@pytest.mark.parametrize(("rows", "width", "live", "smaller"), [(1000, 64, 60_000, True), (1000, 64, 60_001, False)])
def test_the_rule_of_auto(rows: int, width: int, live: int, smaller: bool) -> None:
    """17 bytes a live entry and 4 a row against 16 an entry: 60,000 * 17 + 1,001 * 4 is 4 more than 64,000 * 16."""
    assert compact_is_smaller(rows, width, live - 1) == smaller
