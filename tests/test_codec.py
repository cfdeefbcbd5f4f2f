"""Trees survive the codec bit for bit, and random streams go on where they were."""

from __future__ import annotations

import json
import random
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from recbole_prune.anatomy.caches import forget_caches
from recbole_prune.data import random_streams
from recbole_prune.training import codec
from recbole_prune.training import state as states

Point = namedtuple("Point", ["x", "y"])

TORCH_DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
NUMPY_DTYPES = ["float32", "float64", "float16", "int64", "int32", "uint32", "uint8", "bool", ">f4", "complex64"]


def assert_same(a: Any, b: Any) -> None:
    """Equal in type, structure and every bit; lists and tuples are told apart."""
    assert type(a) is type(b), (a, b)
    if isinstance(a, torch.Tensor):
        assert (a.layout, a.dtype, a.shape) == (b.layout, b.dtype, b.shape)
        if a.layout == torch.sparse_coo:
            assert torch.equal(a.coalesce().indices(), b.coalesce().indices())
            a, b = a.coalesce().values(), b.coalesce().values()
        assert raw_bytes(a) == raw_bytes(b)
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
    elif isinstance(a, dict):
        assert list(a) == list(b) and [type(key) for key in a] == [type(key) for key in b]
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for left, right in zip(a, b):
            assert_same(left, right)
    elif isinstance(a, float):
        assert a.hex() == b.hex()
    else:
        assert a == b


def raw_bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


@st.composite
def dense_tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    values = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).normal(scale=100, size=shape)
    tensor = torch.from_numpy(np.asarray(values)).to(draw(st.sampled_from(TORCH_DTYPES)))
    # views that are not contiguous, and tensors that require a gradient
    tensor = tensor.transpose(0, -1) if tensor.dim() > 1 and draw(st.booleans()) else tensor
    return tensor.requires_grad_() if tensor.is_floating_point() and draw(st.booleans()) else tensor


@st.composite
def sparse_tensors(draw: st.DrawFn) -> torch.Tensor:
    """COO matrices, empty ones, ones with repeated positions and ones with dense dimensions included."""
    rows, columns, entries = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(0, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    indices = torch.from_numpy(np.stack([random.integers(0, rows, entries), random.integers(0, columns, entries)]))
    inner = draw(st.sampled_from([(), (2,)]))
    values = torch.from_numpy(random.normal(size=(entries, *inner))).to(draw(st.sampled_from(TORCH_DTYPES[:2])))
    return torch.sparse_coo_tensor(indices, values, (rows, columns, *inner))


arrays_of_numbers = st.sampled_from(NUMPY_DTYPES).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(
    scalars | dense_tensors() | sparse_tensors() | arrays_of_numbers,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.sampled_from(["dict", "tensor", "list"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(trees)
def test_round_trip(tree: Any) -> None:
    assert codec.is_supported(tree)
    assert_same(codec.decode(codec.encode(tree)), detached(tree))


def detached(tree: Any) -> Any:
    """The same tree with tensors that require no gradient."""
    if isinstance(tree, torch.Tensor):
        return tree.detach()
    if isinstance(tree, dict):
        return {key: detached(item) for key, item in tree.items()}
    return type(tree)(map(detached, tree)) if isinstance(tree, (list, tuple)) else tree


@pytest.mark.parametrize(
    "tree",
    [
        float("inf"),
        float("-inf"),
        -0.0,
        {},
        [],
        (),
        {"": [(), {}, [[]]]},
        {0: "a", "0": "b", True: "c"},
        {"tensor": "0", "array": [], "sparse": 1, "tree": None},
        {"dict": {"list": {"tuple": ((),)}}},
        2**200,
        "\ud800 größe \x00",
        torch.tensor(3.5),
        torch.tensor([float("nan"), float("inf"), -0.0]),
        torch.empty(0, 7),
        torch.sparse_coo_tensor(torch.empty(2, 0, dtype=torch.int64), torch.empty(0), (3, 4)),
        np.array(2.5),
        np.empty((0, 3), dtype=np.int16),
        np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(10)[::-2],
        ("MT19937", np.arange(624, dtype=np.uint32), 624, 0, 0.0),
    ],
    ids=repr,
)
def test_corner_cases(tree: Any) -> None:
    assert codec.is_supported(tree)
    again = codec.decode(codec.encode(tree))
    if isinstance(tree, np.ndarray):
        tree = np.ascontiguousarray(tree).reshape(tree.shape)
    assert_same(again, tree)


def test_nan_stays_nan() -> None:
    assert np.isnan(codec.decode(codec.encode({"a": float("nan")}))["a"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.1), 0.1),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.int64(-7), -7),
        (np.bool_(True), True),
        (np.str_("text"), "text"),
        (torch.Size([2, 3]), (2, 3)),
        (Point(1, torch.ones(2)), (1, torch.ones(2))),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    ],
    ids=["float64", "float32", "int64", "bool", "str", "Size", "namedtuple", "OrderedDict"],
)
def test_subclasses_come_back_as_the_plain_type(value: Any, expected: Any) -> None:
    assert codec.is_supported(value)
    assert_same(codec.decode(codec.encode({"value": value}))["value"], expected)


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        b"bytes",
        {None: 1},
        {(1, 2): 3},
        {1.5: 2},
        np.datetime64("2020-01-01"),
        np.complex64(1j),
        np.array([object()]),
        np.array(["text"]),
        np.array([("a", 1)], dtype=[("name", "U1"), ("count", "i4")]),
        torch.eye(2).to_sparse_csr(),
        torch.zeros(2, dtype=torch.complex128),
        nn.Linear(1, 1),
        torch.float32,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_supported_is_said_to_be_so(value: Any) -> None:
    """Nothing is written that reading could not give back: ``is_supported`` and ``encode`` agree."""
    for tree in (value, [value], {"a": (value,)}):
        assert not codec.is_supported(tree)
        with pytest.raises(TypeError, match="cannot encode"):
            codec.encode(tree)


def test_equal_trees_give_equal_bytes() -> None:
    def tree() -> Any:
        return {i: [torch.full((3,), float(i)), np.arange(i)] for i in range(12)}

    assert len({codec.encode(tree()) for _ in range(20)}) == 1


def test_shared_and_overlapping_tensors_are_independent_copies() -> None:
    base = torch.arange(6.0)
    first, second, third = codec.decode(codec.encode([base, base, base[2:4]]))
    first[2] = -1
    assert second[2] == 2 and third[0] == 2


def test_the_file_is_plain_safetensors_with_json() -> None:
    data = codec.encode({"a": torch.ones(2)})
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert "tree" in header and b"pickle" not in data


def draws() -> list[Any]:
    return [random.random(), random.gauss(0, 1), np.random.rand(3).tolist(), np.random.normal(), torch.rand(3).tolist()]


def test_random_streams_continue_after_the_way_through_a_file() -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    random.gauss(0, 1)  # leaves a second value behind, as np.random.normal does
    np.random.normal()
    torch.randn(5)
    state = random_streams.random_state()
    data = codec.encode(state)
    expected = draws()
    assert draws() != expected
    random_streams.set_random_state(codec.decode(data))
    assert draws() == expected
    for draw in (random.random, np.random.rand, lambda: torch.rand(1)):
        random_streams.set_random_state(codec.decode(data))
        assert not random_streams.have_moved(state)
        draw()
        assert random_streams.have_moved(state), "what many tests rely on"


def test_a_generator_state_survives() -> None:
    generator = torch.Generator().manual_seed(4)
    torch.randperm(10, generator=generator)
    data = codec.encode([generator.get_state()])
    expected = torch.randperm(10, generator=generator)
    other = torch.Generator()
    other.set_state(codec.decode(data)[0])
    assert torch.equal(torch.randperm(10, generator=other), expected)


@pytest.mark.parametrize("learner", [torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop])
def test_optimizer_states_survive(learner: Any, tmp_path: Path) -> None:
    def train(weight: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (weight.sin() * torch.arange(4.0)).sum().backward()
            optimizer.step()

    weight = nn.Parameter(torch.linspace(-1, 1, 4))
    optimizer = learner([weight], lr=0.1)
    train(weight, optimizer, 3)
    (tmp_path / "state").write_bytes(codec.encode([weight, optimizer.state_dict()]))
    train(weight, optimizer, 3)
    values, state = codec.decode((tmp_path / "state").read_bytes())
    again = nn.Parameter(values)
    other = learner([again], lr=0.5)
    other.load_state_dict(state)
    train(again, other, 3)
    assert torch.equal(weight, again)


# ---- attributes of a model


class Attributes(nn.Module):
    """Keeps state in every kind of plain attribute, as RecBole's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.update = 0
        self.rate = np.float64(0.5)
        self.count = np.int64(0)
        self.table = torch.zeros(4)
        self.matrix = torch.eye(2).to_sparse()
        self.order = np.arange(2000)
        self.history: list[float] = [0.0] * 20
        self.names = {"a": 1}
        self.constant = torch.ones(3)
        self.unsupported = object()
        self.restore_user_e: Any = None
        self.inner = nn.Linear(2, 2)
        self.inner.scale = 1.0


CHANGES: dict[str, Any] = {
    "update": lambda m: setattr(m, "update", 3),
    "rate": lambda m: setattr(m, "rate", np.float64(0.25)),
    "count": lambda m: setattr(m, "count", m.count + 1),
    "table": lambda m: m.table.add_(1),
    "matrix": lambda m: setattr(m, "matrix", 2 * torch.eye(2).to_sparse()),
    "order": lambda m: np.random.default_rng(0).shuffle(m.order),
    "history": lambda m: m.history.__setitem__(15, 7.0),
    "names": lambda m: m.names.__setitem__("b", 2),
    "inner.scale": lambda m: setattr(m.inner, "scale", 2.0),
    "new": lambda m: setattr(m, "new", [1, 2]),
}


@pytest.mark.parametrize("path", CHANGES)
def test_a_changed_attribute_is_found_and_restored(path: str) -> None:
    model = Attributes()
    watch = states.AttributeWatch(model)
    assert watch.changed() == {}
    CHANGES[path](model)
    changed = watch.changed()
    assert list(changed) == [path]

    other = Attributes()
    states.AttributeWatch(other).restore(codec.decode(codec.encode(changed)))
    module, _, name = path.rpartition(".")
    restored = getattr(other.get_submodule(module), name)
    expected = changed[path].item() if isinstance(changed[path], np.generic) else changed[path]
    if isinstance(expected, torch.Tensor):
        assert torch.equal(restored.to_dense(), expected.to_dense())
    else:
        assert_same(restored, expected)


def test_an_attribute_replaced_by_an_equal_looking_object_is_found() -> None:
    """The memory of a freed tensor is used again, so the new one may have the old one's id and version."""
    for _ in range(50):
        model = Attributes()
        model.tables = [torch.zeros(4)]
        watch = states.AttributeWatch(model)
        model.tables[0] = model.matrix = model.table = None
        model.table = torch.ones(4)
        model.tables[0] = torch.ones(4)
        model.matrix = 3 * torch.eye(2).to_sparse()
        assert set(watch.changed()) == {"table", "tables", "matrix"}


def test_caches_and_what_cannot_be_stored_are_left_out() -> None:
    model = Attributes()
    watch = states.AttributeWatch(model)
    model.restore_user_e = torch.ones(2)
    model.unsupported = object()
    model.eval()
    assert watch.changed() == {}
    forget_caches(model)
    assert model.restore_user_e is None
