"""Number formats of stored values.

``fp32``  exactly what is given, in whatever dtype;
``fp16``  rounded to half precision;
``int8``  symmetric, value = code * scale with codes from -127 to 127 and one float16 scale for each row that has a live
          entry. The scale is rounded up, so no value is clipped. A scale for the whole table would save 2 bytes a row
          and cost the quiet rows most of their precision.

``fp16`` and ``int8`` are for floating tensors of at least two dimensions: biases, norms and running statistics are
small and sensitive, so they stay exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_prune.errors import ArtifactError

Array = NDArray[Any]

VALUE_TYPES = ("fp32", "fp16", "int8")
# dtypes of a decoded tensor, by numpy's names: what safetensors holds
DTYPES = tuple("float64 float32 float16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool complex64".split())


def has_nan(values: Array) -> bool:
    """Whether a value is NaN."""
    return values.dtype.kind in "fc" and bool(np.isnan(values).any())


def wrong_type(parts: Mapping[str, Array], dtype: str, dimensions: int) -> str | None:
    """What is wrong with the types of a tensor's parts, None where nothing is.

    Args:
        parts: ``values``, ``scales`` and positions, as :mod:`recbole_prune.artifact.encoding` names them.
        dtype: of the decoded tensor.
        dimensions: of the decoded tensor.
    """
    rounded = dimensions > 1 and dtype in ("float32", "float64")
    wanted = {
        **dict.fromkeys(("bitmap", "counts", "columns", "row_bits", "column_bits"), "uint8"),
        "scales": "float16",
        "values": dtype,
    }
    if "scales" in parts:
        wanted["values"] = "int8" if rounded else "unscaled"
    elif rounded and parts["values"].dtype.name == "float16":
        wanted["values"] = "float16"
    for name, part in parts.items():
        if part.ndim != 1:
            return f"{name} must have one dimension, but has shape {list(part.shape)}"
        if part.dtype.name != wanted[name]:
            return f"{name} must be {wanted[name]}, but is {part.dtype.name}"
    return None


def store_values(kept: Array, counts: NDArray[np.int64], values: str) -> dict[str, Array]:
    """The live values as they are stored: ``values``, and ``scales`` for int8.

    Args:
        kept: live values, row by row.
        counts: live entries of each row.
        values: one of :data:`VALUE_TYPES`.

    Raises:
        ArtifactError: a value does not fit.
    """
    if values == "fp32":
        return {"values": kept}
    if not np.isfinite(kept).all():
        raise ArtifactError(f"a value is not finite, so it cannot be stored as {values}: use fp32")
    if values == "fp16":
        largest = float(np.abs(kept).max(initial=0.0))
        with np.errstate(over="ignore"):
            stored = kept.astype(np.float16)
        if not np.isfinite(stored).all():
            raise ArtifactError(f"the largest value is {largest:g}, more than fp16 holds (65504): use fp32")
        return {"values": stored}
    return _store_int8(kept.astype(np.float32), counts[counts > 0])


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
