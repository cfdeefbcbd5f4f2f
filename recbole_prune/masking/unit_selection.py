"""Which units go: their scores over all that belongs to them, and a choice that respects what has to stay equal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch

from recbole_prune.anatomy.units.groups import Anatomy, UnitGroup
from recbole_prune.masking.scope import Scope
from recbole_prune.masking.unit_masks import Units, per_unit


def group_scores(
    entries: Mapping[str, torch.Tensor], groups: Iterable[UnitGroup], scope: Scope, kept: Units
) -> dict[str, torch.Tensor]:
    """How much each unit matters: the mean over its slices of the sums of their entries' scores, over the group's mean.

    The division lets groups of one kind be ranked together (methods/attention_distillation_pruning.md, 5.2, after
    Torch-Pruning's group importance).

    Args:
        entries: a score of every entry, such as its square, by name of the target.
        groups: those to score.
        scope: whose targets count; padding rows do not.
        kept: units that are still there, by group.

    Returns:
        by group ``[count]``; infinite for units that are gone.
    """
    scores = {}
    for group in groups:
        inside = [place for place in group.places if place.tensor in entries]
        sums = [per_unit(entries[place.tensor], place, group.count, scope[place.tensor]).cpu() for place in inside]
        score = torch.stack(sums).mean(0)
        mean = score[kept[group.name]].mean()
        gone = torch.full_like(score, torch.inf)
        gone[kept[group.name]] = score[kept[group.name]] / mean if mean > 0 else score[kept[group.name]]
        scores[group.name] = gone
    return scores


# the mean score of the units that a step removes, and those units: group and number
Step = tuple[float, list[tuple[str, int]]]


@dataclass(frozen=True)
class _Set:
    """Groups that lose as many units as each other, chunk by chunk: of one step every chunk loses one unit."""

    groups: tuple[UnitGroup, ...]

    @property
    def size(self) -> int:
        """Units of the smallest chunk: so many steps would empty it."""
        return min(group.count // group.chunks for group in self.groups)

    @property
    def step(self) -> int:
        """Units that one step removes."""
        return sum(group.chunks for group in self.groups)

    def least(self, share: float) -> int:
        """Steps that stay untaken, where no layer loses more than ``share``."""
        return max(1, ceil((1 - share) * self.size - 1e-9))

    def steps(self, scores: Mapping[str, torch.Tensor]) -> list[Step]:
        """Which units each further step removes, and its mean score; the cheapest first."""
        ranked: list[list[tuple[float, str, int]]] = []
        for group in self.groups:
            size = group.count // group.chunks
            for chunk in range(group.chunks):
                part = scores[group.name][chunk * size : (chunk + 1) * size]
                order = part.sort(stable=True).indices[: int(part.isfinite().sum())]
                ranked.append([(float(part[unit]), group.name, chunk * size + int(unit)) for unit in order])
        return [
            (sum(score for score, _, _ in units) / len(units), [(name, unit) for _, name, unit in units])
            for units in zip(*ranked)
        ]


def _sets(groups: Sequence[UnitGroup]) -> Iterator[_Set]:
    alike: dict[str, list[UnitGroup]] = {}
    for group in groups:
        alike.setdefault(group.alike or f" {group.name}", []).append(group)
    return (_Set(tuple(members)) for members in alike.values())


def most_removed(groups: Sequence[UnitGroup], share: float) -> int:
    """How many units of one kind can go, where no layer loses more than ``share`` and none all."""
    return sum(each.step * (each.size - each.least(share)) for each in _sets(groups))


def select_units(
    scores: Mapping[str, torch.Tensor],
    groups: Sequence[UnitGroup],
    kept: Units,
    removed: int,
    *,
    share: float = 0.9,
    multiple: int = 1,
) -> dict[str, torch.Tensor]:
    """Keep all but the ``removed`` units of lowest score, which are chosen over all groups together.

    Args:
        scores: by group ``[count]``, infinite for units that are gone.
        groups: of one kind.
        kept: units that are still there, by group.
        removed: how many are gone afterwards, those that are gone already included; where a step of chunks that lose
            alike does not fit any more, fewer.
        share: the largest part of a layer that goes.
        multiple: of how many units every layer keeps a multiple (more units stay for it); 1 keeps any number.

    Returns:
        units that stay by group, ascending.
    """
    sets = list(_sets(groups))
    steps = [each.steps(scores) for each in sets]
    taken = _affordable(sets, steps, removed - sum(group.count - len(kept[group.name]) for group in groups), share)
    gone: set[tuple[str, int]] = set()
    for own, count in zip(steps, taken):
        given_back = -(len(own) - count) % multiple
        gone.update(unit for _, units in own[: max(0, count - given_back)] for unit in units)
    return {
        group.name: torch.tensor([unit for unit in kept[group.name].tolist() if (group.name, unit) not in gone])
        for group in groups
    }


def _affordable(sets: Sequence[_Set], steps: Sequence[Sequence[Step]], budget: int, share: float) -> list[int]:
    """How many steps of each set are taken, the cheapest of all first; a set stops at the first that does not fit."""
    taken, stopped = [0] * len(sets), [False] * len(sets)
    free = [own[: max(0, len(own) - each.least(share))] for each, own in zip(sets, steps)]
    rungs = sorted((score, number) for number, own in enumerate(free) for score, _ in own)
    for _, number in rungs:  # those of a set ascend, so that each is its next
        stopped[number] |= sets[number].step > budget
        if not stopped[number]:
            budget -= sets[number].step
            taken[number] += 1
    return taken


def units_removed(fractions: Sequence[float], count: int) -> list[int]:
    """Units of a kind that are gone at each ticket: ``floor(fraction * count + 0.5)``."""
    return [int(fraction * count + 0.5 + 1e-9) for fraction in fractions]


def of_kinds(anatomy: Anatomy, kinds: Iterable[str]) -> dict[str, list[UnitGroup]]:
    """The groups of each kind that the model has, in the order of ``kinds``."""
    found = {kind: [group for group in anatomy if group.kind == kind] for kind in kinds}
    return {kind: groups for kind, groups in found.items() if groups}
