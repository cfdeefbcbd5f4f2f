"""Bytes of a pruned matrix in the formats that hold one, by their formulas."""

from __future__ import annotations

from collections.abc import Iterable

_POINTER, _LONG = 4, 8  # bytes of a 32-bit and of a 64-bit number
_NARROW = 256  # columns that one byte tells apart
DENSE, BITMAP = "dense", "bitmap"


def bytes_by_format(rows: int, columns: int, live: int, width: int = 4) -> dict[str, int]:
    """Bytes of a matrix.

    Args:
        rows, columns: its shape.
        live: entries that are not pruned.
        width: bytes of a value.

    Returns:
        by format: ``dense``; ``coo_int64`` and ``csr_int64`` as torch has them; ``csr_int32`` as scipy; ``index_lists``
        (a byte for each column number, up to 256 columns); ``bitmap``; ``bitmap_rows`` (with pointers to rows).
    """
    bits = -(-rows * columns // 8)
    found = {
        DENSE: width * rows * columns,
        "coo_int64": (width + 2 * _LONG) * live,
        "csr_int64": (width + _LONG) * live + _LONG * (rows + 1),
        "csr_int32": (width + _POINTER) * live + _POINTER * (rows + 1),
        "index_lists": (width + 1) * live + _POINTER * (rows + 1),
        BITMAP: bits + width * live,
        "bitmap_rows": bits + width * live + _POINTER * (rows + 1),
    }
    if columns > _NARROW:
        del found["index_lists"]
    return found


def best_format(rows: int, columns: int, live: int, width: int = 4) -> tuple[str, int]:
    """The smallest format and its bytes; dense where nothing is smaller."""
    return min(bytes_by_format(rows, columns, live, width).items(), key=lambda item: item[1])


def bytes_of_model(matrices: Iterable[tuple[int, int, int]], others: int, width: int = 4) -> dict[str, int]:
    """Bytes of all weights: every pruned matrix in one format, what is never pruned dense.

    Args:
        matrices: (rows, columns, live entries) of each.
        others: entries outside of them.
        width: bytes of a value.

    Returns:
        by format as :func:`bytes_by_format`, where all matrices have it, and ``best``: each in its smallest.
    """
    each = list(matrices)
    sizes = [bytes_by_format(*shape, width) for shape in each]
    common = [name for name in bytes_by_format(1, 1, 1) if all(name in size for size in sizes)]
    found = {name: width * others + sum(size[name] for size in sizes) for name in common}
    return {**found, "best": width * others + sum(min(size.values()) for size in sizes)}
