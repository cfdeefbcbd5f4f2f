"""The two sides of a benchmark on the same settings: plain RecBole from its own pieces, and this package.

Plain RecBole is its own Config, dataset, dataloaders, model and trainer in the order of ``run_recbole``, patched only
where it does not run on the installed libraries (:mod:`recbole_prune.compat`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import trainer as trainer_module
from recbole.utils import get_model, get_trainer, init_seed
from torch.utils.tensorboard import SummaryWriter

from recbole_prune.anatomy.caches import forget_caches
from recbole_prune.commands.run import hand_to_recbole
from recbole_prune.config.paths import property_file
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.data import random_streams
from recbole_prune.masking.allocate import select
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.random_masks import kept_by_target, random_masks
from recbole_prune.masking.schedule import removed_exact
from recbole_prune.masking.scope import Scope
from recbole_prune.masking.scores import magnitude
from recbole_prune.pruners import get_pruner
from recbole_prune.pruners.dynamic_sparse import StaticSparseTraining
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.store import RunFolder
from recbole_prune.run.ticket import Plan
from recbole_prune.run.ticket_training import TicketTraining


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder that also takes the TensorBoard files of every trainer built meanwhile."""
    original = trainer_module.get_tensorboard
    with tempfile.TemporaryDirectory(prefix="recbole-prune-bench-") as folder:
        trainer_module.get_tensorboard = lambda logger: SummaryWriter(str(Path(folder, "tensorboard")))
        try:
            yield Path(folder)
        finally:
            trainer_module.get_tensorboard = original


@dataclass
class Request:
    """What the user asked to measure.

    Attributes:
        model, dataset: as for ``run_recbole``.
        files: the user's config files, below them one with the benchmark's own defaults.
    """

    model: str
    dataset: str
    files: list[str]

    @classmethod
    def of(cls, words: list[str], scratch: Path, **defaults: Any) -> Request:
        """From the words of the command line that are no options of the benchmark; sets ``sys.argv`` for RecBole."""
        model, dataset, files = hand_to_recbole(words)
        own = scratch / "bench.yaml"
        own.write_text(yaml.safe_dump(defaults), encoding="utf-8")
        return cls(model, dataset, [str(own), *(files or [])])

    def ours(self) -> PruneConfig:
        """The config of our side."""
        return PruneConfig(self.model, self.dataset, self.files)

    def plain(self, ours: PruneConfig) -> Any:
        """RecBole's own Config of the same settings; a recipe is the lowest of the files, as on our side."""
        recipe = ours.settings.recipe
        files = [*([str(property_file("recipe", recipe))] if recipe else []), *self.files]
        return Config(self.model, self.dataset, files)


class PlainRun:
    """Plain RecBole: data, model and trainer; ``config`` is RecBole's Config.

    Args:
        config: RecBole's Config.
        scratch: for checkpoints.
    """

    def __init__(self, config: Any, scratch: Path) -> None:
        self.config = config
        init_seed(config["seed"], config["reproducibility"])
        self.dataset = create_dataset(config)
        self.train_data, self.valid_data, self.test_data = data_preparation(config, self.dataset)
        init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
        self.model = get_model(config["model"])(config, self.train_data._dataset).to(config["device"])
        config["checkpoint_dir"] = str(scratch)
        self.trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, self.model)
        begin(self.trainer, self.train_data)

    def reseed(self, number: int = 0) -> None:
        """Data order and random streams of a fixed place."""
        reseed(self.config, [self.train_data, self.valid_data, self.test_data], number)

    def wear(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over weights in RecBole's dense form."""
        self.model.load_state_dict(weights)
        forget_caches(self.model)
        if hasattr(self.model, "update_attentive_A"):
            with torch.no_grad():  # KGAT's graph follows from its weights but is not saved with them
                self.model.update_attentive_A()


class OurRun:
    """This package on the same settings; nothing is written outside ``scratch``."""

    def __init__(self, config: PruneConfig, scratch: Path) -> None:
        config["checkpoint_dir"] = str(scratch)
        self.config = config
        self.experiment = Experiment(config, RunFolder(scratch / "run"))

    @property
    def scope(self) -> Scope:
        """The targets."""
        return self.experiment.scope

    def candidate(self, sparsity: float) -> tuple[str, Any]:
        """A name for results and the trainer at a sparsity: random masks, or those of a sparse-from-scratch pruner."""
        pruner = self.config.settings.pruner
        if sparsity and issubclass(get_pruner(pruner), StaticSparseTraining):
            return f"ours, {pruner}", self._dynamic_trainer(sparsity)
        return "ours", self.trainer(self.random_masks(sparsity))

    def _dynamic_trainer(self, sparsity: float) -> Any:
        """The trainer of a sparse-from-scratch pruner (``--pruner=dsl``), whose masks may move while it trains."""
        settings = self.config.settings
        config = self.config.from_plain_settings(
            {**self.config.plain_settings(), "prune_target_sparsity": sparsity, "prune_dense": False}
        )
        experiment = self.experiment
        experiment.config, experiment.settings = config, config.settings
        pruner = get_pruner(settings.pruner)(experiment)
        pruner.check()
        trainer = TicketTraining(experiment, pruner.plan()).trainer  # type: ignore[attr-defined]
        begin(trainer, experiment.train_data)
        return trainer

    def trainer(self, masks: MaskSet, weights: dict[str, torch.Tensor] | None = None) -> Any:
        """The trainer of a ticket under masks, from the initial weights or from given ones; as in a run."""
        number = 0 if masks.is_dense else 1
        trainer = TicketTraining(self.experiment, Plan(number, masks, weights=weights)).trainer
        begin(trainer, self.experiment.train_data)
        return trainer

    def reseed(self, number: int = 0) -> None:
        """Data order and random streams of a fixed place."""
        reseed(self.config, self.experiment.loaders, number)

    def random_masks(self, sparsity: float) -> MaskSet:
        """Masks of exactly this sparsity in every target, drawn by the seed."""
        if not sparsity:
            return MaskSet.dense(self.scope)
        return random_masks(self.scope, kept_by_target(self.scope, 1 - sparsity, "exact"), "exact", self.config["seed"])

    def magnitude_masks(self, weights: Mapping[str, torch.Tensor], sparsity: float) -> MaskSet:
        """Masks of exactly this sparsity that keep the largest weights."""
        return _masks(magnitude(weights, self.scope), self.scope, sparsity)

    def trained(self, epochs: int) -> dict[str, torch.Tensor]:
        """The dense model's ``state_dict`` after some epochs, without validation."""
        trainer = self.trainer(MaskSet.dense(self.scope))
        for epoch in range(epochs):
            trainer._train_epoch(self.experiment.train_data, epoch, show_progress=self.config["show_progress"])
        return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def _masks(scores: Mapping[str, torch.Tensor], scope: Scope, sparsity: float) -> MaskSet:
    dense = MaskSet.dense(scope)
    return select(scores, dense, scope.prunable - removed_exact(sparsity, scope.prunable)) if sparsity else dense


def begin(trainer: Any, train_data: Any) -> None:
    """What RecBole's ``fit`` does before its first epoch."""
    trainer.eval_collector.data_collect(train_data)
    if trainer.config["train_neg_sample_args"].get("dynamic", False):
        train_data.get_model(trainer.model)


def reseed(config: Any, loaders: list[Any], number: int) -> None:
    """Data order and random streams of a place that the seed and a number say."""
    random_streams.reseed(loaders, config["seed"] + number)
    init_seed(config["seed"] + number, config["reproducibility"])


def settings_of(config: PruneConfig) -> dict[str, Any]:
    """What the results say about the runs: the settings, and what decides the cost among RecBole's defaults."""
    costs = ("train_batch_size", "eval_batch_size", "learner", "embedding_size", "n_layers", "seed", "epochs")
    known = {name: config[name] for name in costs if config[name] is not None}
    return {**known, **config.plain_settings(), "device": str(config["device"])}
