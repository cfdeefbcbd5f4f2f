"""Teachers for tests: checkpoints that plain RecBole writes, and the students that open them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import ModelType, get_trainer, init_seed
from zoo import DATASET, config_for

from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.distillers import get_distiller
from recbole_prune.errors import ConfigError, PruneError
from recbole_prune.run.store import RunFolder
from recbole_prune.teachers.base import Teacher
from recbole_prune.teachers.pupils import Pupils
from recbole_prune.teachers.sources import open_teacher


class Trained:
    """A model of plain RecBole as its launcher builds it, and the file that it saves; nothing is trained."""

    def __init__(self, model: str | type, settings: dict[str, Any], folder: Path, epochs: int = 0) -> None:
        settings = {**settings, "checkpoint_dir": str(folder)}
        self.config = Config(model, DATASET, config_dict=settings)
        init_seed(self.config["seed"], self.config["reproducibility"])
        self.dataset = create_dataset(self.config)
        self.train_data, _, self.test_data = data_preparation(self.config, self.dataset)
        init_seed(self.config["seed"], self.config["reproducibility"])
        self.model = self.config.model_class(self.config, self.train_data._dataset).to(self.config["device"])
        if epochs:  # some models count in their loss
            for batch in self.train_data:
                self.model.calculate_loss(batch)
        self.trainer = get_trainer(self.config["MODEL_TYPE"], self.config["model"])(self.config, self.model)
        self.model.eval()

    def save(self, file: Path) -> Path:
        """Write its checkpoint."""
        self.trainer._save_checkpoint(0, verbose=False, saved_model_file=str(file))
        return file


def settings_of(model: str, data: Path, **changes: Any) -> dict[str, Any]:
    """Settings with which a model of any kind trains on the same interactions."""
    split = {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"}}
    columns = {"load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]}}
    return {**columns, **config_for(model, data), "user_inter_num_interval": "[0,36]", **split, **changes}


def student_config(data: Path, teacher: Path | None, model: str = "BPR", **changes: Any) -> PruneConfig:
    """Settings of a student of a teacher on disk."""
    named = {} if teacher is None else {"distill_teacher": str(teacher)}
    return PruneConfig(model, DATASET, config_dict={**settings_of(model, data), "distiller": "rrd", **named, **changes})


_known: dict[tuple[str, bool, bool], Pupils] = {}


def pupils_of(config: Config, of_rows: bool = False, mask_observed: bool = True) -> Pupils:
    """The student's data, read once for each model and split."""
    names = ("data_path", "model", "eval_args", "user_inter_num_interval", "MAX_ITEM_LIST_LENGTH", "load_col")
    key = repr([config[name] for name in names]), of_rows, mask_observed
    if key not in _known:
        init_seed(config["seed"], config["reproducibility"])
        dataset = create_dataset(config)
        training = data_preparation(config, dataset)[0]._dataset
        _known[key] = Pupils(training, of_rows, mask_observed=mask_observed)
    return _known[key]


def open_for(
    data: Path,
    teacher: Path,
    model: str = "BPR",
    folder: RunFolder | None = None,
    of_rows: bool = False,
    **changes: Any,
) -> Teacher:
    """The teacher as a student's run opens it."""
    config = student_config(data, teacher, model, **{"distill_interesting": 1, **changes})  # so that lists may be short
    pupils = pupils_of(config, of_rows, config.settings.distill_mask_observed)
    return open_teacher(config, pupils, folder)


def no_gradient(*tensors: torch.Tensor) -> bool:
    """Whether tensors are constants."""
    return not any(tensor.requires_grad for tensor in tensors)


def refusal(call: Any, kind: type[PruneError] = ConfigError) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def first_rows(pupils: Any) -> Any:
    """A few rows of the student's training data."""
    return pupils.dataset.inter_feat[np.arange(8)]


def checkpoint(data: Path, folder: Path, model: str = "BPR") -> tuple[Trained, Path]:
    """An untrained model, and the file that has it."""
    trained = Trained(model, settings_of(model, data), folder)
    return trained, trained.save(folder / f"{model}.pth")


class Checkpoints:
    """Checkpoints of untrained models: one for each model and folder of data, and a new one for changed settings.

    Args:
        folder: where they are written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._known: dict[tuple[str, Path], tuple[Trained, Path]] = {}

    def __call__(self, model: str, data: Path, **changes: Any) -> tuple[Trained, Path]:
        """A model, and the file that has it; not to be written again, since other tests open it."""
        if changes:
            return self._write(model, data, **changes)
        if (model, data) not in self._known:
            self._known[model, data] = self._write(model, data)
        return self._known[model, data]

    def _write(self, model: str, data: Path, **changes: Any) -> tuple[Trained, Path]:
        self._count += 1
        trained = Trained(model, settings_of(model, data, **changes), self._folder, epochs=int(model == "Pop"))
        return trained, trained.save(self._folder / f"{model}-{self._count}.pth")


class Beginner:
    """An untrained student, and a method that is ready to teach it.

    Args:
        method: name of a distiller.
        data: the folder of the data.
        teacher: file of the teacher.
        folder: for what RecBole writes.
        model: of the student.
        whole_rows: whether the student's loss compares all items of a row.
        changes: of the settings.
    """

    def __init__(
        self,
        method: str,
        data: Path,
        teacher: Path,
        folder: Path,
        model: str = "BPR",
        whole_rows: bool = False,
        **changes: Any,
    ) -> None:
        changes = {"distiller": method, **changes}
        config = student_config(data, teacher, model, **changes)
        of_rows = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        self.teacher = open_for(data, teacher, model, of_rows=of_rows, **changes)
        mine = {name: value for name, value in changes.items() if not name.startswith("distill")}
        self.trained = Trained(model, settings_of(model, data, seed=5, **mine), folder)
        self.student: Any = self.trained.model.train()
        self.teacher.pupils.batches = len(self.trained.train_data)
        self.teacher.pupils.whole_rows = whole_rows
        self.teacher.pupils._example = lambda: next(iter(self.trained.train_data))
        self.part: Any = get_distiller(method)(config.settings, self.teacher, self.teacher.pupils)
        self.part.ask(self.student, self.teacher)
        self.part.attach(self.student)
        self.part.begin_epoch()

    def batch(self) -> Interaction:
        """Rows of the training data, without negatives."""
        rows = self.teacher.pupils.dataset.inter_feat
        found: Interaction = rows[np.random.default_rng(0).permutation(len(rows))[:64]]
        return found
