"""Masks that are zero on whole units, and the units of a mask."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from recbole_prune.anatomy.units.groups import Along, Anatomy
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scope import Scope, Target

# of a group, by its name, the units that stay, ascending
Units = Mapping[str, torch.Tensor]


def all_units(anatomy: Anatomy) -> dict[str, torch.Tensor]:
    """Every unit of every group."""
    return {group.name: torch.arange(group.count) for group in anatomy}


def per_unit(tensor: torch.Tensor, place: Along, count: int, target: Target | None = None) -> torch.Tensor:
    """Sums of a tensor over what belongs to each unit, in double precision, ``[count]``.

    Args:
        tensor: of values.
        place: where the units lie in it.
        count: of units.
        target: whose padding rows count nothing; None counts all.
    """
    values = tensor.double()
    if target is not None and target.padding_rows and place.axis:
        values = values * target.countable(values.device).view(-1, *(1 for _ in values.shape[1:]))
    others = [axis for axis in range(values.dim()) if axis != place.axis]
    along = values.sum(others) if others else values
    owners = place.owners(len(along), count).to(along.device)
    sums = along.new_zeros(count + 1).index_add_(0, owners.where(owners >= 0, owners.new_tensor(count)), along)
    return sums[:count]


def units_of(anatomy: Anatomy, masks: MaskSet) -> dict[str, torch.Tensor]:
    """The units of each group of which a mask leaves anything, ascending; of groups outside of the scope all."""
    kept = {}
    for group in anatomy:
        live = torch.zeros(group.count, dtype=torch.float64)
        inside = [place for place in group.places if place.tensor in masks]
        for place in inside:
            live += per_unit(masks[place.tensor].cpu(), place, group.count, masks.scope[place.tensor])
        kept[group.name] = live.nonzero()[:, 0] if inside else torch.arange(group.count)
    return kept


def masks_of(anatomy: Anatomy, kept: Units, scope: Scope, model: nn.Module) -> MaskSet:
    """The masks that are zero on all units but the kept ones.

    Args:
        anatomy: of the model.
        kept: units by group, ascending; of other groups all stay.
        scope: the targets.
        model: with tensors as large as the groups say.
    """
    masks = {target.name: torch.ones(target.shape, dtype=torch.bool) for target in scope}
    for name, zeroed in zeros_of(anatomy, kept, model).items():
        if name in masks:
            masks[name] &= ~zeroed
            masks[name][list(scope[name].padding_rows)] = True
    return MaskSet(scope, masks)


def live_of(anatomy: Anatomy, masks: MaskSet, model: nn.Module) -> dict[str, torch.Tensor]:
    """Which entries of parameters are live under masks that are zero on whole units, by name.

    All that belongs to a unit that is gone counts as pruned: biases too, and the columns of padding rows.

    Args:
        anatomy: of the model.
        masks: of the targets.
        model: with tensors as large as the groups say.
    """
    live = dict(masks)
    for name, zeros in zeros_of(anatomy, units_of(anatomy, masks), model).items():
        live[name] = live.get(name, ~zeros) & ~zeros
    return live


def zeros_of(anatomy: Anatomy, kept: Units, model: nn.Module) -> dict[str, torch.Tensor]:
    """Where parameters are 0 once only the kept units are left, padding rows included, by name."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    zeros = {}
    for name, axes in anatomy.positions(kept, model).items():
        if name in shapes:
            live = torch.ones(shapes[name], dtype=torch.bool)
            for axis, positions in axes.items():
                gone = torch.ones(shapes[name][axis], dtype=torch.bool)
                gone[positions] = False
                live.index_fill_(axis, gone.nonzero()[:, 0], False)
            zeros[name] = ~live
    return zeros
