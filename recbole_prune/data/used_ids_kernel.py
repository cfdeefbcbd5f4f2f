"""Whether pairs are among many, asked in a loop compiled by numba; imported only where that is available."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import compile_loop

Whole = NDArray[np.integer]


@partial(compile_loop, alone=False)
def _is_among(codes: Whole, code: int) -> bool:
    low, high = 0, codes.size
    while low < high:
        middle = (low + high) // 2
        if codes[middle] < code:
            low = middle + 1
        else:
            high = middle
    return low < codes.size and codes[low] == code


@compile_loop
def contains(keys: Whole, values: Whole, counts: tuple[int, int], codes: Whole, bits: Whole, shift: np.uint64,
    hashes: tuple[np.uint64, np.uint64], found: NDArray[np.bool_],
) -> bool:  # fmt: skip
    """Whether each pair is there.

    Args:
        keys, values: the pairs, int64.
        counts: keys and values there are.
        codes: of the pairs that are there, ascending.
        bits: of all pairs, or of their hashes, eight in a byte.
        shift: of the hashes; 0 where there are none.
        hashes: factors.
        found: what is found, for every pair.

    Returns:
        whether all keys and values are in range; if not, nothing is looked for.
    """
    for i in range(keys.size):
        if keys[i] < 0 or keys[i] >= counts[0] or values[i] >= counts[1]:
            return False
    for i in range(keys.size):
        code = keys[i] * counts[1] + values[i]
        if values[i] < 0:
            found[i] = False
        elif shift == 0:
            found[i] = (bits[code >> 3] >> (code & 7)) & 1
        else:
            first, second = (np.uint64(code) * hashes[0]) >> shift, (np.uint64(code) * hashes[1]) >> shift
            one = bits[first >> np.uint64(3)] >> (first & np.uint64(7))
            two = bits[second >> np.uint64(3)] >> (second & np.uint64(7))
            found[i] = (one & two & np.uint64(1)) != 0 and _is_among(codes, code)
    return True
