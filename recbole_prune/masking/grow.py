"""One prune-and-grow update of a mask: as many entries grow as are pruned.

Everything works on the flat positions ``row * width + column`` of a tensor that is read as a table.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch

from recbole_prune.masking.allocate import best

Positions = torch.Tensor
# above this many entries, random empty ones are drawn and checked instead of listed
_MANY = 1 << 24


def pruned_count(ratio: float, live: int) -> int:
    """Entries that an update replaces: ``ceil(ratio * live)``, at most all."""
    return min(live, ceil(ratio * live))


def smallest(positions: Positions, magnitudes: torch.Tensor, count: int, seed: int) -> Positions:
    """Positions of the ``count`` smallest magnitudes; among equal ones the seed decides.

    Args:
        positions: int64, shape ``[live]``.
        magnitudes: absolute values, shape ``[live]``.
    """
    return positions[best(-magnitudes, count, seed)] if count else positions[:0]


def largest_of_rows(positions: Positions, magnitudes: torch.Tensor, width: int) -> torch.Tensor:
    """Which positions have the largest magnitude of their row, one in each; boolean, shape ``[live]``.

    Args:
        positions: int64, shape ``[live]``.
        magnitudes: absolute values, shape ``[live]``.
        width: entries in a row of the table.
    """
    rows = torch.div(positions, width, rounding_mode="floor")
    order = magnitudes.sort(descending=True, stable=True).indices
    order = order[rows[order].sort(stable=True).indices]
    first = torch.ones(len(order), dtype=torch.bool, device=positions.device)
    first[1:] = rows[order][1:] != rows[order][:-1]
    result = torch.zeros_like(first)
    result[order[first]] = True
    return result


def grow_by_score(
    empty: torch.Tensor, rows: torch.Tensor | None, scores: torch.Tensor, count: int, seed: int
) -> Positions:
    """Up to ``count`` empty positions with the largest positive scores; among equal ones the seed decides.

    Args:
        empty: True where an entry may grow, shape ``[rows of the tensor, width]``.
        rows: rows that ``scores`` are given for, None: all.
        scores: absolute gradients, shape ``[rows, width]``.

    Returns:
        fewer positions than ``count`` where fewer scores are positive: an entry without gradient has no score.
    """
    width = empty.shape[1]
    candidates = ((empty if rows is None else empty[rows]) & (scores > 0)).reshape(-1).nonzero().view(-1)
    found = scores.reshape(-1)[candidates]
    if len(candidates) > count:
        chosen = best(found, count, seed) if count else candidates[:0]
        candidates = candidates[chosen]
    if rows is None:
        return candidates
    return rows[candidates // width] * width + candidates % width


def grow_at_random(empty: torch.Tensor, count: int, seed: int) -> Positions:
    """``count`` uniformly drawn empty positions, each once.

    Raises:
        ValueError: fewer are empty.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = empty.reshape(-1)
    if flat.numel() <= _MANY or 4 * count > int(flat.sum()):
        candidates = flat.nonzero().view(-1)
        if len(candidates) < count:
            raise ValueError(f"{count} entries cannot grow: only {len(candidates)} are empty")
        return candidates[torch.randperm(len(candidates), generator=generator)[:count].to(flat.device)]
    drawn = torch.zeros(0, dtype=torch.int64, device=flat.device)
    while len(drawn) < count:
        more = torch.randint(flat.numel(), (max(1024, 2 * count),), generator=generator).to(flat.device)
        drawn = torch.cat([drawn, more[flat[more]]])
        drawn = _first_occurrences(drawn)[:count]
    return drawn


def _first_occurrences(positions: Positions) -> Positions:
    """Without repetitions, in the order of first occurrence."""
    if not len(positions):
        return positions
    _, place = torch.unique(positions, return_inverse=True)
    first = torch.full((int(place.max()) + 1,), len(positions), device=positions.device)
    first.scatter_reduce_(0, place, torch.arange(len(positions), device=positions.device), "amin")
    return positions[first.sort().values]


def update(
    mask: torch.Tensor,
    countable: torch.Tensor,
    positions: Positions,
    magnitudes: torch.Tensor,
    ratio: float,
    grow: Callable[[torch.Tensor, int], Positions],
    seed: int,
    keep_rows: bool = False,
) -> torch.Tensor:
    """Prune the smallest live entries and grow as many others (Wang et al., arXiv 2402.02855, section 3.1).

    Args:
        mask: boolean, shape ``[rows, width]``; True is live.
        countable: False on padding rows, shape ``[rows]``; these neither shrink nor grow.
        positions: the live positions of countable rows, ascending.
        magnitudes: their absolute weights.
        ratio: fraction of the live entries that is replaced.
        grow: called with the empty entries (boolean, as ``mask``; what was just pruned is empty) and the number wanted;
            what it returns is filled up with random positions.
        seed: decides ties and random positions.
        keep_rows: the largest entry of each row stays, so that none becomes empty.

    Returns:
        a new mask with exactly as many live entries.
    """
    count = pruned_count(ratio, len(positions))
    if keep_rows:
        others = ~largest_of_rows(positions, magnitudes, mask.shape[1])
        positions, magnitudes = positions[others], magnitudes[others]
        count = min(count, len(positions))
    new = mask.clone()
    new.view(-1)[smallest(positions, magnitudes, count, seed)] = False
    empty = ~new & countable[:, None]
    grown = grow(empty, count)
    new.view(-1)[grown] = True
    if len(grown) < count:
        empty.view(-1)[grown] = False
        new.view(-1)[grow_at_random(empty, count - len(grown), seed + 1)] = True
    return new


def update_official(mask: torch.Tensor, weights: torch.Tensor, gradients: torch.Tensor, ratio: float) -> torch.Tensor:
    """The rule of the DSL code (shuyao-wang/DSL, core.py), its leak included.

    The threshold is the (z + k)-th smallest magnitude of the whole tensor, z entries being empty, and strict. Live
    entries take part in the growth with score 0, so that the budget shrinks where fewer empty entries than were pruned
    have a gradient.

    Args:
        mask: boolean, any shape, without padding rows.
        weights: of the same shape; pruned entries are 0.
        gradients: dense gradient of the batch just trained on.
    """
    flat, magnitudes = mask.reshape(-1), weights.reshape(-1).abs()
    live = int(flat.sum())
    rank = flat.numel() - live + pruned_count(ratio, live)
    kept = magnitudes > magnitudes.kthvalue(rank).values if rank else flat.clone()
    scores = gradients.reshape(-1).abs() * ~kept
    grown = scores.sort(descending=True, stable=True).indices[: live - int(kept.sum())]
    kept[grown] = True
    return kept.view(mask.shape)
