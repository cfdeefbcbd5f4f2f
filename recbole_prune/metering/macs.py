"""Multiply-accumulates of one model: ranking a user, and a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from recbole_prune.anatomy.caches import forget_caches
from recbole_prune.anatomy.losses import has_graph_loss, recommendation_loss
from recbole_prune.masking.masks import MaskSet
from recbole_prune.metering.counter import Macs, MacsCounter, start_of_storage
from recbole_prune.metering.factors import Factors
from recbole_prune.scoring.probe import Probe, undisturbed
from recbole_prune.sparse.compact import compact_modules

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

__all__ = ["Macs", "MacsReport", "TrainingMacs", "measure_macs"]

_PASSES = 3  # of a training step: forward, gradient of the inputs, gradient of the weights


@dataclass(frozen=True)
class TrainingMacs:
    """What one training batch multiplies.

    Attributes:
        forward: its losses, forward only, regularisation included.
        positives: its positive interactions; its users for models that train on whole users.
    """

    forward: Macs
    positives: int

    @property
    def step(self) -> Macs:
        """One step: three times the forward pass. Exact: gradients of live entries only."""
        return self.forward * _PASSES

    @property
    def update_step(self) -> float:
        """A step that needs dense gradients of the masked weights, by density: ``2 d + 1`` for each dense product."""
        return 2 * self.forward.density_scaled + self.forward.dense

    def average_step(self, update_interval: float) -> float:
        """Mean step by density where one of ``update_interval`` is an update step: ``3 d + (1 - d) / interval``."""
        return self.step.density_scaled + (self.update_step - self.step.density_scaled) / update_interval

    def to_dict(self, update_interval: float | None = None) -> dict[str, Any]:
        """JSON; ``update_interval`` (steps) where masks are updated by dense gradients."""
        record = {
            "forward": _rounded(self.forward),
            "step": _rounded(self.step),
            "step_per_positive": _rounded(self.step / max(1, self.positives)),
            "positives": self.positives,
        }
        if update_interval is not None:
            record["update_step"] = round(self.update_step)
            record["average_step"] = round(self.average_step(update_interval))
        return record


@dataclass(frozen=True)
class MacsReport:
    """What a model multiplies, by both accountings.

    Attributes:
        inference: scores of all items for one user, mean over some users, what can be kept between users being kept;
            of data without users and items the score of one row.
        preparation: what is computed once after every change of weights and then kept: propagated tables.
        training: one batch; None if the model's loss could not be computed.
        users: users (rows) over whom ``inference`` is the mean.
        items: items that a user is scored for, [PAD] included; 1 where the data has none.
        parameters: trainable entries of the tensors that ranking reads, tables that all users share included.
        not_counted: what was executed or is part of training without being counted, a line each.
    """

    inference: Macs
    preparation: Macs
    training: TrainingMacs | None
    users: int
    items: int
    parameters: int
    not_counted: tuple[str, ...] = ()

    @property
    def inference_cold(self) -> Macs:
        """Ranking the first user after a change of weights."""
        return self.inference + self.preparation

    def to_dict(self, update_interval: float | None = None) -> dict[str, Any]:
        """JSON; ``update_interval`` as in :meth:`TrainingMacs.to_dict`."""
        return {
            "inference": _rounded(self.inference),
            "preparation": _rounded(self.preparation),
            "training": None if self.training is None else self.training.to_dict(update_interval),
            "users": self.users,
            "items": self.items,
            "not_counted": list(self.not_counted),
        }


def measure_macs(
    model: AbstractRecommender,
    config: Config,
    dataset: Dataset,
    batch: Interaction,
    masks: Mapping[str, torch.Tensor] | None = None,
) -> MacsReport:
    """Count what a model multiplies for ranking and for training; it is left as it was.

    Args:
        model: a built RecBole model, masked, compact or plain.
        config: its RecBole config.
        dataset: its RecBole dataset; up to 64 of its users are scored.
        batch: one batch of its training dataloader.
        masks: boolean, by name in ``state_dict``, True is live; those the model wears by default. Only they say what
            is live, not the values of the weights.

    Raises:
        Exception: whatever the model raises in scoring.
    """
    if masks is None:
        masks = getattr(model, "masks", None) or {}
    with undisturbed(model), _dense_tables(model), _plain_attention():
        factors = Factors(model, masks, {name: _density(masks, name) for name in masks})
        probe = Probe(model, config, dataset)
        model.eval()
        with torch.no_grad():
            first = np.array([0])
            forget_caches(model)
            cold = _count(factors, lambda: probe.score(model, probe.rows[first]))
            warm = _count(factors, lambda: probe.score(model, probe.rows[first]))
            ranking = _count(factors, lambda: [probe.score(model, block) for block in probe.blocks()])
        parameters = _read(model, cold.places | ranking.places)
        scored = len(probe.rows) * probe.columns
        items = dataset.item_num if probe.has_items else 1
        training, training_notes = _count_training(model, config, batch, factors)
    notes = [f"ranking: {line}" for line in ranking.not_counted()] + [f"training: {line}" for line in training_notes]
    return MacsReport(
        inference=ranking.total * (items / scored),
        preparation=cold.total - warm.total,
        training=training,
        users=len(probe.rows),
        items=items,
        parameters=parameters,
        not_counted=tuple(notes),
    )


def _count_training(
    model: AbstractRecommender, config: Config, batch: Interaction, factors: Factors
) -> tuple[TrainingMacs | None, list[str]]:
    """The losses of a batch, and what was not counted."""
    model.train()
    notes = ["batches of the knowledge graph (calculate_kg_loss)"] if has_graph_loss(model) else []
    loss = getattr(model, recommendation_loss(type(model)))
    try:
        counter = _count(factors, lambda: loss(batch.to(config["device"])))
    except Exception as error:  # some losses take what only their own trainer prepares
        return None, [*notes, f"{loss.__name__}: {type(error).__name__}: {error}".rstrip(": ")]
    return TrainingMacs(counter.total, _positives(batch, config)), notes + counter.not_counted()


def _count(factors: Factors, work: Callable[[], object]) -> MacsCounter:
    counter = MacsCounter(factors)
    with counter:
        work()
    return counter


def _read(model: nn.Module, places: set[int]) -> int:
    """Trainable entries of the parameters whose storages begin at these places."""
    parameters = (each for each in model.parameters() if each.requires_grad)
    return sum(each.numel() for each in parameters if start_of_storage(each) in places)


def _density(masks: Mapping[str, torch.Tensor], name: str) -> float:
    """Share of live entries; padding rows, which are never pruned, do not count."""
    if isinstance(masks, MaskSet):
        return int(masks.per_row(name).sum()) / masks.scope[name].prunable
    return float(masks[name].double().mean())


def _positives(batch: Interaction, config: Config) -> int:
    label, negative = config["LABEL_FIELD"], f"{config['NEG_PREFIX']}{config['ITEM_ID_FIELD']}"
    if label in batch.interaction:
        return int((batch[label] > 0).sum())
    if negative in batch.interaction:
        return len(batch) // int((config["train_neg_sample_args"] or {}).get("sample_num", 1))
    return len(batch)


@contextmanager
def _dense_tables(model: nn.Module) -> Iterator[None]:
    """Stand-ins for compact tables, whose products torch would not show."""
    kept = [(module, module.__class__, module.__dict__) for _, module in compact_modules(model)]
    try:
        for module, _, _ in kept:
            table = module.to_dense()
            plain = cast(nn.Embedding, module)
            plain.__class__, plain.__dict__ = nn.Embedding, table.__dict__
        yield
    finally:
        for module, cls, attributes in kept:
            module.__class__, module.__dict__ = cls, attributes


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention layers of torch as separate products, not as one operation of evaluations."""
    switch = getattr(torch.backends, "mha", None)
    if switch is None:
        yield
        return
    before = switch.get_fastpath_enabled()
    switch.set_fastpath_enabled(False)
    try:
        yield
    finally:
        switch.set_fastpath_enabled(before)


def _rounded(macs: Macs) -> dict[str, int]:
    return {name: round(value) for name, value in vars(macs).items()}
