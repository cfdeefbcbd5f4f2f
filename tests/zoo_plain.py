"""A model through RecBole's own classes, in the order of its ``run_recbole`` and ``load_data_and_model``.

Nothing of ours takes part except ``recbole_prune.compat``, which ``zoo`` applies. ``recbole.quick_start`` is not used.
"""

from __future__ import annotations

from pathlib import Path

import torch
from recbole.config import Config
from recbole.utils import init_seed
from zoo import DATASET, Settings, config_for, stages_of

from recbole_prune.anatomy.caches import CACHES
from recbole_prune.bench.plain import PlainRun


def build(model: str, settings: Settings) -> PlainRun:
    """Data, model and trainer from settings, as ``run_recbole`` makes them."""
    return PlainRun(Config(model=model, dataset=DATASET, config_dict=settings))


def reload(file: Path) -> PlainRun:
    """Everything anew from a checkpoint, as ``load_data_and_model`` does."""
    checkpoint = torch.load(file, weights_only=False)
    run = PlainRun(checkpoint["config"])
    run.model.load_state_dict(checkpoint["state_dict"])
    run.model.load_other_parameter(checkpoint.get("other_parameter"))
    return run


def evaluate(run: PlainRun) -> dict[str, float]:
    """Test metrics of the state as it is, with every random stream at a fixed place.

    A propagated table that the checkpoint does not hold is forgotten, so that it is made anew in both of two models
    to be compared. One that it holds stays: KGAT's depends on the graph's attention, which is not in the checkpoint.
    """
    for name in CACHES:
        if hasattr(run.model, name) and name not in getattr(run.model, "other_parameter_name", ()):
            setattr(run.model, name, None)
    init_seed(7, True)
    return dict(run.trainer.evaluate(run.test_data, load_best_model=False))


def last_stage_settings(model: str, data_path: Path, folder: Path) -> Settings:
    """Settings for the last training stage of ``model``, after plain runs of the stages before it.

    Args:
        model: name of a model; one without stages gets ``config_for(model, data_path)``.
        data_path: the folder given to ``zoo_data.make_dataset``.
        folder: receives one folder of checkpoints per stage, that of the last stage included.
    """
    stages = stages_of(model)
    checkpoint = None
    for number, stage in enumerate(stages.names if stages else (None,)):
        settings = config_for(model, data_path, stage=stage, stage_checkpoint=checkpoint)
        settings["checkpoint_dir"] = str(folder / f"stage{number}")
        if stages is not None and stage != stages.names[-1]:
            run = build(model, settings)
            run.trainer.fit(run.train_data, run.valid_data, verbose=False)
            checkpoint = Path(run.trainer.saved_model_file)
    return settings
