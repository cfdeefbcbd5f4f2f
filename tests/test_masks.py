"""Mask sets count right, refuse what does not fit, and survive the way to disk or say that they did not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_prune.errors import StoreError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scope import Scope, Target
from recbole_prune.run.store import RunFolder


def scope_of(**shapes: tuple[int, ...]) -> Scope:
    """Targets with row 0 as padding."""
    return Scope(tuple(Target(name, "embedding", shape, (0,)) for name, shape in shapes.items()))


def random_masks(scope: Scope, seed: int = 0, density: float = 0.5) -> MaskSet:
    random = np.random.default_rng(seed)
    masks = {t.name: torch.from_numpy(random.random(t.shape) < density) for t in scope}
    for target in scope:
        masks[target.name][list(target.padding_rows)] = True
    return MaskSet(scope, masks)


@st.composite
def mask_sets(draw: st.DrawFn) -> MaskSet:
    """Masks of one to three tensors of two to four dimensions with any padding rows."""
    targets, masks = [], {}
    for i in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(st.integers(1, 9), min_size=2, max_size=4)))
        padding = tuple(sorted(draw(st.sets(st.integers(0, shape[0] - 1), max_size=shape[0] - 1))))
        random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        mask = torch.from_numpy(random.random(shape) < draw(st.floats(0, 1)))
        mask[list(padding)] = True
        targets.append(Target(f"layer.{i}.weight", "linear", shape, padding))
        masks[targets[-1].name] = mask
    return MaskSet(Scope(tuple(targets)), masks)


def test_counts_leave_padding_rows_out() -> None:
    scope = scope_of(users=(4, 3), items=(3, 2))
    assert scope.prunable == 3 * 3 + 2 * 2
    users = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]).bool()
    items = torch.tensor([[1, 1], [0, 1], [1, 1]]).bool()
    masks = MaskSet(scope, {"users": users, "items": items})
    assert masks.prunable == 13
    assert masks.kept == 4 + 3
    assert masks.sparsity == pytest.approx(6 / 13)
    assert masks.per_row("users").tolist() == [1, 0, 3]
    assert masks.per_row("items").tolist() == [1, 2]
    assert not masks.is_dense


def test_several_padding_rows_and_higher_dimensions() -> None:
    target = Target("stacked", "embedding", (5, 2, 2), (0, 3))
    scope = Scope((target,))
    assert (target.rows, target.width, target.prunable) == (3, 4, 12)
    mask = torch.ones(5, 2, 2, dtype=torch.bool)
    mask[1] = False
    mask[4, 0, 1] = False
    masks = MaskSet(scope, {"stacked": mask})
    assert masks.per_row("stacked").tolist() == [0, 4, 3]
    assert masks.kept == 7


def test_dense_masks() -> None:
    dense = MaskSet.dense(scope_of(users=(4, 3), items=(3, 2)))
    assert dense.is_dense and dense.kept == dense.prunable == 13 and dense.sparsity == 0.0


def test_nesting_is_per_entry() -> None:
    scope = scope_of(users=(2, 3))
    outer = MaskSet(scope, {"users": torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()})
    inner = MaskSet(scope, {"users": torch.tensor([[1, 1, 1], [0, 1, 0]]).bool()})
    aside = MaskSet(scope, {"users": torch.tensor([[1, 1, 1], [0, 0, 1]]).bool()})
    assert inner.is_nested_in(outer) and outer.is_nested_in(outer)
    assert not outer.is_nested_in(inner) and not aside.is_nested_in(outer)


@pytest.mark.parametrize(
    "masks",
    [
        {},
        {"items": torch.ones(2, 3, dtype=torch.bool)},
        {"users": torch.ones(2, 3, dtype=torch.bool), "items": torch.ones(2, 3, dtype=torch.bool)},
        {"users": torch.ones(3, 2, dtype=torch.bool)},
        {"users": torch.ones(2, 3)},
        {"users": torch.tensor([[True, False, True], [True, True, True]])},
    ],
    ids=["missing", "other name", "one too many", "other shape", "not boolean", "pruned padding"],
)
def test_masks_that_do_not_fit_the_scope_are_refused(masks: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"masks for|boolean mask|padding rows"):
        MaskSet(scope_of(users=(2, 3)), masks)


def test_restricting_keeps_the_masks_of_the_smaller_scope() -> None:
    scope = scope_of(users=(4, 3), items=(3, 2))
    masks = random_masks(scope)
    smaller = scope.without(["users"], "received no gradient in the dense training")
    restricted = masks.restricted_to(smaller)
    assert set(restricted) == {"items"} and torch.equal(restricted["items"], masks["items"])
    assert restricted.prunable == 4 and smaller.exclusions[-1].name == "users"


@given(mask_sets())
def test_round_trip_of_packed_bytes(masks: MaskSet) -> None:
    data = masks.to_bytes()
    again = MaskSet.from_bytes(data, masks.scope)
    assert again.equals(masks)
    assert (again.kept, again.prunable) == (masks.kept, masks.prunable)
    assert all(mask.dtype == torch.bool for mask in again.values())


def test_equal_masks_give_equal_bytes() -> None:
    """The order of a file's tensors and facts must not change, or its hash would."""
    scope = scope_of(**{f"table{i}": (5 + i, 4) for i in range(8)})
    assert len({random_masks(scope).to_bytes() for _ in range(20)}) == 1


def test_a_mask_takes_one_bit_per_entry() -> None:
    scope = scope_of(users=(944, 64), items=(1683, 64))
    assert len(random_masks(scope).to_bytes()) <= (944 + 1683) * 64 / 8 + 500


SCOPES = {
    "another name": scope_of(users=(9, 8), things=(6, 5)),
    "one tensor more": scope_of(users=(9, 8), items=(6, 5), others=(2, 2)),
    "one tensor less": scope_of(users=(9, 8)),
    "more rows": scope_of(users=(10, 8), items=(6, 5)),
    "fewer rows": scope_of(users=(8, 8), items=(6, 5)),
    "wider": scope_of(users=(9, 8), items=(6, 6)),
    "the same size in another shape": scope_of(users=(8, 9), items=(6, 5)),
    "one dimension more": scope_of(users=(9, 4, 2), items=(6, 5)),
}


@pytest.mark.parametrize("other", SCOPES)
@pytest.mark.parametrize("density", [0.5, 1.0])
def test_masks_of_another_scope_are_refused(other: str, density: float) -> None:
    data = random_masks(scope_of(users=(9, 8), items=(6, 5)), density=density).to_bytes()
    with pytest.raises(StoreError, match="mask file does not fit the model"):
        MaskSet.from_bytes(data, SCOPES[other])


def test_masks_that_prune_a_padding_row_are_refused() -> None:
    with_padding = scope_of(users=(9, 8))
    without = Scope((Target("users", "embedding", (9, 8)),))
    data = MaskSet(without, {"users": torch.zeros(9, 8, dtype=torch.bool)}).to_bytes()
    with pytest.raises(StoreError, match="padding rows"):
        MaskSet.from_bytes(data, with_padding)


def test_damaged_bytes_never_raise_anything_else() -> None:
    """Without the hash check a flipped bit of the payload may pass, but never as another kind of error."""
    scope = scope_of(users=(9, 8), items=(6, 5))
    data = random_masks(scope).to_bytes()
    for length in range(len(data)):
        with pytest.raises(StoreError):
            MaskSet.from_bytes(data[:length], scope)
    for position in range(len(data)):
        for flip in (0x01, 0x20, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= flip
            try:
                masks = MaskSet.from_bytes(bytes(damaged), scope)
            except StoreError:
                continue
            assert all(bool(masks[t.name][list(t.padding_rows)].all()) for t in scope)


def test_every_flipped_byte_of_a_mask_file_is_caught(tmp_path: Path) -> None:
    scope = scope_of(users=(9, 8), items=(6, 5))
    folder = RunFolder(tmp_path / "run")
    folder.open()
    name = "masks/ticket-001.safetensors"
    data = random_masks(scope).to_bytes()
    digest = folder.write(name, data)
    assert MaskSet.from_bytes(folder.read(name, digest), scope).equals(random_masks(scope))
    path = folder.path / name
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"ticket-001\.safetensors is corrupt"):
            folder.read(name, digest)
    path.unlink()
    with pytest.raises(StoreError, match="cannot read"):
        folder.read(name, digest)
    folder.close()
