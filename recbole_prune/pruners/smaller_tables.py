"""Baselines of equal stored size that are dense: narrower tables, trained anew or as a linear map of wide ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from recbole_prune.anatomy.tables import WIDTH_KEYS
from recbole_prune.errors import ConfigError, RecBoleError
from recbole_prune.masking.bound import information_bound_bits
from recbole_prune.masking.scope import find_scope
from recbole_prune.pruners.base import Promises, Pruner
from recbole_prune.run.ticket import Plan, Ticket
from recbole_prune.training.computed_tables import compute_tables
from recbole_prune.training.parts import Part

if TYPE_CHECKING:
    from recbole_prune.training.model import MaskAware


class SmallerDenseTables(Pruner):
    """The same model with narrower tables of the bytes that a pruned table would take.

    The honest question to every sparse table: would a smaller dense one have done? A ticket of sparsity s is charged
    its information bound, N*D*(H2(s) + 32*(1-s)) bits, and the width is rounded up, so the baseline is never smaller.
    """

    promises = Promises(
        masks=False,
        exact=False,
        refuses=("has none of the settings", "do not make the targets of .* narrower", "no narrower form of"),
    )

    def tickets(self) -> Iterator[Ticket]:
        """Ticket 0, then one narrower model per sparsity of the schedule."""
        dense = self.experiment.dense()
        yield dense
        for number, keep in enumerate(self.counts()[1:], 1):
            yield self.experiment.obtain(number, partial(self.plan, number, keep, dense))

    def check(self) -> None:
        """The model needs a width setting that makes the targets narrower."""
        super().check()
        self.narrow(self.fraction(self.counts()[-1]))

    def widths(self) -> dict[str, int]:
        """Width settings of the model by key.

        Raises:
            ConfigError: it has none.
        """
        config = self.experiment.config
        widths = {key: config[key] for key in WIDTH_KEYS if isinstance(config[key], int)}
        if not widths:
            raise ConfigError(
                f"pruner={self.settings.pruner}: {config['model']} has none of the settings {', '.join(WIDTH_KEYS)}, "
                "so it has no narrower form"
            )
        return widths

    def fraction(self, keep: int) -> float:
        """Fraction of the dense width that takes the bytes of ``keep`` live entries."""
        prunable = self.scope.prunable
        return min(1.0, information_bound_bits(prunable, keep, 32) / (32 * prunable))

    def plan(self, number: int, keep: int, dense: Ticket) -> Plan:
        """Train the narrower model from its own initialisation."""
        changes, kept = self.narrow(self.fraction(keep))
        return Plan(number, None, changes=changes, kept=kept, method={"equal_to_kept": keep})

    def narrow(self, fraction: float) -> tuple[dict[str, int], int]:
        """The narrowest settings of at least ``fraction`` of the width that the model can be built and scored with.

        Returns:
            the changed settings, and the entries of the tables (padding rows not counted).

        Raises:
            ConfigError: there are none below the model's own.
        """
        widths, pruner, model = self.widths(), self.settings.pruner, self.experiment.config["model"]
        widest = max(widths.values())
        refused = None
        for width in range(max(1, -int(-fraction * widest // 1)), widest):
            changes = {key: max(1, -(-value * width // widest)) for key, value in widths.items()}
            try:
                kept = self._table_entries(changes)
            except RecBoleError as error:  # heads that do not divide, a map that convolutions do not fit on
                refused = refused or f"{changes}: {error}"
                continue
            if kept < self.scope.prunable:
                return changes, kept
        if refused is not None:
            raise ConfigError(f"pruner={pruner}: there is no narrower form of {model} with {widths}; with {refused}")
        raise ConfigError(
            f"pruner={pruner}: {', '.join(widths)} do not make the targets of {model} narrower, "
            f"and no other of {', '.join(WIDTH_KEYS)} is set"
        )

    def _table_entries(self, changes: dict[str, int]) -> int:
        """Entries of the narrower tables.

        Raises:
            RecBoleError: the model cannot be built or scored with the settings.
        """
        model = self.experiment.workshop.scored_model(changes)
        names = [target.name for target in self.scope]
        rule = self.experiment.workshop.padding_rule(model)
        return find_scope(model, scope="all", include=names, padding=rule).prunable


class LinearCompression(SmallerDenseTables):
    """LCM: narrow tables that are an affine map of the trained wide ones; only the maps are trained.

    Wang et al., arXiv 2108.00944, section 4.4, after ``LightEmb`` of KD_on_Ranking: x = W t + b per table, no
    activation. The width is the kept fraction of the wide one.
    """

    promises = replace(
        SmallerDenseTables.promises, refuses=(*SmallerDenseTables.promises.refuses, "has no embedding table to map")
    )

    def check(self) -> None:
        """The model needs embedding tables to map."""
        super().check()
        if not self.tables():
            raise ConfigError(f"pruner=lcm: {self.experiment.config['model']} has no embedding table to map")

    def tables(self) -> list[str]:
        """Names of the tables that become maps of the dense ones."""
        return [target.name for target in self.scope if target.kind == "embedding"]

    def fraction(self, keep: int) -> float:
        """The kept fraction itself, as in the paper."""
        return keep / self.scope.prunable

    def plan(self, number: int, keep: int, dense: Ticket) -> Plan:
        """Train affine maps of the dense ticket's tables."""
        changes, kept = self.narrow(self.fraction(keep))
        wide = self.experiment.weights_of(dense)
        part = AffineTables({name: wide[name] for name in self.tables()})
        return Plan(number, None, changes=changes, kept=kept, parts=(part,), method={"equal_to_kept": keep})


class AffineTables(Part):
    """Trains tables as affine maps of fixed wide ones; the maps are parameters of the model.

    Args:
        teacher: wide tables by parameter name.
    """

    name = "affine_tables"

    def __init__(self, teacher: dict[str, torch.Tensor]) -> None:
        self.teacher = teacher

    def attach(self, model: MaskAware) -> None:
        """Turn the tables into maps."""
        map_tables(model, self.teacher)


class AffineOfTeacher(nn.Module):
    """A table as ``[teacher, 1] @ affine``; ``affine`` has shape [teacher width + 1, table width].

    Args:
        teacher: the trained wide table, shape [rows, teacher width]; it stays fixed.
    """

    teacher: torch.Tensor

    def __init__(self, teacher: torch.Tensor) -> None:
        super().__init__()
        ones = teacher.new_ones(len(teacher), 1)
        self.register_buffer("teacher", torch.cat([teacher, ones], dim=1), persistent=False)

    def forward(self, affine: torch.Tensor) -> torch.Tensor:
        """The narrow table."""
        return self.teacher @ affine

    def right_inverse(self, table: torch.Tensor) -> torch.Tensor:
        """An initial map: Xavier-normal weights, zero shift."""
        affine = torch.zeros(self.teacher.shape[1], table.shape[1], dtype=table.dtype, device=table.device)
        nn.init.xavier_normal_(affine[:-1])
        return affine


def map_tables(model: nn.Module, teacher: dict[str, torch.Tensor]) -> None:
    """Turn tables of ``model`` into trainable affine maps of the teacher's (:func:`compute_tables`).

    Args:
        model: the narrow model.
        teacher: wide tables by parameter name (``<module>.weight``).
    """
    device = next(model.parameters()).device
    compute_tables(model, {name: AffineOfTeacher(wide.to(device)) for name, wide in teacher.items()})
