"""The search for entries that are not 0, compiled by numba; imported only where numba is available."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import compile_loop

_AT_ONCE = 16  # one cache line: most of them hold nothing


@compile_loop
def find(
    vector: NDArray[np.float32], bits: NDArray[np.int32], positions: NDArray[np.int32], values: NDArray[np.float32]
) -> int:
    """Positions and values of the entries that are not 0; how many there are.

    Args:
        vector: entries.
        bits: the same memory.
        positions, values: filled from the start; as long as ``vector``.
    """
    count, whole = 0, vector.size - vector.size % _AT_ONCE
    for start in range(0, whole, _AT_ONCE):
        some = np.int32(0)
        for i in range(start, start + _AT_ONCE):
            some |= bits[i]
        if some:
            for i in range(start, start + _AT_ONCE):
                positions[count], values[count] = i, vector[i]
                count += vector[i] != 0
    for i in range(whole, vector.size):
        positions[count], values[count] = i, vector[i]
        count += vector[i] != 0
    return count
