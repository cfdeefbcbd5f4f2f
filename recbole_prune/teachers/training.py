"""The settings with which teachers are trained first."""

from __future__ import annotations

from typing import Any

from recbole.utils import ModelType

from recbole_prune.anatomy.labels import learns_probabilities
from recbole_prune.config import host
from recbole_prune.config.files import read_settings
from recbole_prune.config.fingerprint import to_json
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.config.teachers import First
from recbole_prune.errors import ConfigError

# groups of RecBole's settings that say how data are read, split and evaluated, and where a process runs
_SHARED = ("General", "Evaluation", "Dataset")
_NOT_SHARED = ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path")
# their defaults depend on the kind of model, so the student's are handed on even where nobody set them
_DATA = ("eval_args", "load_col")
# as the published code has them
USUAL_STATES = 4
_OURS = (
    "output_dir", "cache_dataset", "prune_select", "prune_eval_mask", "recipe_notice",
    "measure_energy", "measure_seconds", "measure_idle_seconds", "measure_latency_users",
)  # fmt: skip


def teacher_config(config: PruneConfig, first: First, with_states: bool) -> PruneConfig:
    """The run that trains a teacher of a student; any student of it finds its folder.

    Data, split, evaluation, seed and output folder are the student's, and so are labels where both learn them. The
    model and its training have RecBole's defaults, and ``distill_teacher_settings``, which go before everything.

    Args:
        config: the student's settings.
        first: the teacher.
        with_states: whether states of its training are recorded, because the student's distiller reads them.

    Raises:
        ConfigError: the settings do not fit the model, or it is not trained by gradient.
    """
    name, given = first.model, first.settings
    shared = {key for group in _SHARED for key in config.parameters[group] if key not in _NOT_SHARED}
    plain = config.plain_settings()
    kept: dict[str, Any] = {key: value for key, value in plain.items() if key in shared or key in _OURS}
    kept.update({key: to_json(config[key]) for key in _DATA}, output_dir=config.settings.output_dir)
    if with_states:
        kept["distill_record_states"] = USUAL_STATES
    file = host.model_properties(name)
    usual = read_settings(str(file)) if file else {}
    if {**usual, **given}.get("loss_type") == "CE":  # RecBole refuses negative samples with it
        kept["train_neg_sample_args"] = None
    try:
        made = PruneConfig(name, config["dataset"], config_dict={**kept, **given, "pruner": "none"})
        missing = _missing_columns(made)
        more: dict[str, Any] = {"load_col": {**kept["load_col"], **missing}} if missing else {}
        if _learns_labels(config) and learns_probabilities(made.model_class):
            more["train_neg_sample_args"] = None  # else it would learn which pairs there are, and not their labels
        if more.keys() - given.keys():
            made = PruneConfig(name, config["dataset"], config_dict={**kept, **more, **given, "pruner": "none"})
    except ConfigError as error:
        raise ConfigError(f"{first.key}={name}, distill_teacher_settings={given}: {error}") from error
    if made["MODEL_TYPE"] in (ModelType.TRADITIONAL, ModelType.DECISIONTREE):
        raise ConfigError(
            f"{first.key}={name} is not trained by gradient: save a checkpoint of it with RecBole and name "
            "that with distill_teacher"
        )
    if with_states and not made.settings.distill_record_states:
        raise ConfigError(
            f"{first.key}={name}, distill_teacher_settings={given}: --distiller={config.settings.distiller} learns "
            f"from states of the training, so distill_record_states must be 2 or more ({USUAL_STATES} is usual)"
        )
    return made


def _learns_labels(student: PruneConfig) -> bool:
    """Whether the student learns the labels that its data have, without negatives that are drawn."""
    return student["train_neg_sample_args"]["distribution"] == "none" and learns_probabilities(student.model_class)


def _missing_columns(teacher: PruneConfig) -> dict[str, Any]:
    """Files that the teacher's kind of model reads and the student's does not, such as a knowledge graph."""
    usual, given = teacher.internal_config_dict.get("load_col"), teacher["load_col"]
    if not usual or not given:
        return {}
    return {suffix: columns for suffix, columns in usual.items() if suffix not in given}
