"""The states of a teacher's training that its run folder keeps: what is missed, and the model of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.utils import ModelType

from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.config.teachers import Named
from recbole_prune.errors import ConfigError
from recbole_prune.run.foreign_checkpoint import read_checkpoint
from recbole_prune.run.rebuild import Rebuilt, rebuild_state
from recbole_prune.run.store import RunFolder, recorded_states
from recbole_prune.teachers.training import USUAL_STATES

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender


def run_of(named: Named) -> RunFolder:
    """The run folder of a teacher of kind ``run``."""
    return RunFolder(named.path.parent.parent if named.path.suffix == ".pth" else named.path)


def require_states(named: Named, config: PruneConfig, line: Mapping[str, Any] | None) -> None:
    """Refuse a teacher without states of its training; what is not trained in epochs has one, itself.

    Args:
        named: the teacher.
        config: its settings.
        line: of its ticket in the journal, where it is of a run.

    Raises:
        ConfigError: they were not recorded, or are gone.
    """
    if config["MODEL_TYPE"] in (ModelType.TRADITIONAL, ModelType.DECISIONTREE):
        return
    if line is None or "states" not in line:
        missing, dense = "it has no states of its training, from which this method learns", _dense_with_states(named)
        if dense is not None:
            raise ConfigError(f"{missing}, but the dense model of the same run has: name {dense}")
        raise ConfigError(
            f"{missing}: train it with this program and --distill_record_states={USUAL_STATES}, and name "
            "checkpoints/ticket-000.pth in the run folder (ticket 0, the dense model, has them)"
        )
    folder = run_of(named)
    gone = [state["file"] for state in recorded_states(line) if not folder.has(state["file"])]
    if gone:
        raise ConfigError(
            f"{folder.path / gone[0]} is missing, as after recbole-prune clean: this method learns from the states of "
            f"the training. Train it anew with --distill_record_states={line['states']['count']}, once that "
            "run folder is moved away"
        )


def _dense_with_states(named: Named) -> Path | None:
    """The checkpoint of ticket 0 in the run folder of a teacher, if its training was recorded."""
    if named.kind != "run":
        return None
    folder = run_of(named)
    return next((folder.path / line["checkpoint_file"] for line in folder.tickets() if "states" in line), None)


def build_state(rebuilt: Rebuilt, named: Named, state: Mapping[str, Any], device: torch.device) -> AbstractRecommender:
    """The model of a recorded state.

    Args:
        rebuilt: the teacher.
        named: where it is.
        state: as the journal names it.
        device: where the model is to be.

    Raises:
        PruneError: its file is damaged or holds NaN.
    """
    folder = run_of(named)
    place = str(folder.path / state["file"])
    checkpoint = read_checkpoint(folder.read(state["file"], state["sha256"]), place)
    try:
        check_weights({name: tensor.float().numpy() for name, tensor in checkpoint.state.items()})
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    model: AbstractRecommender = rebuild_state(rebuilt, checkpoint, place).to(device)
    return model


def check_weights(state: Mapping[str, np.ndarray]) -> None:
    """Refuse weights that are no numbers.

    Raises:
        ConfigError: some are NaN.
    """
    for name, array in state.items():
        wrong = int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0
        if wrong:
            raise ConfigError(f"{wrong} of the {array.size} weights in {name} are NaN")
