"""The least that a mask and its values can take."""

from __future__ import annotations

import math


def information_bound_bits(entries: int, kept: int, value_bits: int) -> float:
    """Fewest bits for a random mask and its values: ``entries * (H2(s) + value_bits * (1 - s))``.

    Args:
        entries: entries of the table, live and pruned.
        kept: live entries; ``s = 1 - kept / entries`` is the sparsity, ``H2`` the binary entropy in bits.
        value_bits: bits of one value.
    """
    if entries == 0:
        return 0.0
    shares = (kept / entries, 1 - kept / entries)
    entropy = -sum(share * math.log2(share) for share in shares if share > 0)
    return entries * entropy + value_bits * kept
