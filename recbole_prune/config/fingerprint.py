"""Hashes of settings: what differs from the defaults and matters to the result, in one form for equal values."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from recbole_prune.anatomy.outside import CHECKPOINTS
from recbole_prune.config import schema
from recbole_prune.config.settings import Settings, defaults
from recbole_prune.config.teachers import content_digest
from recbole_prune.config.usage import is_used
from recbole_prune.errors import ConfigError
from recbole_prune.ranks import group

# settings of RecBole that say where a process runs; they do not belong to what is trained
OF_THE_PROCESS = frozenset({
    "config_files", "config_file_list", "local_rank", "offset", "group_offset", "ip", "port", "nproc", "world_size",
})  # fmt: skip
# those that name a file or a folder
PATHS = frozenset({"data_path", "checkpoint_dir", "dataset_save_path", "dataloaders_save_path", *CHECKPOINTS})
# packages whose classes are known by their names and versions
_INSTALLED = {"recbole", "recbole_prune", "torch", "builtins", "typing", "abc"}
# methods whose defaults changed, and how often: a run of the earlier ones is another run
_CHANGED_DEFAULTS = {"dsl": 1, "sad": 1}
WITHOUT_EFFECT = OF_THE_PROCESS | {
    "model", "dataset", "data_path", "checkpoint_dir", "gpu_id", "use_gpu", "state", "show_progress",
    "saved", "loss_decimal_place", "log_wandb", "wandb_project", "save_dataset", "dataset_save_path",
    "dataloaders_save_path", "valid_metric_bigger",
}  # fmt: skip


def differences(config: Any, settings: Settings, missing: str | None = None) -> dict[str, Any]:
    """Return the settings of a run that differ from their defaults and matter to its result, in JSON's types.

    A teacher on disk is the sha256 of its content: where it lies is no matter. Of several the order counts.

    Args:
        config: a built RecBole Config.
        settings: the settings of this package for it.
        missing: what stands for a teacher that is no longer there.

    Raises:
        ConfigError: a teacher is not there, or is none, and there is no ``missing``.
    """
    usual = completed_defaults(config)
    found = {}
    for name in config.external_config_dict:
        if name not in settings and name not in WITHOUT_EFFECT:
            value = to_json(config.final_config_dict[name])
            if _canonical(value) != _canonical(to_json(usual.get(name))):
                found[name] = value
    source = own_model(config.model_class)
    if source is not None:
        found["model_class"] = source
    if group.count() > 1:  # parts of a batch have their own negatives within a batch, and sums have another order
        found["processes"] = group.count()
    base = defaults(settings.pruner, settings.distiller)
    for name, key in schema.known_keys().items():
        if key.changes != "nothing" and is_used(name, settings) and settings[name] != base[name]:
            found[name] = _contents(settings[name], missing) if key.type == "list of path" else to_json(settings[name])
    return found


def _contents(paths: Sequence[str], missing: str | None) -> str | list[str]:
    """What stands for files; for one, as it was when there could be no more."""
    return one_or_all([_content(path, missing) for path in paths])


def one_or_all(digests: Sequence[str]) -> str | list[str]:
    """The form in which the contents of several files stand in hashes and records: of a single one its own."""
    return digests[0] if len(digests) == 1 else list(digests)


def _content(path: str, missing: str | None) -> str:
    try:
        return content_digest(path)
    except ConfigError:
        if missing is None:
            raise
        return missing


@cache
def own_model(model_class: type) -> str | None:
    """sha256 of the source of a model class that is neither RecBole's nor ours; None for those.

    A class is its source and that of its bases, not its name: two scripts may give different models one name, and that
    of a model of RecBole. Where there is no source (typed into an interpreter) module and name stand for it.
    """
    own = [each for each in model_class.__mro__ if each.__module__.split(".")[0] not in _INSTALLED]
    if model_class not in own:
        return None
    return hashlib.sha256("\n".join(map(_source_of, own)).encode()).hexdigest()


def _source_of(model_class: type) -> str:
    try:
        return inspect.getsource(model_class)
    except (OSError, TypeError):
        return f"{model_class.__module__}.{model_class.__qualname__}"


def of_every_training(found: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the :func:`differences` that matter to a dense training."""
    keys = schema.known_keys()
    return {name: value for name, value in found.items() if name not in keys or keys[name].changes == "every training"}


def completed_defaults(config: Any) -> dict[str, Any]:
    """RecBole's defaults for the model and dataset of a config, completed as RecBole completes settings.

    ``topk: 10`` becomes ``[10]``, ``eval_args`` gets its missing parts, and so on.
    """
    from recbole.config import Config
    from recbole.utils import ModelType

    probe = Config.__new__(Config)
    # a general model with an input type of its own passes RecBole's checks of combinations, which are not asked here
    probe.__dict__.update(
        model=config.model,
        dataset=config.dataset,
        model_class=SimpleNamespace(input_type=None),
        final_config_dict={**copy.deepcopy(config.internal_config_dict), "MODEL_TYPE": ModelType.GENERAL},
    )
    probe._set_default_parameters()
    probe._set_train_neg_sample_args()
    return probe.final_config_dict  # type: ignore[no-any-return]


def digest_of_run(found: Mapping[str, Any], settings: Settings) -> str:
    """The :func:`digest` of a run's :func:`differences`, which holds what the defaults were that they differ from."""
    changes = {
        name: count for name, count in _CHANGED_DEFAULTS.items() if name in (settings.pruner, settings.distiller)
    }
    return digest({**found, **({"changed defaults": changes} if changes else {})})


def digest(values: Mapping[str, Any]) -> str:
    """10 hex digits of the sha256 of the canonical JSON of settings."""
    return hashlib.sha256(_canonical(dict(values)).encode()).hexdigest()[:10]


def to_json(value: Any) -> Any:
    """The value in JSON's types; what JSON lacks becomes text."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def plain_numbers(value: Any) -> Any:
    """A setting with Python's numbers for numpy's, also in lists and dicts: the one form that JSON and hashes take."""
    if type(value) is dict:
        return {name: plain_numbers(item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain_numbers(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value


def _canonical(value: Any) -> str:
    """JSON text that is equal for equal values: names sorted, 1.0 written as 1."""
    return json.dumps(_whole(value), sort_keys=True, separators=(",", ":"))


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
