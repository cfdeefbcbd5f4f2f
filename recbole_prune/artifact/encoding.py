"""A masked table as bytes: the live values, and where they stand, in the smallest of four exact encodings.

A tensor is read as a table of ``shape[0]`` rows; a tensor of one dimension is one row. Live values follow each other
row by row. Their positions are stored as

``bitmap``  one bit per entry;
``rows``    the number of live entries of each row and their column numbers, both in the fewest bits that hold them;
``grid``    one bit per row and one per column, where whole rows and columns are pruned and nothing else;
``dense``   not at all: every entry is stored. Used where nothing is pruned, or where the pruned entries are exactly
            the zeros of the table.

Positions are never guessed from values: a live entry that is 0.0, or becomes 0 in ``int8``, stays live.

How the values themselves are stored is said in :mod:`recbole_prune.artifact.value_types`. All bits are in
little-endian order. Only numpy is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_prune.artifact.bit_packing import bits_below, bytes_of, pack_bits, unpack_bits
from recbole_prune.artifact.fields import Fields
from recbole_prune.artifact.files import ascending_in_rows
from recbole_prune.artifact.value_types import DTYPES, VALUE_TYPES, has_nan, store_values, wrong_type
from recbole_prune.errors import ArtifactError
from recbole_prune.masking.bound import information_bound_bits

ENCODINGS = ("dense", "bitmap", "rows", "grid")

Array = NDArray[Any]

_MOST_DIMENSIONS = 32
_LONGEST_SIDE = 1 << 40

_PARTS = {
    "dense": {"values"},
    "bitmap": {"values", "bitmap"},
    "rows": {"values", "counts", "columns"},
    "grid": {"values", "row_bits", "column_bits"},
}
_GRID = ("row_bits", "column_bits")


@dataclass(frozen=True)
class EncodedTensor:
    """One tensor in its encoding; make it with :func:`encode`, get the tensor back with :meth:`decode`.

    Attributes:
        shape: shape of the tensor.
        dtype: numpy name of the decoded dtype.
        encoding: one of :data:`ENCODINGS`.
        kept: live entries.
        parts: ``values`` and what the encoding needs beside them, uint8: ``bitmap``, or ``counts`` and ``columns``
            (packed), or ``row_bits`` and ``column_bits``; for int8 values also ``scales`` (float16, one for each row
            with a live entry).
        count_base: smallest number of live entries in a row; ``counts`` holds what comes on top (``rows`` only).
        count_bits: bits of one of ``counts`` (``rows`` only).
        source: file and field that it was read from, for messages.
    """

    shape: tuple[int, ...]
    dtype: str
    encoding: str
    kept: int
    parts: Mapping[str, Array]
    count_base: int = 0
    count_bits: int = 0
    source: str = field(default="the tensor", compare=False)

    @property
    def entries(self) -> int:
        """Entries of the tensor, live and pruned."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Rows of the table that the tensor is read as."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def columns(self) -> int:
        """Columns of the table that the tensor is read as."""
        return math.prod(self.shape[1:]) if len(self.shape) > 1 else self.entries

    @property
    def nbytes(self) -> int:
        """Bytes of values, positions and scales."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the decoded tensor."""
        return self.entries * np.dtype(self.dtype).itemsize

    @property
    def working_nbytes(self) -> int:
        """The most that decoding allocates for good, whatever is stored: the tensor, and a number a row and column."""
        return self.dense_nbytes + 8 * (self.rows + self.columns)

    @property
    def bound_bytes(self) -> float:
        """:func:`information_bound_bits` in bytes."""
        return information_bound_bits(self.entries, self.kept, 8 * self.parts["values"].itemsize) / 8

    @property
    def format_version(self) -> int:
        """The first version of the artifact's format that has such a tensor."""
        return 1

    def describe(self) -> dict[str, Any]:
        """All that :meth:`from_description` needs beside the parts, as JSON; with sizes in bytes for a reader."""
        description: dict[str, Any] = {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "encoding": self.encoding,
            "values": self.parts["values"].dtype.name,
            "entries": self.entries,
            "kept": self.kept,
            "bytes": self.nbytes,
        }
        if self.encoding == "rows":
            description.update(count_base=self.count_base, count_bits=self.count_bits)
        return description

    @classmethod
    def from_description(cls, description: Fields, parts: Mapping[str, Array]) -> EncodedTensor:
        """Put a tensor together again; what positions and values say is checked when they are decoded.

        Raises:
            ArtifactError: a field is malformed, or description and parts contradict each other.
        """
        encoding = description.text("encoding", ENCODINGS)
        encoded = cls(
            shape=description.sizes("shape", _MOST_DIMENSIONS, _LONGEST_SIDE),
            dtype=description.text("dtype", DTYPES),
            encoding=encoding,
            kept=description.whole("kept", _LONGEST_SIDE),
            parts=dict(parts),
            count_base=description.whole("count_base", _LONGEST_SIDE) if encoding == "rows" else 0,
            count_bits=description.whole("count_bits", 63) if encoding == "rows" else 0,
            source=f"{description.path}: {description.place}",
        )
        encoded._check()
        return encoded

    def _check(self) -> None:
        """Refuse parts whose types or sizes do not fit, before numpy fails on them in its own words."""
        if set(self.parts) - {"scales"} != _PARTS[self.encoding]:
            needed, found = (", ".join(sorted(names)) for names in (_PARTS[self.encoding], self.parts))
            raise self._error(f"encoding {self.encoding} needs {needed}, found {found or 'nothing'}")
        if not self.kept <= self.entries:
            raise self._error(f"shape {list(self.shape)} cannot have {self.kept} live entries")
        wrong = wrong_type(self.parts, self.dtype, len(self.shape))
        if wrong is not None:
            raise self._error(wrong)
        most = self.columns.bit_length()
        if self.count_base > self.columns or self.count_bits > most:
            raise self._error(
                f"a row of {self.columns} cannot have {self.count_base} and {self.count_bits} bits of entries"
            )
        sizes = {
            "values": self.entries if self.encoding == "dense" else self.kept,
            "bitmap": bytes_of(self.entries),
            "counts": bytes_of(self.rows * self.count_bits),
            "columns": bytes_of(self.kept * bits_below(self.columns)),
            "row_bits": bytes_of(self.rows),
            "column_bits": bytes_of(self.columns),
        }
        for part in _PARTS[self.encoding]:
            if self.parts[part].size != sizes[part]:
                raise self._error(f"{part} has {self.parts[part].size} elements where {sizes[part]} are needed")

    def _error(self, problem: str) -> ArtifactError:
        return ArtifactError(f"{self.source}: {problem}")

    def _live_table(self) -> NDArray[np.bool_]:
        if self.encoding == "rows":
            live = np.zeros((self.rows, self.columns), dtype=bool)
            counts, columns = self._counts_and_columns()
            live[np.repeat(np.arange(self.rows), counts), columns] = True
            return live
        if self.encoding == "grid":
            sides = [_unpacked(self.parts[name], n) for name, n in zip(_GRID, (self.rows, self.columns))]
            if np.count_nonzero(sides[0]) * np.count_nonzero(sides[1]) != self.kept:
                raise self._error(f"positions do not describe {self.kept} live entries in {list(self.shape)}")
            flat = (sides[0][:, None] & sides[1]).reshape(-1)
        elif self.encoding == "bitmap":
            flat = _unpacked(self.parts["bitmap"], self.entries)
        elif self.kept == self.entries:
            flat = np.ones(self.entries, dtype=bool)
        else:
            flat = self.parts["values"] != 0
        if np.count_nonzero(flat) != self.kept:
            raise self._error(f"positions do not describe {self.kept} live entries in {list(self.shape)}")
        return flat.reshape(self.rows, self.columns)

    def _counts_and_columns(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.encoding != "rows":
            live = self._live_table()
            return np.count_nonzero(live, axis=1).astype(np.int64), np.nonzero(live)[1]
        counts = self.count_base + unpack_bits(self.parts["counts"], self.count_bits, self.rows)
        if counts.max(initial=0) > self.columns or counts.sum() != self.kept:
            raise self._error(f"positions do not describe {self.kept} live entries in {list(self.shape)}")
        columns = unpack_bits(self.parts["columns"], bits_below(self.columns), self.kept)
        if columns.max(initial=0) >= max(self.columns, 1) or not ascending_in_rows(columns, np.cumsum(counts)):
            raise self._error(f"the columns of a row must ascend from 0 to at most {self.columns - 1}")
        return counts, columns

    def live(self) -> NDArray[np.bool_]:
        """Which entries are live, in the tensor's shape."""
        return self._live_table().reshape(self.shape)

    def csr(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
        """The live entries as compressed sparse rows, without a dense table of values in between.

        Returns:
            ``indptr`` of shape ``[rows + 1]``, ``columns`` and decoded values of shape ``[kept]``.
        """
        counts, columns = self._counts_and_columns()
        stored = self.parts["values"]
        if self.encoding == "dense":
            stored = stored[self._live_table().reshape(-1)]
        return np.concatenate([[0], np.cumsum(counts)]), columns, self._restore(stored, counts)

    def decode(self) -> Array:
        """The tensor in its shape and dtype; pruned entries are +0.0."""
        if self.encoding == "dense" and "scales" not in self.parts:
            return self._numbers(self.parts["values"].astype(self.dtype)).reshape(self.shape)
        indptr, columns, values = self.csr()
        table = np.zeros((self.rows, self.columns), dtype=self.dtype)
        table[np.repeat(np.arange(self.rows), np.diff(indptr)), columns] = values
        return table.reshape(self.shape)

    def _restore(self, stored: Array, counts: NDArray[np.int64]) -> Array:
        """Stored live values in the decoded dtype; ``counts`` are the live entries of each row."""
        if "scales" not in self.parts:
            return self._numbers(stored.astype(self.dtype))
        occupied = counts[counts > 0]
        scales = self.parts["scales"].astype(np.float32)
        if occupied.size != scales.size:
            raise self._error(f"{scales.size} scales for {occupied.size} rows with live entries")
        with np.errstate(over="ignore", invalid="ignore"):
            return self._numbers((stored.astype(np.float32) * np.repeat(scales, occupied)).astype(self.dtype))

    def _numbers(self, values: Array) -> Array:
        """Refuse what no trained weight is: a score of it would be NaN, which no ranking can hold."""
        if has_nan(values):
            raise self._error("a value is NaN")
        return values

    def rounding_error(self) -> Array:
        """Largest distance of a decoded entry from the value that was encoded, in the tensor's shape; 0 where exact.

        float16: half a unit in the last place; int8: half a step of the row's scale, and a little for float32
        arithmetic.
        """
        stored = self.parts["values"].dtype
        error = np.zeros((self.rows, self.columns), dtype=np.float64)
        if stored.name == self.dtype:
            return error.reshape(self.shape)
        live = self._live_table()
        if "scales" in self.parts:
            steps = np.zeros(self.rows)
            steps[live.any(axis=1)] = self.parts["scales"].astype(np.float64)
            error[live] = np.broadcast_to(0.5001 * steps[:, None], live.shape)[live]
        else:
            values = np.abs(self.decode().reshape(live.shape).astype(np.float64))
            error[live] = np.maximum(values * 2.0**-11, 2.0**-25)[live] * 1.001
        return error.reshape(self.shape)


def _unpacked(bits: Array, count: int) -> NDArray[np.bool_]:
    return np.unpackbits(bits, count=count, bitorder="little").astype(bool)


def encode(tensor: Array, live: NDArray[np.bool_] | None = None, values: str = "fp32") -> EncodedTensor:
    """Encode one tensor.

    Args:
        tensor: any shape and dtype.
        live: which entries are live, in the tensor's shape; None: all.
        values: ``fp32`` stores exactly what is given, in whatever dtype; ``fp16`` and ``int8`` round floating tensors
            of at least two dimensions.

    Raises:
        ArtifactError: a pruned entry is not 0, a value is NaN, or does not fit into ``values``.
        ValueError: ``values`` is none of :data:`VALUE_TYPES`, or the shapes differ.
    """
    if values not in VALUE_TYPES:
        raise ValueError(f"values={values!r} is not one of {', '.join(VALUE_TYPES)}")
    tensor = np.asarray(tensor)
    mask = np.ones(tensor.shape, dtype=bool) if live is None else np.asarray(live, dtype=bool)
    if mask.shape != tensor.shape:
        raise ValueError(f"mask of shape {mask.shape} for a tensor of shape {tensor.shape}")
    rows = tensor.shape[0] if tensor.ndim > 1 else 1
    columns = math.prod(tensor.shape[1:]) if tensor.ndim > 1 else tensor.size
    table, mask = tensor.reshape(rows, columns), mask.reshape(rows, columns)
    counts = np.count_nonzero(mask, axis=1).astype(np.int64)
    kept = table[mask]
    stray = int(np.count_nonzero(table)) - int(np.count_nonzero(kept))
    if stray:
        raise ArtifactError(f"{stray} pruned entries are not 0")
    if has_nan(kept):
        raise ArtifactError(f"{int(np.isnan(kept).sum())} values are NaN")
    rounded = tensor.ndim > 1 and tensor.dtype.name in ("float32", "float64")
    parts = store_values(kept, counts, values if rounded else "fp32")
    encoding, extra, base, bits = _choose_positions(mask, counts, parts["values"])
    if encoding == "dense":
        # all live: the row-major live values are the table
        filled = np.zeros(mask.shape, dtype=parts["values"].dtype)
        filled[mask] = parts["values"]
        parts["values"] = filled.reshape(-1)
    return EncodedTensor(tensor.shape, tensor.dtype.name, encoding, int(kept.size), {**parts, **extra}, base, bits)


def _choose_positions(
    mask: NDArray[np.bool_], counts: NDArray[np.int64], stored: Array
) -> tuple[str, dict[str, Array], int, int]:
    """The smallest encoding: its name, its parts beside the values, count base and count bits."""
    base = int(counts.min(initial=mask.shape[1]))
    bits = int(counts.max(initial=base) - base).bit_length()
    column_bits = bits_below(mask.shape[1])
    sizes = {
        "bitmap": bytes_of(mask.size),
        "rows": bytes_of(mask.shape[0] * bits) + bytes_of(stored.size * column_bits),
    }
    rows, sides = mask.any(axis=1), mask.any(axis=0)
    if np.count_nonzero(rows) * np.count_nonzero(sides) == stored.size:
        sizes["grid"] = bytes_of(rows.size) + bytes_of(sides.size)
    # zeros that are live could not be told from pruned ones
    if stored.size == mask.size or bool((stored != 0).all()):
        sizes["dense"] = (mask.size - stored.size) * stored.itemsize
    encoding = "dense" if stored.size == mask.size else min(sorted(sizes), key=lambda name: sizes[name])
    if encoding == "bitmap":
        return encoding, {"bitmap": np.packbits(mask.reshape(-1), bitorder="little")}, 0, 0
    if encoding == "grid":
        return encoding, {n: np.packbits(b, bitorder="little") for n, b in zip(_GRID, (rows, sides))}, 0, 0
    if encoding == "dense":
        return encoding, {}, 0, 0
    packed = {"counts": pack_bits(counts - base, bits), "columns": pack_bits(np.nonzero(mask)[1], column_bits)}
    return encoding, packed, base, bits
