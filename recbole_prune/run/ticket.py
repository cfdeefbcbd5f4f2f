"""One line of ``tickets.jsonl``, and what is asked for before it can be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import getLogger
from math import isfinite
from typing import Any, Optional

import torch

from recbole_prune.errors import TrainingError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.training.parts import Part

# by RecBole's name of a metric; None where the data does not define it, empty where there is no data
Metrics = dict[str, Optional[float]]
REWINDS = ("init", "late", "lr", "none", "reinit")


@dataclass(frozen=True)
class Ticket:
    """A trained mask: how it was reached, what it scored, what it cost (fields of DESIGN section 5).

    ``best_epoch`` counts trained epochs, 1 for the first. ``losses`` are the training losses of the epochs, as RecBole
    adds them up over batches, None where one is infinite. ``users_sha256`` is that of its values of users, None where
    its metrics have none and in lines of older versions, as is ``measured``. ``method`` holds what a method adds under
    its own name.
    """

    ticket: int
    sparsity: float
    kept: int
    prunable: int
    parameters: int
    epochs: int
    best_epoch: int
    valid: Metrics
    test: Metrics
    valid_score: float
    wins_metric: bool | None
    wins: bool | None
    train_seconds: float
    eval_seconds: float
    seed: int
    mask_file: str | None
    mask_sha256: str | None
    checkpoint_file: str
    checkpoint_sha256: str
    users_sha256: str | None = None
    history: list[list[float]] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    relative_epochs: float | None = None
    measured: dict[str, Any] | None = None
    method: dict[str, Any] = field(default_factory=dict)

    @property
    def changes(self) -> dict[str, Any]:
        """RecBole settings of this ticket's model that differ from the run's."""
        changes: dict[str, Any] = self.method.get("changes", {})
        return changes

    @property
    def is_taught(self) -> bool:
        """Whether the teacher of its run, if there is one, taught it."""
        return bool(self.method.get("taught", True))

    @property
    def has_units(self) -> bool:
        """Whether its masks are zero on whole units; the journal line says how many are left of each group."""
        return "units" in self.method

    @property
    def checkpoint_files(self) -> list[str]:
        """Its checkpoint, and that of the smaller class where there is one."""
        smaller = self.method.get("smaller")
        return [self.checkpoint_file, *([smaller["checkpoint_file"]] if smaller else [])]

    def to_record(self) -> dict[str, Any]:
        """A JSON object; the fields of ``method`` stand beside the common ones."""
        record = {name: value for name, value in vars(self).items() if name != "method"}
        return {**record, **self.method}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Ticket:
        """Undo :meth:`to_record`."""
        own = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        return cls(**own, method={key: value for key, value in record.items() if key not in own})


def defined_metrics(metrics: Mapping[str, float], where: str, required: str = "") -> Metrics:
    """Metrics as plain floats; None where the data do not define one (AUC of positives alone), which is logged.

    Args:
        metrics: by name.
        where: ticket and data, for messages.
        required: the one that tickets are picked by.

    Raises:
        TrainingError: that one is NaN or infinite.
    """
    for name, value in metrics.items():
        if isfinite(value):
            continue
        if name == required:
            raise TrainingError(f"{where}: the metric {name} is {value}; check the data, or lower learning_rate")
        getLogger().warning(f"{where}: {name} is not defined, it is {value}")
    return {name: float(value) if isfinite(value) else None for name, value in metrics.items()}


@dataclass(frozen=True)
class Plan:
    """The training of one ticket, as a pruner asks for it.

    Attributes:
        ticket: its number; 0 is the dense model.
        masks: what is pruned; None where the method has no masks (a smaller dense table).
        rewind: where the weights start, one of :data:`REWINDS`; ``none`` and ``lr`` need ``weights``.
        weights: a state dict to start from, or to evaluate if ``train`` is False.
        train: False only evaluates ``weights`` under ``masks``.
        changes: RecBole settings that differ from the run's (a smaller ``embedding_size``).
        parts: what trains along with this ticket (prune and grow, LCM's affine maps).
        kept: live entries where there are no masks.
        epochs: of the training; None: RecBole's setting.
        taught: whether the run's teacher, if there is one, teaches.
        whole_units: the masks are zero on whole units, which are taken out where that is exact.
        method: fields to add to the journal line.
    """

    ticket: int
    masks: MaskSet | None
    rewind: str = "init"
    weights: dict[str, torch.Tensor] | None = None
    train: bool = True
    changes: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    kept: int | None = None
    epochs: int | None = None
    taught: bool = True
    whole_units: bool = False
    method: dict[str, Any] = field(default_factory=dict)
