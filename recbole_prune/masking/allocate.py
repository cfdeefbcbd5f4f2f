"""Scores and a budget in, exact masks out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from recbole_prune.errors import ConfigError, TrainingError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scope import Scope


def select(
    scores: Mapping[str, torch.Tensor],
    masks: MaskSet,
    keep: int,
    *,
    allocation: str = "global",
    min_per_row: int | Mapping[str, int] = 0,
    seed: int = 0,
) -> MaskSet:
    """Keep exactly ``keep`` live entries, those with the highest scores.

    Args:
        scores: one tensor per target, of its shape; higher matters more.
        masks: the current masks; pruned entries stay pruned.
        keep: live entries after the call, padding not counted.
        allocation: ``global`` (one threshold over all targets: the papers' ``join``) or ``tensor``
            (every target gets its share of ``keep`` by size, largest remainders first) or ``row`` (every row keeps
            its :func:`entries_per_row` best live entries, so more than ``keep`` may stay).
        min_per_row: so many of a row's best live entries are never removed; one number, or one for each target. Not
            for ``row``, which keeps one at least.
        seed: decides among equal scores.

    Returns:
        masks nested in ``masks`` with exactly ``keep`` live entries; with ``row`` the sum of :func:`kept_in_rows`.

    Raises:
        ConfigError: ``keep`` exceeds the live entries, or the protected entries exceed ``keep``.
        TrainingError: a score is NaN.
    """
    scope = masks.scope
    live = {t.name: masks[t.name].cpu() & _countable(t.name, scope) for t in scope}
    for name in live:
        if bool(torch.isnan(scores[name][live[name]]).any()):
            raise TrainingError(f"{name} holds NaN: no score can be taken from it")
    names = [target.name for target in scope]
    if allocation == "row":
        each = entries_per_row(scope, keep)
        rows = {name: _best_of_rows(scores[name], live[name], each, seed) for name in names}
        return _with_padding(scope, rows, kept_in_rows(scope, each))
    groups = [names] if allocation == "global" else [[name] for name in names]
    quotas = [keep] if allocation == "global" else shares(scope, {n: int(part.sum()) for n, part in live.items()}, keep)
    minima = min_per_row if isinstance(min_per_row, Mapping) else dict.fromkeys(names, min_per_row)
    result = {}
    for group, quota in zip(groups, quotas):
        result.update(_select_in_group(scores, live, group, quota, scope, minima, seed))
    return _with_padding(scope, result, {})


def _with_padding(scope: Scope, masks: dict[str, torch.Tensor], wanted: Mapping[str, int]) -> MaskSet:
    """Masks whose padding rows are live.

    Raises:
        ConfigError: a target of ``wanted`` keeps another number of entries than it says.
    """
    for target in scope:
        kept = int(masks[target.name].sum())
        if kept != wanted.get(target.name, kept):
            raise ConfigError(
                f"cannot keep {wanted[target.name]} entries of {target.name} in equal rows (prune_allocation=row): "
                f"some rows have fewer live entries, and only {kept} stay"
            )
        masks[target.name][list(target.padding_rows)] = True
    return MaskSet(scope, masks)


def entries_per_row(scope: Scope, keep: int) -> int:
    """The fewest entries k for every row with which at least ``keep`` stay; narrower tables keep all of theirs.

    Constant fan-in, the k largest of each row, as Compressed ELSA prunes embeddings (zombak79/compressed_elsa).

    Raises:
        ConfigError: ``keep`` exceeds the entries.
    """
    widest = max(target.width for target in scope)
    for each in range(widest + 1):
        if sum(kept_in_rows(scope, each).values()) >= keep:
            return each
    raise ConfigError(f"cannot keep {keep} entries: only {scope.prunable} are live")


def kept_in_rows(scope: Scope, each: int) -> dict[str, int]:
    """Live entries of every target whose rows have ``each``, or all where a row has no more."""
    return {target.name: target.rows * min(each, target.width) for target in scope}


def counts_of_equal_rows(scope: Scope, counts: Sequence[int]) -> list[int]:
    """What rows of equally many entries keep for a schedule; a round that would change no row is left out.

    Raises:
        ConfigError: none is left beside the first entry.
    """
    kept = [sum(kept_in_rows(scope, entries_per_row(scope, count)).values()) for count in counts[1:]]
    found = [counts[0], *(count for count in dict.fromkeys(kept) if count < counts[0])]
    if len(found) == 1 < len(counts):
        widest = max(target.width for target in scope)
        raise ConfigError(
            f"prune_allocation=row keeps equally many entries in each of {sum(t.rows for t in scope)} rows, and a "
            f"sparsity of {1 - counts[-1] / scope.prunable:.4f} removes none: rows of {widest} take steps of about "
            f"{1 / widest:.4f}, so raise prune_target_sparsity, prune_rate or prune_rounds"
        )
    return found


def select_official(
    scores: Mapping[str, torch.Tensor], masks: MaskSet, rate: float, *, allocation: str = "global"
) -> MaskSet:
    """The rule of the LTH-MRS code: threshold ``a[floor(rate * n)]`` over the sorted non-zero live scores, strict.

    It removes floor(rate * n) + 1 entries, all further ties, and live entries that are exactly 0.
    """
    scope = masks.scope
    names = [target.name for target in scope]
    result = {name: masks[name].cpu().clone() for name in names}
    for group in [names] if allocation == "global" else [[name] for name in names]:
        live = {name: masks[name].cpu() & _countable(name, scope) for name in group}
        population = torch.cat([scores[name][live[name]] for name in group])
        population = population[population > 0].sort().values
        if len(population) == 0:
            raise ConfigError("prune_parity=official: every live entry is exactly 0")
        threshold = population[int(rate * len(population))]
        for name in group:
            result[name] = torch.where(_countable(name, scope), live[name] & (scores[name] > threshold), result[name])
    return MaskSet(scope, result)


def _countable(name: str, scope: Scope) -> torch.Tensor:
    target = scope[name]
    return target.countable().view(-1, *[1] * (len(target.shape) - 1)).expand(target.shape)


def shares(scope: Scope, live: Mapping[str, int], keep: int) -> list[int]:
    """Split ``keep`` over the targets by size, never more than a target has live.

    Args:
        live: live entries of each target.
        keep: entries that stay, in all targets together.

    Raises:
        ConfigError: ``keep`` exceeds the live entries.
    """
    total = scope.prunable
    caps = [live[target.name] for target in scope]
    exact = [keep * target.prunable / total for target in scope]
    found = [min(cap, int(value)) for cap, value in zip(caps, exact)]
    order = sorted(range(len(found)), key=lambda i: (-(exact[i] - int(exact[i])), i))
    while (missing := keep - sum(found)) > 0:
        open_targets = [i for i in order if found[i] < caps[i]]
        if not open_targets:
            raise ConfigError(f"cannot keep {keep} entries: only {sum(caps)} are live")
        more = max(1, missing // len(open_targets))
        for i in open_targets[:missing]:
            found[i] = min(caps[i], found[i] + more)
    return found


def _select_in_group(
    scores: Mapping[str, torch.Tensor],
    live: Mapping[str, torch.Tensor],
    group: list[str],
    keep: int,
    scope: Scope,
    minima: Mapping[str, int],
    seed: int,
) -> dict[str, torch.Tensor]:
    """Masks of one population with one threshold."""
    flat_live = torch.cat([live[name].reshape(-1) for name in group])
    flat_scores = torch.cat([scores[name].reshape(-1).double() for name in group])
    available = int(flat_live.sum())
    if keep > available:
        raise ConfigError(f"cannot keep {keep} entries: only {available} are live")
    protected = torch.zeros_like(flat_live)
    if any(minima[name] for name in group):
        protected = torch.cat([_best_of_rows(scores[n], live[n], minima[n], seed).reshape(-1) for n in group])
        if int(protected.sum()) > keep:
            raise ConfigError(
                f"prune_min_per_row={max(minima.values())} protects {int(protected.sum())} entries, "
                f"but only {keep} may stay: lower prune_min_per_row or the sparsity"
            )
    chosen = protected.clone()
    candidates = torch.nonzero(flat_live & ~protected).reshape(-1)
    missing = keep - int(protected.sum())
    if missing:
        chosen[candidates[best(flat_scores[candidates], missing, seed)]] = True
    sizes = [live[name].numel() for name in group]
    return {name: part.view(scope[name].shape).clone() for name, part in zip(group, chosen.split(sizes))}


def best(scores: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Positions of the ``count`` highest scores; equal scores at the threshold are drawn by the seed."""
    threshold = torch.kthvalue(scores, len(scores) - count + 1).values
    above = torch.nonzero(scores > threshold).reshape(-1)
    ties = torch.nonzero(scores == threshold).reshape(-1)
    generator = torch.Generator().manual_seed(seed)
    drawn = ties[torch.randperm(len(ties), generator=generator)[: count - len(above)]]
    return torch.cat([above, drawn])


def _best_of_rows(scores: torch.Tensor, live: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """The ``count`` best live entries of each row; among equal scores those first in an order drawn by the seed."""
    flat = scores.reshape(len(scores), -1).double().masked_fill(~live.reshape(len(live), -1), -torch.inf)
    order = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed))
    top = order[flat[:, order].sort(dim=1, descending=True, stable=True).indices[:, :count]]
    chosen = torch.zeros(flat.shape, dtype=torch.bool).scatter_(1, top, True)
    return chosen.view(live.shape) & live
