"""Values of RecBole's settings: the types that its property files declare, and ranges where a run would stumble.

RecBole itself takes any value and fails in the middle of a run, or quietly does something else. Read from its files,
nothing of RecBole is imported.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import inf, isfinite
from os import PathLike
from pathlib import Path
from sys import float_info
from typing import Any, Callable, NamedTuple

from recbole_prune.config import host
from recbole_prune.config.near import did_you_mean, near_names
from recbole_prune.errors import ConfigError

_LINE = re.compile(
    r"^(?P<name>[\w-]+):[ \t]*(?P<default>[^#\n]*?)[ \t]*(?:#[ \t]*(?:\((?P<type>[^)\n]*)\))?.*)?$", re.MULTILINE
)
# config/evaluation.py, RecBole itself and a rule below answer for these
_ELSEWHERE = {"metrics", "topk", "valid_metric", "eval_args", "train_neg_sample_args", "gpu_id"}
# what RecBole takes beyond what it declares
_ALSO = {"additional_feat_suffix": "str", "user_inter_num_interval": "list", "item_inter_num_interval": "list"}
# the least that works; eval_step=0 and all numbers below mean no validation: the last epoch is the best then
_LEAST = {
    "epochs": 1, "train_batch_size": 1, "eval_batch_size": 1, "stopping_step": 0, "seed": 0, "worker": 0,
    "loss_decimal_place": 0, "metric_decimal_place": 0, "MAX_ITEM_LIST_LENGTH": 1, "weight_decay": 0,
}  # fmt: skip
_MOST = {"seed": 2**32 - 1}
_ABOVE_ZERO = ("learning_rate",)
_CHOICES = {
    "learner": ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"),
    "state": ("INFO", "DEBUG", "WARNING", "ERROR", "CRITICAL"),
}
_COUNTS = re.compile(r"(?:n|num)_\w+|\w+_(?:size|num|layers)")
_DEVICES = re.compile(r"|-?\d+(?:,\d+)*|(?:GPU|MIG)-[\w/-]+(?:,(?:GPU|MIG)-[\w/-]+)*")


class _Kind(NamedTuple):
    """A type of RecBole's: what a value must be in words, and whether one is."""

    allowed: str
    fits: Callable[[Any], bool]


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, not True or False."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a finite number, not True or False."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= float_info.max


_KINDS = {
    "int": _Kind("a whole number", is_whole),
    "float": _Kind("a finite number", is_number),
    "bool": _Kind("True or False", lambda value: value is None or (isinstance(value, int) and value in (0, 1))),
    "str": _Kind("text", lambda value: isinstance(value, (str, PathLike))),
    "list": _Kind("a list such as ['a', 'b']", lambda value: isinstance(value, (list, tuple))),
    "dict": _Kind("a dict such as {'key': value}", lambda value: isinstance(value, dict)),
}
# settings of RecBole's launcher: what is allowed, and whether a value is
_OF_PROCESSES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "nproc": ("a whole number of processes, at least 1", lambda value: is_whole(value) and value >= 1),
    "world_size": (
        "a whole number of processes of all machines, -1 for those of this one",
        lambda value: is_whole(value) and (value >= 1 or value == -1),
    ),
    "group_offset": ("a whole number, at least 0", lambda value: is_whole(value) and value >= 0),
    "port": ("the number of a port, 1 to 65535", lambda value: is_whole(value) and 1 <= value <= 65535),
}
# settings that are needed, so that None is no value for them
_NEVER_NONE = ("data_path", "checkpoint_dir", "learner", "field_separator", "seq_separator")


class _Declared(NamedTuple):
    """A setting in a property file: its default as Python, None where it has none, and its types."""

    default: Any
    types: tuple[str, ...]


@lru_cache(maxsize=1)
def _general() -> dict[str, _Declared]:
    """Settings of every run; their types are declared with care."""
    properties = host.recbole_folder() / "properties"
    declared = {**_declared_in(properties / "overall.yaml"), **_declared_in(properties / "dataset" / "sample.yaml")}
    return {"tail_ratio": _Declared(None, ("float",)), **declared}  # of the metric TailPercentage, in no file


def _declared_in(file: Path) -> dict[str, _Declared]:
    found = {}
    for line in _LINE.finditer(file.read_text(encoding="utf-8")):
        types = tuple(word for word in (line["type"] or "").split(" or ") if word in _KINDS)
        found[line["name"]] = _Declared(read_word(line["default"]), types)
    return found


@lru_cache(maxsize=1)
def _of_model(model: str) -> dict[str, _Declared]:
    """Settings of a model, typed by their defaults: what RecBole writes beside them is often another type."""
    file = host.model_properties(model)
    if file is None:
        return {}
    return {
        name: _Declared(default, (kind,))
        for name, (default, _) in _declared_in(file).items()
        for kind in [_kind_of_default(name, default)]
        if kind
    }


def _kind_of_default(name: str, default: Any) -> str:
    if isinstance(default, bool):
        return "bool"
    if is_whole(default) and _COUNTS.fullmatch(name):
        return "int"
    return "float" if is_number(default) else "list" if isinstance(default, list) else ""


def read_word(text: str) -> Any:
    """A value as RecBole reads it from a command line, as far as that needs no ``eval``; what is no literal is text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False, "~": None, "null": None}.get(text.lower(), text)


def is_text(name: str) -> bool:
    """Whether RecBole takes nothing but text for a setting."""
    return name in _general() and _general()[name].types == ("str",) and name not in _ELSEWHERE


def numbers_in(value: object) -> list[int]:
    """The whole numbers of a setting that is one or a list of them, else none."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    numbers = [part for part in parts if isinstance(part, int) and is_whole(part)]
    return numbers if len(numbers) == len(parts) else []


def default_of(name: str, model: str) -> Any:
    """What the property file of a model says for a setting of the model; None where it has none."""
    declared = _of_model(model).get(name)
    return None if declared is None or name in _general() else declared.default


def check_values(settings: Mapping[str, Any], names: Iterable[str], model: str) -> None:
    """Refuse values that RecBole would stumble over in the middle of a run, or quietly take for others.

    Args:
        settings: values by name.
        names: those to check.
        model: name of the model.

    Raises:
        ConfigError: a value has the wrong type, is out of range, or asks for what does not work here.
    """
    of_model = _of_model(model)
    for name in names:
        value = settings[name]
        if name in _ELSEWHERE:
            continue
        if name in _general():
            _check_type(name, value, _general()[name])
        elif name in of_model:
            _check_type(name, value, of_model[name])
        if name in _CHOICES and value is not None and str(value).lower() not in map(str.lower, _CHOICES[name]):
            near = did_you_mean(near_names(str(value), _CHOICES[name])[:1])
            raise ConfigError(f"{name}={value} is not allowed: RecBole takes {', '.join(_CHOICES[name])}{near}")
    if "gpu_id" in names:
        _check_devices(settings["gpu_id"])
    _check_launcher({name: settings[name] for name in names})


def _check_type(name: str, value: Any, declared: _Declared) -> None:
    types = (*declared.types, _ALSO[name]) if name in _ALSO else declared.types
    is_numeric = bool({"int", "float"} & set(types))
    needed = name in _NEVER_NONE or (is_numeric and declared.default is not None)
    if not types or (value is None and not needed):
        return
    least = _LEAST.get(name, 1 if name.endswith("_size") and "int" in types else -inf)
    most = _MOST.get(name, inf)
    if any(_KINDS[kind].fits(value) for kind in types) and (
        not is_numeric or (least <= value <= most and (value > 0 or name not in _ABOVE_ZERO))
    ):
        return
    allowed = " or ".join(_KINDS[kind].allowed for kind in types)
    allowed += " above 0" if name in _ABOVE_ZERO else ""
    allowed += f", at least {least}" if isfinite(least) else ""
    allowed += f" and at most {most}" if isfinite(most) else ""
    raise ConfigError(f"{name}={value} is not allowed: RecBole takes {allowed}")


def _check_devices(value: object) -> None:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    if not _DEVICES.fullmatch(text.replace(" ", "")):
        raise ConfigError(
            f"gpu_id={value} is not allowed: RecBole takes the number of a GPU, several with commas, or nothing for "
            "the CPU"
        )


def _check_launcher(settings: Mapping[str, Any]) -> None:
    """What RecBole's launchers and its logger are asked for."""
    for name, (allowed, fits) in _OF_PROCESSES.items():
        if settings.get(name) is not None and not fits(settings[name]):
            raise ConfigError(f"{name}={settings[name]} is not allowed: RecBole takes {allowed}")
    if settings.get("local_rank") is not None:
        raise ConfigError(
            f"local_rank={settings['local_rank']} is not allowed: which one process of several this is, its "
            "environment says (LOCAL_RANK, as torchrun and --nproc set it)"
        )
    if settings.get("saved") is False:
        raise ConfigError(
            "saved=False is not allowed: a run keeps its tickets in its folder, where resuming and export need them"
        )
    if settings.get("log_wandb") and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"log_wandb={settings['log_wandb']} needs the package wandb, which is not installed: pip install wandb, "
            "or leave log_wandb out"
        )


def check_processes(settings: Mapping[str, Any], given: Mapping[str, Any], count: int) -> None:
    """Refuse more processes than there are, than there is work for, and what several cannot do.

    Args:
        settings: RecBole's merged dict.
        given: the user's.
        count: how many processes train the run.

    Raises:
        ConfigError: the message says how to start several.
    """
    for name in ("nproc", "world_size"):
        value = given.get(name)
        if count == 1 and isinstance(value, int) and value > 1:
            raise ConfigError(
                f"{name}={value} is not allowed here: this run is one process, and settings start no others; "
                f"recbole-prune run --{name}={value} does, or torchrun"
            )
    if count == 1:
        return
    if settings["train_batch_size"] < 2 * count:
        raise ConfigError(
            f"train_batch_size={settings['train_batch_size']} is not allowed with {count} processes, which train on "
            f"parts of a batch: take at least {2 * count}, or fewer processes"
        )
    for name in ("save_dataset", "save_dataloaders"):
        if settings.get(name):
            raise ConfigError(
                f"{name}=True is not allowed with {count} processes, which would all save: train with one process "
                "(leave nproc out)"
            )
    if str(settings["learner"]).lower() == "sparse_adam":
        raise ConfigError(
            f"learner={settings['learner']} is not allowed with {count} processes: it steps by the rows of one "
            "process's part of a batch; set learner=adam, or train with one process (leave nproc out)"
        )
