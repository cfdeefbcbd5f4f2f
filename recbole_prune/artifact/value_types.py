"""Number formats of stored values.

``fp32``  exactly what is given, in whatever dtype;
``fp16``  rounded to half precision;
``int8``  symmetric, value = code * scale with codes from -127 to 127 and one float16 scale for each row that has a live
          entry. The scale is rounded up, so no value is clipped. A scale for the whole table would save 2 bytes a row
          and cost the quiet rows most of their precision;
``int4``  value = low + code * scale with codes from 0 to 15, two in a byte, and a float16 ``low`` and ``scale`` for
          each row that has a live entry: :mod:`recbole_prune.artifact.int4`.

All but ``fp32`` are for floating tensors of at least two dimensions: biases, norms and running statistics are
small and sensitive, so they stay exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_prune.artifact import int4
from recbole_prune.errors import ArtifactError

Array = NDArray[Any]

VALUE_TYPES = ("fp32", "fp16", "int8", "int4")
# beside the values, for each row that has a live entry
PARTS_OF_ROWS = frozenset({"scales", "lows"})
# dtypes of a decoded tensor, by numpy's names: what safetensors holds
DTYPES = tuple("float64 float32 float16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool complex64".split())


def has_nan(values: Array) -> bool:
    """Whether a value is NaN."""
    return values.dtype.kind in "fc" and bool(np.isnan(values).any())


def stored_as(parts: Mapping[str, Array]) -> str:
    """How the values of a tensor's parts are stored: the name of a dtype, or ``int4``."""
    return "int4" if "lows" in parts else parts["values"].dtype.name


def bits_of(parts: Mapping[str, Array]) -> int:
    """Bits of one stored value."""
    return int4.BITS if "lows" in parts else 8 * parts["values"].itemsize


def wrong_type(parts: Mapping[str, Array], dtype: str, dimensions: int) -> str | None:
    """What is wrong with the types of a tensor's parts, None where nothing is.

    Args:
        parts: ``values``, ``scales``, ``lows`` and positions, as :mod:`recbole_prune.artifact.encoding` names them.
        dtype: of the decoded tensor.
        dimensions: of the decoded tensor.
    """
    rounded = dimensions > 1 and dtype in ("float32", "float64")
    wanted = {
        **dict.fromkeys(("bitmap", "counts", "columns", "row_bits", "column_bits"), "uint8"),
        **dict.fromkeys(PARTS_OF_ROWS, "float16"),
        "full_rows": "uint32",
        "values": dtype,
    }
    if "lows" in parts and "scales" not in parts:
        return "lows without scales"
    if "scales" in parts:
        wanted["values"] = "unscaled" if not rounded else "uint8" if "lows" in parts else "int8"
    elif rounded and parts["values"].dtype.name == "float16":
        wanted["values"] = "float16"
    for name, part in parts.items():
        if part.ndim != 1:
            return f"{name} must have one dimension, but has shape {list(part.shape)}"
        if part.dtype.name != wanted[name]:
            return f"{name} must be {wanted[name]}, but is {part.dtype.name}"
    return None


def wrong_size(parts: Mapping[str, Array], stored: int, rows: int) -> str | None:
    """What is wrong with the number of stored values, None where nothing is; of int4 as far as it is known by now.

    Args:
        parts: of a tensor.
        stored: values that are stored.
        rows: of the tensor, each of which may leave half a byte of int4 empty.
    """
    found, fewest, most = parts["values"].size, stored, stored
    if "lows" in parts:
        fewest, most = (stored + 1) // 2, (stored + min(rows, stored)) // 2
    if fewest <= found <= most:
        return None
    needed = str(fewest) if fewest == most else f"{fewest} to {most}"
    return f"values has {found} elements where {needed} are needed"


def wrong_rows(parts: Mapping[str, Array], counts: NDArray[np.int64]) -> str | None:
    """What is wrong with the parts that depend on the live entries of each row, ``counts``; None where nothing is."""
    occupied = counts[counts > 0]
    for name in sorted(PARTS_OF_ROWS & set(parts)):
        if parts[name].size != occupied.size:
            return f"{parts[name].size} {name} for {occupied.size} rows with live entries"
    if "lows" in parts and parts["values"].size != (needed := int(int4.bytes_of_rows(occupied).sum())):
        return f"values has {parts['values'].size} elements where {needed} are needed"
    return None


def store_values(kept: Array, counts: NDArray[np.int64], values: str, clip: str = "search") -> dict[str, Array]:
    """The live values as they are stored: ``values``, for int8 ``scales``, for int4 ``scales`` and ``lows``.

    Args:
        kept: live values, row by row.
        counts: live entries of each row.
        values: one of :data:`VALUE_TYPES`.
        clip: one of :data:`recbole_prune.artifact.int4.CLIPS`, for int4.

    Raises:
        ArtifactError: a value does not fit.
    """
    if values == "fp32":
        return {"values": kept}
    if not np.isfinite(kept).all():
        raise ArtifactError(f"a value is not finite, so it cannot be stored as {values}: use fp32")
    if values == "int8":
        return _store_int8(kept.astype(np.float32), counts[counts > 0])
    with np.errstate(over="ignore"):
        halves = kept.astype(np.float16)
    if not np.isfinite(halves).all():
        largest = float(np.abs(kept).max())
        raise ArtifactError(f"the largest value is {largest:g}, more than {values} holds (65504): use fp32")
    if values == "fp16":
        return {"values": halves}
    packed, lows, scales = int4.quantize(kept, counts[counts > 0], clip)
    return {"values": packed, "lows": lows, "scales": scales}


def restore_values(parts: Mapping[str, Array], stored: Array, counts: NDArray[np.int64], dtype: str) -> Array:
    """Stored live values in the decoded dtype, the parts being as :func:`wrong_rows` wants them.

    Args:
        parts: of a tensor.
        stored: its ``values``, or those of them that are live.
        counts: live entries of each row.
        dtype: of the decoded tensor.
    """
    if "scales" not in parts:
        return stored.astype(dtype)
    occupied = counts[counts > 0]
    if "lows" in parts:
        return int4.dequantize(stored, occupied, parts["lows"], parts["scales"]).astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return (stored.astype(np.float32) * np.repeat(parts["scales"].astype(np.float32), occupied)).astype(dtype)


def rounding_error(parts: Mapping[str, Array], decoded: Array, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Largest distance of each decoded live value from the one that was stored; 0 where it is exact.

    float16: half a unit in the last place; int8: half a step of the row's scale, and a little for float32 arithmetic;
    int4: half a step and a little, at both ends of a row's range with what may have been cut off.

    Args:
        parts: of a tensor.
        decoded: its live values as :func:`restore_values` gives them.
        counts: live entries of each row.
    """
    occupied = counts[counts > 0]
    if "lows" in parts:
        return int4.rounding_error(parts["values"], occupied, parts["lows"], parts["scales"])
    if "scales" in parts:
        return 0.5001 * np.repeat(parts["scales"].astype(np.float64), occupied)
    if parts["values"].dtype == decoded.dtype:
        return np.zeros(decoded.shape)
    error: NDArray[np.float64] = np.maximum(np.abs(decoded.astype(np.float64)) * 2.0**-11, 2.0**-25) * 1.001
    return error


def _store_int8(kept: NDArray[np.float32], occupied: NDArray[np.int64]) -> dict[str, Array]:
    if not kept.size:
        return {"values": kept.astype(np.int8), "scales": np.zeros(0, dtype=np.float16)}
    starts = np.concatenate([[0], np.cumsum(occupied)[:-1]])
    # in float64, where a subnormal float32 divided by 127 does not become 0
    wanted = np.maximum.reduceat(np.abs(kept), starts).astype(np.float64) / 127
    with np.errstate(over="ignore"):
        scales = wanted.astype(np.float16)
        # a scale rounded down would clip the row's largest value
        scales = np.where(scales < wanted, np.nextafter(scales, np.float16(np.inf)), scales)
    if not np.isfinite(scales).all():
        raise ArtifactError(f"the largest value is {float(np.abs(kept).max()):g}, too large for int8: use fp32")
    divisors = np.where(scales > 0, scales, np.float16(1)).astype(np.float32)
    codes = np.rint(kept / np.repeat(divisors, occupied))
    return {"values": codes.astype(np.int8), "scales": scales}
