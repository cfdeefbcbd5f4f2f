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


def sparsity_of_budget(budget: float, value_bits: int = 32) -> float:
    """The sparsity at which a mask and its values take a share of the dense bytes, to six digits.

    Args:
        budget: that share, above 0 and below 1.
        value_bits: bits of one value.
    """
    low, high = 0.0, 1.0  # the bound falls from the whole to nothing, but for the first 2**-value_bits
    for _ in range(60):
        middle = (low + high) / 2
        entries = 1 << 40
        share = information_bound_bits(entries, round(entries * (1 - middle)), value_bits) / (entries * value_bits)
        low, high = (middle, high) if share > budget else (low, middle)
    return round(high, 6)
