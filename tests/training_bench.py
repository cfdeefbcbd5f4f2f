"""A model, its data and its mask-aware trainer on the data set ``tiny``, built as an experiment builds them."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.utils import get_model, get_trainer, init_seed
from zoo import DATASET, config_for

from recbole_prune.bench.plain import PlainData
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.padding import padding_rule
from recbole_prune.masking.scope import Scope, find_scope
from recbole_prune.run import provenance, siblings
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.opening import run_path
from recbole_prune.run.store import RunFolder
from recbole_prune.run.workshop import Workshop
from recbole_prune.training import codec
from recbole_prune.training.model import mask_aware
from recbole_prune.training.parts import Training
from recbole_prune.training.session import Files, Session
from recbole_prune.training.trainer import mask_aware_trainer


class MemoryFiles(Files):
    """What a training wrote: the newest checkpoint, and every state by epoch with the checkpoint of that moment."""

    def __init__(self, checkpoint: bytes = b"") -> None:
        self.checkpoint = checkpoint
        self.states: dict[int, tuple[bytes, bytes]] = {}
        self.rewind_states: dict[int, bytes] = {}

    def before_epoch(self, epoch: int, trainer: Training) -> None:
        """Keep the state of every epoch but the first."""
        self.rewind_states[epoch] = codec.encode(trainer.rewind_state())
        if epoch:
            self.states[epoch] = codec.encode(trainer.resume_state()), self.checkpoint


class Bench:
    """Data and settings of one model; every call of :meth:`model` starts a training anew.

    Args:
        name: a RecBole model.
        data_path: the folder of ``tiny``.
        settings: RecBole settings on top of the zoo's.
    """

    def __init__(self, name: str, data_path: Path, **settings: Any) -> None:
        self.name = name
        self.config = Config(name, DATASET, config_dict={**config_for(name, data_path), **settings})
        self.plain = PlainData(self.config)
        self.loaders = self.plain.loaders
        self.train, self.valid, self.test = self.loaders

    def plain_model(self, model_class: type | None = None) -> Any:
        """RecBole's own model under the run's seed."""
        self.plain.reseed()
        return self.plain.build_model(model_class)

    def model(self, masks: MaskSet | None = None, storage: str = "masked") -> Any:
        """The mask-aware model under the same seed, with masks on."""
        model = self.plain_model(mask_aware(get_model(self.name)))
        model.storage = storage
        model.set_masks(masks)
        return model

    def scope(self, **arguments: Any) -> Scope:
        """Targets of the model."""
        model = self.plain_model()
        return find_scope(model, padding=padding_rule(model, self.train._dataset), **arguments)

    def masks(self, density: float = 0.5, **arguments: Any) -> MaskSet:
        """Random masks over the targets."""
        scope = self.scope(**arguments)
        generator = torch.Generator().manual_seed(8)
        masks = {t.name: torch.rand(t.shape, generator=generator) < density for t in scope}
        for target in scope:
            masks[target.name][list(target.padding_rows)] = True
        return MaskSet(scope, masks)

    def trainer(self, model: Any, files: MemoryFiles | None = None, **session: Any) -> Any:
        """A mask-aware trainer that keeps its files in memory."""
        files = files if files is not None else MemoryFiles()
        trainer_class = mask_aware_trainer(get_trainer(self.config["MODEL_TYPE"], self.name))
        trainer = trainer_class(self.config, model, Session("ticket 1", self.loaders, files, **session))
        trainer.files = files
        return trainer

    def fit(self, trainer: Any) -> Any:
        """RecBole's training loop; (best score, best result)."""
        return trainer.fit(self.train, self.valid, saved=True, show_progress=False, verbose=False)


def experiment_of(result: dict[str, Any], model: str, settings: dict[str, Any]) -> Experiment:
    """The finished run that :func:`recbole_prune.run_recbole_prune` returned, for those who ask on."""
    config = PruneConfig(model=model, dataset=DATASET, config_dict=settings)
    return Experiment(Workshop(config), RunFolder(Path(result["folder"])))


def before_training(config: PruneConfig) -> Experiment:
    """A run as it is before its first training, with the dense model of a run beside it if that one has it."""
    folder = RunFolder(run_path(config))
    folder.open()
    provenance.record(config, folder, provenance.require_same_data(config, folder))
    experiment = Experiment(Workshop(config), folder)
    siblings.adopt_dense(experiment)
    folder.close()
    return experiment


def scramble_random_streams() -> None:
    """Put every global stream somewhere else, as another process would have it."""
    random.seed(99)
    np.random.seed(98)
    torch.manual_seed(97)


def leaks(model: Any, masks: MaskSet) -> int:
    """Pruned entries of a model that are not exactly 0.0."""
    weights = model.state_dict()
    return sum(int((weights[name][~mask] != 0).sum()) for name, mask in masks.items())


def without_clocks(record: dict[str, Any]) -> dict[str, Any]:
    """What journal lines of equal trainings have in common; checkpoints hold the settings, output_dir too."""
    clocks = {key for key in record if key.endswith("seconds") or key == "checkpoint_sha256"}
    kept = {key: value for key, value in record.items() if key not in clocks}
    if "smaller" in kept:
        kept["smaller"] = {key: value for key, value in kept["smaller"].items() if key != "checkpoint_sha256"}
    counted = ("parameters", "live_parameters", "bytes_by_format")  # the rest is read off the machine
    return {**kept, "measured": {name: kept["measured"][name] for name in counted}}


@torch.no_grad()
def scores(model: Any, test_data: Any, dataset: Any) -> torch.Tensor:
    """Scores of the first test batch, with every random stream at the same place."""
    init_seed(7, True)
    device = next(model.parameters()).device
    batch = next(iter(test_data))[0].to(device)
    try:
        return model.full_sort_predict(batch)
    except NotImplementedError:
        if dataset.iid_field in batch.columns:
            return model.predict(batch)
        items = torch.arange(1, dataset.item_num, device=device)[: len(batch)]
        fields = {name: batch[name][: len(items)] for name in batch.columns}
        return model.predict(Interaction({**fields, dataset.iid_field: items}))


def keys(**changes: Any) -> SimpleNamespace:
    """Settings of prune-and-grow, those of ``dsl`` but for the changes."""
    values = {
        "pruner": "dsl",
        "prune_parity": "exact",
        "prune_growth": "gradient",
        "prune_update_interval": 100,
        "prune_update_ratio": 0.5,
        "prune_update_floor": 0.005,
        "prune_end_fraction": 1.0,
        "prune_gradient_window": 1,
        "prune_moments": "reset",
    }
    return SimpleNamespace(**{**values, **changes})


class Killed(BaseException):
    """Stands for SIGKILL inside one process: nothing in the package may catch it."""


def kill(*_: Any, **__: Any) -> None:
    """Take the place of a function in which the process is killed."""
    raise Killed
