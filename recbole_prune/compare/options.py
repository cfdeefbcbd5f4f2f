"""What ``recbole-prune compare`` takes: its options, and what of them is refused before RecBole is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recbole_prune.config.near import did_you_mean, near_names
from recbole_prune.config.options import Option, describe, file_to_write, some_text
from recbole_prune.config.schema import known_keys, method_names
from recbole_prune.errors import ConfigError

SPARSITIES = [0.5, 0.75, 0.9]
_ENGINES = ("local", "ray", "dask")
_SET_BY = {
    "pruner": "pruners",
    "prune_target_sparsity": "sparsities",
    "seed": "seeds",
    "distiller": "distillers",
    "export_values": "values",
}


def check(own: dict[str, Any], rest: Sequence[str]) -> None:
    """Refuse settings that each cell sets itself, names that are unknown, and what cannot go together.

    Args:
        own: the options.
        rest: other words.

    Raises:
        ConfigError: there is such a thing.
    """
    for taken, option in {**_SET_BY, **{name: f"{name}s" for name in ("model", "dataset") if own[f"{name}s"]}}.items():
        if any(word.startswith(f"--{taken}=") for word in rest):
            raise ConfigError(f"compare: --{taken} is set for each run, use --{option}=A,B instead")
    if own["sparsities"] and own["budgets"]:
        raise ConfigError("compare: --sparsities and --budgets are given, which both say how small: keep one of them")
    if own["engine"] == "local" and own["engine_address"]:
        raise ConfigError("compare: --engine_address needs --engine=ray or --engine=dask")
    _check_names("pruner", own["pruners"], " (the dense model comes with each)")
    _check_names("distiller", [name for name in own["distillers"] if name is not None], ", none")
    formats = known_keys()["export_values"]
    for values in own["values"]:
        try:
            formats.check(values)
        except ConfigError:
            raise ConfigError(f"compare: --values={values} is unknown; it must be {formats.allowed}") from None


def _check_names(kind: str, names: Sequence[str], also: str) -> None:
    known = [name for name in method_names(kind) if name != "none"]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"compare: --{kind}s={name} is unknown{did_you_mean(near_names(name, known))}; there are "
                f"{', '.join(known)}{also}"
            )


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


def _some_names(text: str) -> list[str]:
    names = _names(text)
    if not all(names):
        raise ValueError(text)
    return names


def _distillers(text: str) -> list[str | None]:
    return [None if name == "none" else name for name in _some_names(text)]


def _fractions(text: str) -> list[float]:
    numbers = list(dict.fromkeys(float(part) for part in text.split(",")))
    if not all(0 < number < 1 for number in numbers):
        raise ValueError(text)
    return numbers


def _seeds(text: str) -> list[int]:
    return list(dict.fromkeys(int(part) for part in text.split(",")))


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _phase(text: str) -> int | None:
    if text.lower() in ("true", "false"):
        return 0 if text.lower() == "true" else None
    return _count(text)


def _engine_name(text: str) -> str:
    if text not in _ENGINES:
        raise ValueError(text)
    return text


def _gpus(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError(text)
    return number


OPTIONS = {
    "pruners": Option(_names, ["static", "dsl"], "names of pruners with commas", "pruners to run"),
    "distillers": Option(
        _distillers,
        [None],
        "names of distillers with commas, none among them",
        "distillers to teach with; none: without",
    ),
    "sparsities": Option(
        _fractions, None, "floats with commas, each between 0 and 1", "target sparsities (default 0.5,0.75,0.9)"
    ),
    "budgets": Option(
        _fractions,
        None,
        "floats with commas, each between 0 and 1",
        "instead of sparsities: shares of the dense bytes, to which every method is brought",
    ),
    "seeds": Option(_seeds, [2020, 2021, 2022], "ints with commas", "seeds"),
    "models": Option(_some_names, None, "names of models with commas", "models, instead of --model"),
    "datasets": Option(_some_names, None, "names of datasets with commas", "datasets, instead of --dataset"),
    "values": Option(
        _some_names,
        ["fp32"],
        "number formats with commas",
        "number formats; the first is what runs export, the others are exported, and evaluated, from the same runs",
    ),
    "workers": Option(
        _count,
        None,
        "a whole number from 0",
        "cells at a time, which share the processors: 1, or what a cluster has room for; 0 only shows what is there",
    ),
    "engine": Option(_engine_name, "local", f"{', '.join(_ENGINES)}", "who runs them: local, ray or dask"),
    "engine_address": Option(some_text, None, "an address", "of the cluster; without it one is started here"),
    "engine_gpus": Option(_gpus, 0.0, "a number from 0", "GPUs of the cluster that each cell takes, also a fraction"),
    "list_cells": Option(
        _phase,
        None,
        "True, or the number of a phase",
        "print the commands of all cells, or of a phase, and run nothing",
    ),
    "to": Option(
        file_to_write, None, "a file to write, no folder or device", "write what the table is made of as JSON"
    ),
}


def usage() -> str:
    """What the command takes."""
    lines = [
        "usage: recbole-prune compare [--pruners=A,B] [--sparsities=X,Y | --budgets=X,Y] [--seeds=1,2] [--workers=N]",
        "       [--to=FILE.json] [--key=value ...]",
        "",
        "Runs every pruner at every size under every seed, each in a process and a run folder of its own, and prints",
        "mean and spread. The dense model is trained once per seed, first. What fails becomes a line with its reason",
        "and stops nothing else; the same command goes on where it was interrupted. Other settings as for a run.",
        "",
        *describe(OPTIONS, indent=2),
        "",
        "On a cluster, --engine=ray and --engine=dask hand cells to workers, which need this package and the same",
        "file system. Without either: --list_cells=1 prints the commands of the first phase, one a line, for GNU",
        "parallel or a job array; once they have ended, those of --list_cells=2; and --workers=0 prints the table.",
    ]
    return "\n".join(lines)
