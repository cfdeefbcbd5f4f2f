"""Random masks to train from scratch: exact, Bernoulli and Erdos-Renyi densities, rows live in the same columns or in
equally many."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch

from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scope import Scope, Target

INITS = ("exact", "bernoulli", "erk", "aligned")
# entries drawn together; a block of a large table at a time needs no score per entry
_BLOCK = 1 << 22


def kept_by_target(scope: Scope, density: float, init: str) -> dict[str, int]:
    """Live entries of every target.

    Args:
        density: live fraction of all prunable entries.
        init: ``exact``, ``aligned`` and ``bernoulli``: the same density in every tensor (expected, for ``bernoulli``);
            ``erk``: density in proportion to (sum of the dimensions) / (product of the dimensions), Erdos-Renyi-kernel
            (Evci et al., arXiv 1911.11134, section 3), at most 1, the same total.
    """
    if init != "erk":
        return {target.name: round(density * target.prunable) for target in scope}
    densities = _erk(scope, density)
    return {target.name: round(densities[target.name] * target.prunable) for target in scope}


def _erk(scope: Scope, density: float) -> dict[str, float]:
    shares = {t.name: (t.rows + sum(t.shape[1:])) / t.prunable for t in scope}
    full: set[str] = set()
    while True:
        budget = density * scope.prunable - sum(scope[name].prunable for name in full)
        rest = {name: share for name, share in shares.items() if name not in full}
        if not rest:
            return dict.fromkeys(shares, 1.0)
        scale = budget / sum(share * scope[name].prunable for name, share in rest.items())
        over = {name for name, share in rest.items() if scale * share > 1}
        if not over:
            return {name: 1.0 if name in full else scale * shares[name] for name in shares}
        full |= over


def random_masks(
    scope: Scope, kept: Mapping[str, int], init: str, seed: int, without_empty_rows: Collection[str] = ()
) -> MaskSet:
    """Uniformly random masks; padding rows are live and not counted.

    With ``aligned`` the rows of embedding tables are drawn together instead: see :func:`_aligned`. Weight matrices have
    no rows that are multiplied with each other and are drawn as for ``exact``.

    Args:
        kept: live entries of every target; for ``bernoulli`` their expected number: every entry is live on its own.
        seed: decides the draw, with the position of the target in the scope.
        without_empty_rows: targets in which every row gets an entry, where there are enough for that.
    """
    masks = {}
    for number, target in enumerate(scope):
        generator = np.random.default_rng([seed, number])
        if init == "aligned" and target.kind == "embedding":
            masks[target.name] = _aligned(target, kept[target.name], seed, generator).view(target.shape)
            continue
        mask = torch.ones(target.shape[0], target.width, dtype=torch.bool)
        rows = target.countable().nonzero().view(-1)
        for start, count in _shares(target, kept[target.name], init, generator):
            block = rows[start : start + _rows_at_once(target)]
            entries = len(block) * target.width
            drawn = torch.zeros(entries, dtype=torch.bool)
            drawn[torch.from_numpy(generator.permutation(entries)[:count])] = True
            mask[block] = drawn.view(len(block), target.width)
        if target.name in without_empty_rows:
            _fill_empty_rows(mask, rows, generator)
        masks[target.name] = mask.view(target.shape)
    return MaskSet(scope, masks)


def equal_rows(scope: Scope, each: int, seed: int) -> MaskSet:
    """Every row live in ``each`` columns of its own, uniformly random, or in all where it has no more.

    Args:
        seed: decides the draw, with the position of the target in the scope.
    """
    masks = {}
    for number, target in enumerate(scope):
        generator = np.random.default_rng([seed, number])
        table = np.zeros((target.shape[0], target.width), dtype=bool)
        table[:, :each] = True
        generator.permuted(table, axis=1, out=table)
        table[list(target.padding_rows)] = True
        masks[target.name] = torch.from_numpy(table).view(target.shape)
    return MaskSet(scope, masks)


def _aligned(target: Target, kept: int, seed: int, generator: np.random.Generator) -> torch.Tensor:
    """Every row live in the same columns, the first ones of an order that all tables of a width share.

    Two rows of random masks of density d share d * d of their columns, which is what their product is learned from; of
    these masks they share d. Where ``kept`` is no multiple of the rows, the rest goes to the next column of drawn rows.

    Returns:
        boolean, shape ``[rows of the tensor, width]``; padding rows are live.
    """
    order = np.random.default_rng([seed, target.width]).permutation(target.width)
    columns, rest = divmod(kept, target.rows)
    mask = torch.zeros(target.shape[0], target.width, dtype=torch.bool)
    mask[:, torch.from_numpy(order[:columns])] = True
    if rest:
        rows = target.countable().nonzero().view(-1)
        mask[rows[torch.from_numpy(generator.permutation(target.rows)[:rest])], order[columns]] = True
    mask[list(target.padding_rows)] = True
    return mask


def _fill_empty_rows(mask: torch.Tensor, rows: torch.Tensor, generator: np.random.Generator) -> None:
    """Move live entries of ``rows``, drawn where a row has several, into those that have none."""
    part = mask[rows]
    empty = torch.nonzero(~part.any(dim=1)).view(-1)
    spare = torch.nonzero(part & (part.cumsum(dim=1) > 1))
    moved = spare[torch.from_numpy(generator.permutation(len(spare))[: len(empty)])]
    empty = empty[: len(moved)]
    part[moved[:, 0], moved[:, 1]] = False
    part[empty, torch.from_numpy(generator.integers(part.shape[1], size=len(empty)))] = True
    mask[rows] = part


def _rows_at_once(target: Target) -> int:
    return max(1, _BLOCK // target.width)


def _shares(target: Target, kept: int, init: str, generator: np.random.Generator) -> list[tuple[int, int]]:
    """First row and live entries of every block: how a uniform draw over the whole table falls on its blocks."""
    blocks = []
    left, live = target.prunable, kept
    for start in range(0, target.rows, _rows_at_once(target)):
        entries = min(_rows_at_once(target), target.rows - start) * target.width
        if init == "bernoulli":
            count = int(generator.binomial(entries, kept / target.prunable))
        else:
            count = live if entries == left else int(generator.hypergeometric(live, left - live, entries))
        blocks.append((start, count))
        left, live = left - entries, live - count
    return blocks
