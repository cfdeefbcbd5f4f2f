"""Draws of ranks and of columns without replacement, by weights."""

from __future__ import annotations

import math

import numpy as np

# ranks so many times the sharpness behind the last one to draw win in one row of fifty
_FEW_WIN = 6


def _exponentials(stream: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.maximum(stream.standard_exponential(shape, dtype=np.float32), np.finfo(np.float32).tiny)


def draw_ranks(
    lengths: np.ndarray, count: int, sharpness: float, longest: int, stream: np.random.Generator
) -> np.ndarray:
    """Draw ranks without replacement, a rank ``k`` with weight ``exp(-k / sharpness)``; ascending in every row.

    The exponential race (Efraimidis and Spirakis 2006): the ``count`` smallest of ``Exp(1) / weight`` are such a draw.
    Of the ranks behind the first few, which seldom win, only the first arrival is drawn, an exponential too (of their
    weights' sum). Where it wins they are drawn as well, and moved so that their first is that arrival: the distances
    from it are exponentials whatever it is.

    Args:
        lengths: how long each row's list is, ``[rows]``.
        count: ranks to draw for a row; rows with shorter lists get all of theirs.
        sharpness: the ``T`` of the paper.
        longest: width of the lists.
        stream: random numbers.

    Returns:
        0-based ranks ``[rows, count]``, -1 where a list has no more.
    """
    count = min(count, longest)
    near = min(longest, count + math.ceil(_FEW_WIN * sharpness))
    keys = np.log(_exponentials(stream, (len(lengths), near)))
    keys += np.arange(near, dtype=np.float32) / np.float32(sharpness)
    keys[np.arange(near) >= lengths[:, None]] = np.inf
    drawn = np.argpartition(keys, count - 1, axis=1)[:, :count]
    if near < longest:
        slowness = np.exp(np.minimum(np.arange(longest - near) / sharpness, 700.0))  # of the ranks behind, from 1
        weights = np.append(0.0, np.cumsum(1 / slowness))[(lengths - near).clip(min=0)]
        with np.errstate(divide="ignore"):
            arrivals = _exponentials(stream, (len(lengths),)) / weights
        last = np.take_along_axis(keys, drawn, axis=1).max(1)
        late = np.flatnonzero(np.log(arrivals) + near / sharpness < last)
        times = _exponentials(stream, (len(late), longest - near)) * slowness
        times[np.arange(near, longest) >= lengths[late, None]] = np.inf
        times += (arrivals[late] - times.min(1, initial=np.inf))[:, None]
        both = np.concatenate([keys[late], np.log(times) + near / sharpness], axis=1)
        drawn[late] = np.argpartition(both, count - 1, axis=1)[:, :count]
    drawn.sort(axis=1)
    # places beyond a list sort last, since a list begins at rank 0
    return np.where(drawn < lengths[:, None], drawn, -1)


def draw_weighted(log_weights: np.ndarray, count: int, stream: np.random.Generator) -> np.ndarray:
    """Draw columns without replacement by any weights: the race of :func:`draw_ranks` with all columns in it.

    Args:
        log_weights: logarithms of the weights, float32 ``[rows, columns]``; minus infinity is never drawn.
        count: columns to draw for a row.
        stream: random numbers.

    Returns:
        columns ``[rows, count]`` (at most all) in the order of the draw, -1 where a row has no more.
    """
    keys = np.log(_exponentials(stream, log_weights.shape)) - log_weights
    count = min(count, log_weights.shape[1])
    drawn = np.argpartition(keys, count - 1, axis=1)[:, :count]
    keys = np.take_along_axis(keys, drawn, axis=1)
    order = np.argsort(keys, axis=1)
    ended = np.isinf(np.take_along_axis(keys, order, axis=1))
    return np.where(ended, -1, np.take_along_axis(drawn, order, axis=1))
