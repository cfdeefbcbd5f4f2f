"""What disappears together when a dimension, neuron, channel, head or recurrent unit of a model is removed.

Source: methods/attention_distillation_pruning.md, sections 5.2, 5.3 (rules R1 to R8) and 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from recbole_prune.sparse.shrinking import all_tensors

# what a unit is; ``prune_units`` selects among these
UNIT_KINDS = ("embedding", "neuron", "channel", "recurrent", "head", "head_dimension", "latent", "layer", "hidden")

# of how many units of each group are left, by the group's name
Counts = Mapping[str, int]


# of tensors, by name, what their kept values are multiplied by, from the share of units that stays
Scaling = Mapping[str, Callable[[float], float]]
UNSCALED: Scaling = {}


@dataclass(frozen=True)
class Along:
    """Where the units of a group lie along an axis of a tensor.

    Unit ``j`` of ``count`` is at the positions ``start + r * period + j * block + b`` for every ``r`` below ``repeats``
    and every ``b`` below ``block``.

    Attributes:
        tensor: its name in ``state_dict``.
        axis: of the tensor.
        start: the position of the first unit.
        block: positions of a unit side by side (a channel before it is flattened, the rows of a head).
        repeats: how often all units stand one after another (the gates of a GRU, the fields of an input).
        period: positions from one repeat to the next; 0: repeats follow each other without a gap.
    """

    tensor: str
    axis: int = 0
    start: int = 0
    block: int = 1
    repeats: int = 1
    period: int = 0

    def owners(self, size: int, count: int) -> torch.Tensor:
        """Which unit each position of an axis of ``size`` belongs to, int64, -1 where it is none's."""
        repeats = torch.arange(self.repeats) * (self.period or count * self.block)
        places = self.start + repeats[:, None, None] + torch.arange(count * self.block).view(count, self.block)
        owners = torch.full((size,), -1)
        owners[places] = torch.arange(count)[:, None].expand(self.repeats, count, self.block)
        return owners


@dataclass(frozen=True)
class UnitGroup:
    """Units of which any can be removed, each with all that belongs to it.

    Attributes:
        name: unlike that of any other group of the model.
        kind: one of :data:`UNIT_KINDS`.
        count: how many units there are.
        places: every slice of parameters and buffers that goes with a unit, on both sides of it (rule R1).
        inexact: why the model without the units scores otherwise than with their weights at 0 (rules R3 and R5), a
            sentence; "" where it scores the same. Such units are masked and never taken out.
        chunks: the units lie in so many parts of equal size, and every part loses as many (rule R6).
        alike: groups of the same word lose as many units as each other, though not the same ones (rule R6); they are
            of one kind and have equal chunks.
        scaled: tensors whose kept values are multiplied by a function of the share of units that stays (rule R4).
        constant: whether removal moves all scores by the same number, which changes no ranking.
    """

    name: str
    kind: str
    count: int
    places: tuple[Along, ...]
    inexact: str = ""
    chunks: int = 1
    alike: str = ""
    scaled: Scaling = field(default_factory=dict)
    constant: bool = False


@dataclass(frozen=True)
class Anatomy:
    """The unit groups of a model.

    Attributes:
        groups: by order of the model's parameters.
        attributes: plain attributes that hold a size, by dotted path: the value by the units that are left.
        smaller_class: the settings of RecBole's with which the class builds the shrunk model; None: it cannot.
        needs: why the class has no groups, a sentence; "" where it has.
    """

    groups: Sequence[UnitGroup] = ()
    attributes: Mapping[str, Callable[[Counts], object]] = field(default_factory=dict)
    smaller_class: Callable[[Counts], dict[str, object] | None] | None = None
    needs: str = ""

    def __iter__(self) -> Iterator[UnitGroup]:
        return iter(self.groups)

    def __getitem__(self, name: str) -> UnitGroup:
        return next(group for group in self.groups if group.name == name)

    def counts(self, kept: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """How many units of each group are left; ``kept`` as in :meth:`positions`."""
        return {group.name: len(kept[group.name]) if group.name in kept else group.count for group in self}

    def sizes(self, kept: Mapping[str, torch.Tensor]) -> dict[str, object]:
        """The values of :attr:`attributes` once ``kept`` is left."""
        left = self.counts(kept)
        return {path: value(left) for path, value in self.attributes.items()}

    def smaller(self, kept: Mapping[str, torch.Tensor]) -> dict[str, object] | None:
        """The settings with which the class builds the model of the units that are left; None where it cannot."""
        left = self.counts(kept)
        masked = any(group.inexact and left[group.name] < group.count for group in self)
        return None if masked or self.smaller_class is None else self.smaller_class(left)

    def scales(self, kept: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """By what the kept values of tensors are multiplied (rule R4); ``kept`` as in :meth:`positions`."""
        found: dict[str, float] = {}
        for group in self:
            share = len(kept[group.name]) / group.count if group.name in kept else 1.0
            for tensor, factor in group.scaled.items() if share < 1 else ():
                found[tensor] = found.get(tensor, 1.0) * factor(share)
        return found

    def positions(self, kept: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, dict[int, torch.Tensor]]:
        """The positions that stay along the axes of tensors, by tensor and axis.

        Args:
            kept: units that stay, ascending, by the name of a group; other groups lose none.
            model: with its tensors as large as the groups say.
        """
        tensors = all_tensors(model)
        stay: dict[str, dict[int, torch.Tensor]] = {}
        for group in self:
            if group.name not in kept or len(kept[group.name]) == group.count:
                continue
            alive = torch.zeros(group.count + 1, dtype=torch.bool)
            alive[kept[group.name]] = alive[-1] = True  # what is no unit's stays
            for place in group.places:
                size = tensors[place.tensor].shape[place.axis]
                axes = stay.setdefault(place.tensor, {})
                present = axes.get(place.axis, torch.ones(size, dtype=torch.bool))
                axes[place.axis] = present & alive[place.owners(size, group.count)]
        return {name: {axis: alive.nonzero()[:, 0] for axis, alive in axes.items()} for name, axes in stay.items()}


Finder = Callable[[nn.Module], Anatomy]
