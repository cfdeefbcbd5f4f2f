"""k-means with numpy alone: equal numbers from equal seeds, whatever the number of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

STEPS = 25
# above so many rows, centroids are found on a sample of them
MOST_ROWS = 200_000
SAMPLED_ROWS = 65_536
_ROWS_AT_ONCE = 1 << 9  # their distances from 256 centroids stay in a core's cache


def k_means(rows: Array, clusters: int, draw: np.random.RandomState) -> tuple[NDArray[np.int64], Array]:
    """Codes and centroids of rows, from one start of k-means++ (Arthur and Vassilvitskii, SODA 2007) and Lloyd's steps.

    Args:
        rows: ``[n, d]``, at least one.
        clusters: k, from 1 to n; fewer different rows give fewer centroids that are used, the others are 0.
        draw: random numbers.

    Returns:
        for every row the nearest centroid ``[n]``, and the centroids ``[k, d]`` in float64.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float64)
    shift = rows.mean(axis=0)  # distances of rows far from 0 would lose their digits
    rows = rows - shift
    sample = rows
    if len(rows) > MOST_ROWS:
        sample = rows[np.sort(draw.choice(len(rows), SAMPLED_ROWS, replace=False))]
    centroids = _first(sample, clusters, draw)
    codes = _nearest(sample, centroids)
    for _ in range(STEPS):
        centroids = _means(sample, codes, centroids)
        moved = _nearest(sample, centroids)
        if np.array_equal(moved, codes):
            break
        codes = moved
    if sample is not rows:
        codes = _nearest(rows, centroids)
    unused = np.zeros((clusters - len(centroids), rows.shape[1]))
    return codes, np.vstack([centroids + shift, unused])


def _first(rows: Array, clusters: int, draw: np.random.RandomState) -> Array:
    """Rows drawn one after the other, each with the odds of its squared distance from those drawn before."""
    columns = np.ascontiguousarray(rows.T)
    chosen = [int(draw.randint(len(rows)))]
    distances = _from_row(columns, chosen[0])
    while len(chosen) < clusters:
        sums = np.cumsum(distances)
        if not sums[-1] > 0:  # no row differs from all that were drawn
            break
        place = int(np.searchsorted(sums, draw.random_sample() * sums[-1], side="right"))
        chosen.append(min(place, int(np.flatnonzero(distances)[-1])))
        np.minimum(distances, _from_row(columns, chosen[-1]), out=distances)
    first: Array = rows[chosen]
    return first


def _from_row(columns: Array, row: int) -> Array:
    """Squared distances of all rows, given column by column, from one of them."""
    total = np.zeros(columns.shape[1])
    for column in columns:
        total += np.square(column - column[row])
    return total


def _nearest(rows: Array, centroids: Array) -> NDArray[np.int64]:
    """For every row the nearest centroid, the first of equally near ones."""
    codes = np.empty(len(rows), dtype=np.int64)
    squares, twice = np.square(centroids).sum(axis=1), -2 * np.ascontiguousarray(centroids.T)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        distances = rows[start : start + _ROWS_AT_ONCE] @ twice
        distances += squares
        codes[start : start + _ROWS_AT_ONCE] = distances.argmin(axis=1)
    return codes


def _means(rows: Array, codes: NDArray[np.int64], centroids: Array) -> Array:
    """The mean of every cluster; one without rows takes the place of the row that is farthest from its centroid."""
    clusters = len(centroids)
    counts = np.bincount(codes, minlength=clusters)
    sums = np.stack([np.bincount(codes, weights=column, minlength=clusters) for column in rows.T], axis=1)
    means: Array = sums / np.maximum(counts, 1)[:, None]
    empty = np.flatnonzero(counts == 0)
    if empty.size:
        distances = np.square(rows - centroids[codes]).sum(axis=1)
        means[empty] = rows[np.argsort(-distances, kind="stable")[: empty.size]]
    return means
