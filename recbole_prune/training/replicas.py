"""Several processes in one training: the same model in each, gradients of parts of every batch, added up.

RecBole wraps a model in torch's DistributedDataParallel, which knows nothing of parameters that change with masks, of
losses that are not a ``forward``, and of evaluations that have to give the digits of one process. Here every process is
a replica of the same training, and the sum of gradients is the one thing that is exchanged in a batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, Union

import torch
from torch import nn
from torch.autograd import Variable

from recbole_prune.anatomy.losses import adds_rows_up
from recbole_prune.data import random_streams
from recbole_prune.data.own_rows import OwnRows
from recbole_prune.errors import TrainingError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.ranks import group
from recbole_prune.ranks.gradients import GradientSums
from recbole_prune.sparse.compact import compact_modules
from recbole_prune.sparse.entries import nonzero_entries
from recbole_prune.training import codec
from recbole_prune.training import state as states

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataloader import AbstractDataLoader

    from recbole_prune.training.lazy_adam import LazyTable
    from recbole_prune.training.model import MaskAware
    from recbole_prune.training.session import Session

Losses = Union[float, tuple[float, ...]]
Metrics = TypeVar("Metrics")


class Replicated(Protocol):
    """What is asked of a trainer; :class:`~recbole_prune.training.trainer.MaskAwareTrainer` is one."""

    config: Config
    model: MaskAware
    session: Session
    device: torch.device
    epoch: int

    def nan_error(self) -> TrainingError:
        """What is said where a loss is no number."""

    def changed_attributes(self) -> dict[str, Any]:
        """Plain attributes of the model that changed since it was built, by path."""

    def restore_attributes(self, attributes: dict[str, Any]) -> None:
        """Set them."""


class Replicas:
    """The place of a trainer among those of the other processes.

    Args:
        trainer: newly built.
        added: parameters that parts bring.
    """

    def __init__(self, trainer: Replicated, added: Iterable[nn.Parameter]) -> None:
        self._trainer, self._added = trainer, list(added)
        self._sums: GradientSums | None = None
        self._names: list[tuple[str, nn.Parameter]] = []
        self._rows: OwnRows | None = None
        self._is_finite = True

    @property
    def _sums_rows(self) -> bool:
        """Whether the loss of a batch is the sum of those of its parts, not their mean."""
        config = self._trainer.config
        return adds_rows_up(config.model_class, config["train_stage"])

    def begin(self) -> None:
        """Start from the weights of the first process."""
        group.copy_of_first([*states.weights_of(self._trainer.model).values(), *self._added])

    def begin_epoch(self, loader: AbstractDataLoader) -> OwnRows:
        """The part of the epoch's batches that is this process's; parameters are those of now."""
        model = self._trainer.model
        self._names = list(model.named_parameters())
        tables = [module.weight for module in model.modules() if type(module) is nn.Embedding]
        tables += [module.values for _, module in compact_modules(model)]
        # an optimizer may have what the model shows nobody
        stepped = [
            parameter
            for optimizer in states.optimizers_of(self._trainer).values()
            for settings in optimizer.param_groups
            for parameter in settings["params"]
        ]
        self._sums = GradientSums([*model.parameters(), *stepped, *self._added], tables, nonzero_entries)
        self._rows = OwnRows(loader, group.rank(), group.count(), sums=self._sums_rows)
        return self._rows

    def read_by_rows(self, tables: Sequence[LazyTable]) -> None:
        """The tables whose rows wait in this epoch; none do where the processes, with other threads, do not agree."""
        assert self._sums is not None, "the epoch has begun"
        names = {id(parameter): name for name, parameter in self._names}
        found = group.gather(" ".join(names[id(table.parameter)] for table in tables).encode())
        if len(set(found)) > 1:
            for table in tables:
                table.close()
            return
        self._sums.read_by_rows(tables)

    def watch(self, loss: torch.Tensor) -> None:
        """Have the gradients added up at the end of the backward pass that begins at a loss."""
        self._is_finite = not bool(torch.isnan(loss))
        loss.register_hook(self._begin_backward)

    def _begin_backward(self, gradient: torch.Tensor) -> torch.Tensor:
        assert self._rows is not None, "a batch was drawn"
        # as torch's own DistributedDataParallel: the place where every gradient has arrived, before any is clipped
        Variable._execution_engine.queue_callback(self._add_up)
        return gradient * self._rows.share

    def _add_up(self) -> None:
        assert self._sums is not None, "the epoch has begun"
        if not self._sums.add_up(self._is_finite):
            raise self._trainer.nan_error()

    def end_epoch(self, losses: Losses) -> Losses:
        """Go on from what the first process has where parts of batches left more than gradients; losses of all parts.

        Raises:
            TrainingError: weights or masks differ between processes.
        """
        self._require_equal()
        trainer, model = self._trainer, self._trainer.model
        group.copy_of_first([buffer for _, buffer in model.named_buffers()])
        state = {
            "attributes": trainer.changed_attributes(),
            "random": random_streams.random_state(),  # losses of unequal parts may have drawn unequally often
            "loaders": random_streams.loader_states(trainer.session.loaders),
            "parts": {part.name: part.state() for part in trainer.session.parts},
        }
        state = codec.decode(group.bytes_of_first(codec.encode(state) if group.is_first() else b""))
        if not group.is_first():
            trainer.restore_attributes(state["attributes"])
            random_streams.set_random_state(state["random"])
            random_streams.set_loader_states(trainer.session.loaders, state["loaders"])
            for part in trainer.session.parts:
                part.restore(state["parts"][part.name], trainer.device)
        return self._of_whole_batches(losses)

    def _of_whole_batches(self, losses: Losses) -> Losses:
        """The losses of an epoch, a number or a tuple, as they would be without other processes."""
        own = list(losses) if isinstance(losses, tuple) else [losses]
        every = [codec.decode(found) for found in group.gather(codec.encode([float(loss) for loss in own]))]
        parts = 1 if self._sums_rows else len(every)
        found = [sum(each) / parts for each in zip(*every)]
        return tuple(found) if isinstance(losses, tuple) else found[0]

    def _require_equal(self) -> None:
        model = self._trainer.model
        digest = 0
        for parameter in [*model.parameters(), *self._added]:
            digest = zlib.crc32(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(), digest)
        if model.masks is not None:
            digest = zlib.crc32(model.masks.to_bytes(), digest)
        found = group.gather(digest.to_bytes(4, "little"))
        if len(set(found)) > 1:
            raise TrainingError(
                f"a fault of recbole_prune, please report it: after epoch {self._trainer.epoch} the weights of "
                f"{self._trainer.session.name} differ between the {len(found)} processes"
            )


def masks_of_first(masks: MaskSet) -> MaskSet:
    """The masks that the first process has decided; sums on a GPU may differ in their last bits."""
    if not group.are_several():
        return masks
    found = group.bytes_of_first(masks.to_bytes())
    return masks if group.is_first() else MaskSet.from_bytes(found, masks.scope)


def metrics_of_first(metrics: Metrics) -> Metrics:
    """The metrics that the first process found."""
    return group.of_first(metrics) if isinstance(metrics, Mapping) else metrics
