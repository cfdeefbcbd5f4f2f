"""Boolean masks over the targets of a scope: counts, nesting, packed save and load."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from recbole_prune.errors import StoreError
from recbole_prune.masking.scope import Scope


class MaskSet(Mapping[str, torch.Tensor]):
    """For every target of a scope a boolean mask of the target's shape; True is live.

    Padding rows are always live in the mask and count neither as kept nor as prunable.

    Raises:
        ValueError: names, shapes or dtypes do not fit the scope, or a padding row is pruned.
    """

    def __init__(self, scope: Scope, masks: Mapping[str, torch.Tensor]) -> None:
        if set(masks) != {target.name for target in scope}:
            raise ValueError(f"masks for {sorted(masks)} do not fit the targets {[t.name for t in scope]}")
        for target in scope:
            mask = masks[target.name]
            if mask.dtype != torch.bool or tuple(mask.shape) != target.shape:
                raise ValueError(f"{target.name}: a boolean mask of shape {target.shape} is needed, got {mask.shape}")
            if not bool(mask[list(target.padding_rows)].all()):
                raise ValueError(f"{target.name}: padding rows {target.padding_rows} must stay live")
        self.scope = scope
        self._masks = {target.name: masks[target.name] for target in scope}

    @classmethod
    def dense(cls, scope: Scope) -> MaskSet:
        """All entries live."""
        return cls(scope, {target.name: torch.ones(target.shape, dtype=torch.bool) for target in scope})

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def equals(self, other: MaskSet) -> bool:
        """Whether both hold the same masks bit for bit."""
        return set(self) == set(other) and all(torch.equal(self[name], other[name]) for name in self)

    @property
    def prunable(self) -> int:
        """Entries that count."""
        return self.scope.prunable

    @property
    def kept(self) -> int:
        """Live entries, padding rows not counted."""
        return sum(int(self.per_row(target.name).sum()) for target in self.scope)

    @property
    def sparsity(self) -> float:
        """1 - kept / prunable."""
        return 1.0 - self.kept / self.prunable

    @property
    def is_dense(self) -> bool:
        """Whether nothing is pruned."""
        return self.kept == self.prunable

    def per_row(self, name: str) -> torch.Tensor:
        """Live entries of each row that counts, int64, shape ``[target.rows]``."""
        target = self.scope[name]
        return live_per_row(self[name])[target.countable(self[name].device)]

    def is_nested_in(self, other: MaskSet) -> bool:
        """Whether every live entry of this set is live in the other."""
        return all(bool((other[name] | ~self[name]).all()) for name in self)

    def restricted_to(self, scope: Scope) -> MaskSet:
        """The masks of a smaller scope."""
        return MaskSet(scope, {target.name: self[target.name] for target in scope})

    def to_bytes(self) -> bytes:
        """A safetensors file: one bit per entry, shapes and counts in its metadata."""
        packed = {name: np.packbits(mask.cpu().numpy().reshape(-1)) for name, mask in self.items()}
        facts = {"kept": self.kept, "shapes": {name: list(mask.shape) for name, mask in self.items()}}
        # one key only: safetensors writes several in an order that changes from process to process
        return save_safetensors(packed, metadata={"masks": json.dumps(facts)})

    @classmethod
    def from_bytes(cls, data: bytes, scope: Scope) -> MaskSet:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            StoreError: the bytes are damaged or belong to another scope.
        """
        try:
            packed = load_safetensors(data)
            facts = _facts(data)
            shapes = {target.name: list(target.shape) for target in scope}
            if facts["shapes"] != shapes:
                raise ValueError(f"it holds the shapes {facts['shapes']}, the model has {shapes}")
            masks = {name: _unpack(packed[name], shape) for name, shape in shapes.items()}
            result = cls(scope, masks)
            if result.kept != facts["kept"]:
                raise ValueError(f"it keeps {result.kept} entries instead of {facts['kept']}")
            return result
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"a mask file does not fit the model: {error}") from error


def live_per_row(mask: torch.Tensor) -> torch.Tensor:
    """Live entries of each row, int64; in blocks, since torch widens what it sums to eight bytes an entry."""
    blocks = mask.flatten(1).split(1 << 16) if len(mask) else ()
    return torch.cat([block.sum(1) for block in blocks]) if blocks else torch.zeros(0, dtype=torch.int64)


def _facts(data: bytes) -> dict[str, Any]:
    """The metadata of :meth:`MaskSet.to_bytes`; ``safetensors`` itself reads metadata from files only."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["masks"])  # type: ignore[no-any-return]


def _unpack(packed: np.ndarray, shape: list[int]) -> torch.Tensor:
    size = prod(shape)
    if packed.shape != ((size + 7) // 8,):  # unpackbits would fill up with zeros
        raise ValueError(f"{packed.shape} bytes do not hold {size} bits")
    return torch.from_numpy(np.unpackbits(packed, count=size).astype(bool).reshape(shape))
