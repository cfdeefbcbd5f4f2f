"""Values drawn uniformly among those that a key has not used."""

from __future__ import annotations

import numpy as np

from recbole_prune.data.used_ids import UsedIds


def draw_outside(used: UsedIds, count: int, first: int, stream: np.random.Generator) -> np.ndarray:
    """Draw values that a key has not used, uniformly and without replacement.

    Args:
        used: what each key must not get.
        count: values for each key.
        first: the smallest value; those below are padding.
        stream: random numbers.

    Returns:
        values ``[keys, count]`` in no order, -1 where a key has fewer left.
    """
    keys, values = used.key_count, used.value_count
    left = values - first - np.diff(used.offsets)  # padding is never used
    drawn = np.full((keys, count), -1, dtype=np.int64)
    rows = np.flatnonzero(left >= 2 * count)
    pending = np.repeat(rows, count), np.tile(np.arange(count), len(rows))
    while len(pending[0]):
        drawn[pending] = stream.integers(first, values, len(pending[0]))
        wrong = used.contains(pending[0], drawn[pending])
        wrong |= _repeated(drawn, pending)
        pending = pending[0][wrong], pending[1][wrong]
    for row in np.flatnonzero((left < 2 * count) & (left > 0)):
        free = np.setdiff1d(np.arange(first, values), used.values_of(int(row)), assume_unique=True)
        chosen = stream.permutation(free)[:count]
        drawn[row, : len(chosen)] = chosen
    return drawn


def draw_unused(used: UsedIds, count: int, first: int, stream: np.random.Generator) -> np.ndarray:
    """Draw values that a key has not used, uniformly and with replacement.

    Args:
        used: what each key must not get; none of it is below ``first``.
        count: values for each key.
        first: the smallest value; those below are padding.
        stream: random numbers.

    Returns:
        values ``[keys, count]``, -1 for a key that has used all.
    """
    taken = np.diff(used.offsets)
    left = used.value_count - first - taken
    places = (stream.random((used.key_count, count)) * left[:, None]).astype(np.int64)
    # a value stands behind as many unused ones as there are values below it that are not used
    keys, values = np.divmod(used.codes, used.value_count)
    unused_below = values - first - (np.arange(len(values)) - used.offsets[keys])
    starts = np.arange(used.key_count)[:, None] * np.int64(used.value_count)
    skipped = np.searchsorted(keys * used.value_count + unused_below, starts + places, side="right")
    drawn = first + places + skipped - used.offsets[:-1, None]
    return np.where(left[:, None] > 0, drawn, -1)


def _repeated(drawn: np.ndarray, pending: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Which of the values at the places ``pending`` stand in their row already, or at an earlier such place."""
    begins = np.append(True, pending[0][1:] != pending[0][:-1])  # those of a row stand together
    rows, place_of_row = pending[0][begins], np.cumsum(begins) - 1
    count = drawn.shape[1]
    fresh = np.zeros((len(rows), count), dtype=np.int64)
    fresh[place_of_row, pending[1]] = 1
    # of equal values the fresh ones come last
    ordered = np.sort((2 * drawn[rows] + fresh) * count + np.arange(count), axis=1)
    values = ordered // (2 * count)
    again, places = np.nonzero(values[:, 1:] == values[:, :-1])
    found = np.zeros((len(rows), count), dtype=bool)
    found[again, ordered[again, places + 1] % count] = True
    repeated: np.ndarray = found[place_of_row, pending[1]]
    return repeated
