"""Our side of a benchmark, beside :mod:`recbole_prune.bench.plain` on the same settings."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from recbole_prune.bench.plain import begin, reseed
from recbole_prune.compat.places import trainers_write_to
from recbole_prune.config.fingerprint import PATHS
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.config.settings import Settings
from recbole_prune.config.words import launch
from recbole_prune.distillers import get_distiller
from recbole_prune.distillers.teaching import Teaching
from recbole_prune.errors import ConfigError
from recbole_prune.masking.allocate import select
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.random_masks import kept_by_target, random_masks
from recbole_prune.masking.schedule import removed_exact
from recbole_prune.masking.scope import Scope
from recbole_prune.masking.scores import magnitude, uniform
from recbole_prune.pruners import get_pruner
from recbole_prune.pruners.attention_guided import PruningUnderDistillation
from recbole_prune.pruners.dynamic_sparse import StaticSparseTraining
from recbole_prune.pruners.structured import StructuredPruning
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.store import RunFolder
from recbole_prune.run.ticket import Plan
from recbole_prune.run.ticket_training import TicketTraining
from recbole_prune.run.workshop import Workshop
from recbole_prune.signals import on_abort
from recbole_prune.training.trainer import MaskAwareTrainer


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder that also takes the TensorBoard files of plain RecBole's trainers; ours write none."""
    scratch = tempfile.TemporaryDirectory(prefix="recbole-prune-bench-")
    with on_abort(scratch.cleanup), scratch as folder, trainers_write_to(Path(folder, "tensorboard")):
        yield Path(folder)


def our_config(words: list[str], scratch: Path, teaches: bool = False, **defaults: Any) -> PruneConfig:
    """The config of a benchmark from the words that are no options of its own.

    Args:
        words: of the command line.
        scratch: for the file of defaults.
        teaches: whether the benchmark measures what a distiller costs.
        defaults: the benchmark's own, below the user's files.
    """
    asked = launch(words)
    own = scratch / "bench.yaml"
    own.write_text(yaml.safe_dump(defaults), encoding="utf-8")
    config = PruneConfig(asked.model, asked.dataset, [str(own), *(asked.files or [])], words=asked.words)
    if config.settings.dry_run:
        raise ConfigError("dry_run=True is not allowed: a benchmark has to run what it measures")
    if config.settings.distiller and not teaches:
        raise ConfigError(
            f"distiller={config.settings.distiller} is not allowed: only bench train and bench memory measure teaching"
        )
    return config


class OurRun:
    """This package on the same settings; nothing is written outside ``scratch``."""

    def __init__(self, config: PruneConfig, scratch: Path) -> None:
        config["checkpoint_dir"] = str(scratch)
        self.config = config
        self.workshop = Workshop(config)
        self.experiment = Experiment(self.workshop, RunFolder(scratch / "run"))

    @property
    def scope(self) -> Scope:
        """The targets."""
        return self.experiment.scope

    def candidate(self, sparsity: float, taught: bool = False) -> tuple[str, MaskAwareTrainer]:
        """A name for results and the trainer at a sparsity: random masks, or those of a sparse-from-scratch pruner.

        Args:
            sparsity: of the targets.
            taught: with the distiller of the settings; else without.
        """
        if _moves(self.config.settings, sparsity):
            workshop, plan = self._moving(sparsity)
        else:
            workshop, plan = self.workshop, self._of_masks(self.random_masks(sparsity))
        if taught:
            plan = replace(plan, parts=(*plan.parts, self._teaching.distiller()))
        return name_of_candidate(self.config.settings, sparsity, taught), self._begun(workshop, plan)

    @cached_property
    def _teaching(self) -> Teaching:
        settings = self.config.settings
        if get_distiller(settings.distiller).promises.teacher and not settings.distill_teacher:
            raise ConfigError(
                "distill_teacher is empty: a benchmark trains no teacher, so name one that is there with "
                "--distill_teacher=PATH"
            )
        return Teaching(self.workshop, self.experiment.folder)

    def _moving(self, sparsity: float) -> tuple[Workshop, Plan]:
        """What a sparse-from-scratch pruner (``--pruner=dsl``) plans, whose masks may move while it trains."""
        changes = {"prune_target_sparsity": sparsity, "prune_dense": False}
        config = PruneConfig.from_plain_settings({**self.config.plain_settings(), **changes})
        workshop = self.workshop.with_config(config)
        pruner = get_pruner(config.settings.pruner)(Experiment(workshop, self.experiment.folder))
        pruner.check()
        assert isinstance(pruner, StaticSparseTraining)
        return workshop, pruner.plan()

    def trainer(self, masks: MaskSet, weights: dict[str, torch.Tensor] | None = None) -> MaskAwareTrainer:
        """The trainer of a ticket under masks, from the initial weights or from given ones; as in a run."""
        return self._begun(self.workshop, self._of_masks(masks, weights))

    def _of_masks(self, masks: MaskSet, weights: dict[str, torch.Tensor] | None = None) -> Plan:
        whole_units = not masks.is_dense and _by_units(self.config.settings)
        return Plan(0 if masks.is_dense else 1, masks, weights=weights, whole_units=whole_units)

    def _begun(self, workshop: Workshop, plan: Plan) -> MaskAwareTrainer:
        trainer = TicketTraining(workshop, self.experiment.folder, plan, scope=self.scope).trainer
        begin(trainer, workshop.train_data)
        return trainer

    def reseed(self, number: int = 0) -> None:
        """Data order and random streams of a fixed place."""
        reseed(self.config, self.workshop.loaders, number)

    def random_masks(self, sparsity: float) -> MaskSet:
        """Masks of exactly this sparsity in every target, or of so many units of every kind, drawn by the seed."""
        if not sparsity:
            return MaskSet.dense(self.scope)
        if _by_units(self.config.settings):
            return self._without_units(uniform(self.scope, self.config["seed"]), sparsity)
        return random_masks(self.scope, kept_by_target(self.scope, 1 - sparsity, "exact"), "exact", self.config["seed"])

    def magnitude_masks(self, weights: Mapping[str, torch.Tensor], sparsity: float) -> MaskSet:
        """Masks of exactly this sparsity that keep the largest weights, or so many units of every kind."""
        if sparsity and _by_units(self.config.settings):
            squares = {name: values.square() for name, values in magnitude(weights, self.scope).items()}
            return self._without_units(squares, sparsity)
        return _masks(magnitude(weights, self.scope), self.scope, sparsity)

    def _without_units(self, scores: Mapping[str, torch.Tensor], share: float) -> MaskSet:
        changes = {"prune_target_sparsity": share, "prune_rounds": 1}
        workshop = self.workshop.with_config(
            PruneConfig.from_plain_settings({**self.config.plain_settings(), **changes})
        )
        pruner = StructuredPruning(Experiment(workshop, self.experiment.folder))
        pruner.check()
        return pruner.without_units(pruner.removed(1), scores)

    def trained(self, epochs: int) -> dict[str, torch.Tensor]:
        """The dense model's ``state_dict`` after some epochs, without validation."""
        trainer = self.trainer(MaskSet.dense(self.scope))
        for epoch in range(epochs):
            trainer._train_epoch(self.workshop.train_data, epoch, show_progress=self.config["show_progress"])
        return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def _masks(scores: Mapping[str, torch.Tensor], scope: Scope, sparsity: float) -> MaskSet:
    dense = MaskSet.dense(scope)
    return select(scores, dense, scope.prunable - removed_exact(sparsity, scope.prunable)) if sparsity else dense


def name_of_candidate(settings: Settings, sparsity: float, taught: bool) -> str:
    """What results call our side at a sparsity, with or without the distiller of the settings."""
    pruner = [settings.pruner] if sparsity and (_moves(settings, sparsity) or _by_units(settings)) else []
    return ", ".join(["ours", *pruner, *([settings.distiller] if taught else [])])


def _moves(settings: Settings, sparsity: float) -> bool:
    """Whether a sparse-from-scratch pruner decides the masks."""
    return sparsity > 0 and issubclass(get_pruner(settings.pruner), StaticSparseTraining)


def _by_units(settings: Settings) -> bool:
    """Whether the method removes whole units, of which sparsities are then shares."""
    pruner = get_pruner(settings.pruner)
    chosen = issubclass(pruner, PruningUnderDistillation) and settings.prune_granularity == "units"
    return chosen or issubclass(pruner, StructuredPruning)


def ways_to_train(config: PruneConfig) -> tuple[bool, ...]:
    """Without a distiller, and with it where the settings have one."""
    return (False, True) if config.settings.distiller else (False,)


def settings_of(config: PruneConfig) -> dict[str, Any]:
    """What the results say about the runs: the settings, and what decides the cost among RecBole's defaults."""
    costs = ("train_batch_size", "eval_batch_size", "learner", "embedding_size", "n_layers", "seed", "epochs")
    known = {name: config[name] for name in costs if config[name] is not None}
    said = {name: value for name, value in config.plain_settings().items() if name not in PATHS}
    return {**known, **said, "device": str(config["device"])}
