"""Plain RecBole from its own pieces, in the order of its ``run_recbole``: data, model and trainer of one run.

Its FLOPs counter is left out. It is patched only where it does not run on the installed libraries
(:mod:`recbole_prune.compat`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
from torch import nn

from recbole_prune.anatomy.caches import refresh
from recbole_prune.config import schema
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.data import random_streams

if TYPE_CHECKING:
    from recbole.data.dataloader import AbstractDataLoader
    from recbole.trainer import Trainer


class _WordlessConfig(Config):
    """RecBole's Config, which does not look at the words of this process."""

    def _load_cmd_line(self) -> dict[str, Any]:
        return {}


def plain_config(ours: PruneConfig, scratch: Path) -> Config:
    """RecBole's own Config of the settings of a run, without those of this package.

    Args:
        ours: the run's config.
        scratch: folder for checkpoints, and for the file that hands the settings over: from a file RecBole takes values
            as they are.
    """
    settings = {name: value for name, value in ours.plain_settings().items() if name not in schema.known_keys()}
    model, dataset = settings.pop("model"), settings.pop("dataset")
    file = scratch / "plain.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    config = _WordlessConfig(model, dataset, [str(file)])
    config["checkpoint_dir"] = str(scratch)
    return config


class PlainData:
    """Data of plain RecBole, and models and trainers over it.

    Args:
        config: RecBole's Config.

    Attributes:
        dataset, train_data, valid_data, test_data: as ``run_recbole`` makes them.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        init_seed(config["seed"], config["reproducibility"])
        self.dataset = create_dataset(config)
        self.train_data, self.valid_data, self.test_data = data_preparation(config, self.dataset)

    @property
    def loaders(self) -> list[AbstractDataLoader]:
        """The three dataloaders."""
        return [self.train_data, self.valid_data, self.test_data]

    def reseed(self, number: int = 0) -> None:
        """Data order and random streams of a fixed place."""
        reseed(self.config, self.loaders, number)

    def build_model(self, model_class: type | None = None) -> Any:
        """A model under the run's seed; by default of the class that RecBole has for the name in the config."""
        config = self.config
        init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
        return (model_class or get_model(config["model"]))(config, self.train_data._dataset).to(config["device"])

    def build_trainer(self, model: nn.Module) -> Trainer:
        """RecBole's trainer for a model; it saves in the config's ``checkpoint_dir``."""
        config = self.config
        trainer: Trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        return trainer


class PlainRun(PlainData):
    """Data, model and trainer of plain RecBole.

    Args:
        config: RecBole's Config; its ``checkpoint_dir`` says where the trainer saves.

    Attributes:
        model, trainer: as ``run_recbole`` makes them.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.model = self.build_model()
        self.trainer = self.build_trainer(self.model)

    def begin(self) -> PlainRun:
        """What RecBole's ``fit`` does before its first epoch."""
        begin(self.trainer, self.train_data)
        return self

    def wear(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over weights in RecBole's dense form."""
        self.model.load_state_dict(weights)
        refresh(self.model)


def begin(trainer: Trainer, train_data: AbstractDataLoader) -> None:
    """What RecBole's ``fit`` does before its first epoch."""
    trainer.eval_collector.data_collect(train_data)
    if trainer.config["train_neg_sample_args"].get("dynamic", False):
        train_data.get_model(trainer.model)


def reseed(config: Config, loaders: list[AbstractDataLoader], number: int) -> None:
    """Data order and random streams of a place that the seed and a number say."""
    random_streams.reseed(loaders, config["seed"] + number)
    init_seed(config["seed"] + number, config["reproducibility"])
