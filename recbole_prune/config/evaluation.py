"""What RecBole's evaluation will ask for: metrics, cutoffs, the validation metric, splits. Checked before a training.

The metrics are read from RecBole's source and ours, nothing of them is imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from math import isfinite
from typing import Any, NamedTuple

from recbole_prune.config import host
from recbole_prune.config.near import did_you_mean, near_names
from recbole_prune.config.paths import METRICS
from recbole_prune.config.values import is_number, is_whole
from recbole_prune.errors import ConfigError

_MODE = re.compile(r"full|labeled|(?:uni|pop)[1-9]\d*")
_MODES = "full, labeled, uniN or popN (N sampled items, such as uni100)"
_PARTS = ("valid", "test")
_LEAVE_OUT = ("valid_and_test", "valid_only", "test_only")
_EVAL_ARGS = ("split", "group_by", "order", "mode")
_SAMPLING = ("distribution", "sample_num", "alpha", "dynamic", "candidate_num")
_MOST_SHOWN = 12


class Metric(NamedTuple):
    """A metric of RecBole's or ours.

    Attributes:
        name: as RecBole writes it; settings may write it in any case.
        at_k: whether it has a value for each ``topk``.
        of_scores: whether it compares scores with labels (AUC) and does not rank items.
        smaller: whether a smaller value is better.
    """

    name: str
    at_k: bool
    of_scores: bool
    smaller: bool


@lru_cache(maxsize=1)
def known_metrics() -> dict[str, Metric]:
    """RecBole's metrics and ours by name in lower case."""
    files = host.recbole_folder() / "evaluator" / "metrics.py", METRICS
    nodes = [node for file in files for node in ast.parse(file.read_text(encoding="utf-8")).body]
    return {node.name.lower(): _metric(node) for node in nodes if isinstance(node, ast.ClassDef)}


def _metric(node: ast.ClassDef) -> Metric:
    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
    texts = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
    smaller = any(ast.unparse(statement) == "smaller = True" for statement in node.body)
    return Metric(node.name, "TopkMetric" in bases or "topk" in texts, "LossMetric" in bases, smaller)


def metrics_of_scores(names: Sequence[str]) -> list[str]:
    """Those of metrics that compare scores with labels, as RecBole writes them."""
    known = [known_metrics()[name.lower()] for name in names if name.lower() in known_metrics()]
    return [metric.name for metric in known if metric.of_scores]


def smaller_is_better(result: str) -> bool:
    """Whether a smaller value of a metric is better, by its name in results, such as ``giniindex@10``."""
    metric = known_metrics().get(result.partition("@")[0].lower())
    return metric is not None and metric.smaller


def check_metrics(metrics: object, registered: Collection[str] = ()) -> list[str]:
    """The names of metrics as a list.

    Args:
        metrics: the setting.
        registered: further metrics that exist in this process, in lower case.

    Raises:
        ConfigError: there is no such metric, or two cannot be computed together.
    """
    names = [metrics] if isinstance(metrics, str) else metrics
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"metrics={metrics} is not allowed: RecBole takes a list such as ['Recall', 'NDCG']")
    for name in names:
        if name.lower() not in known_metrics() and name.lower() not in registered:
            raise ConfigError(f"metrics={metrics}: There is no metric named '{name}' in RecBole{_instead_of(name)}")
    kinds = {known_metrics()[name.lower()].of_scores for name in names if name.lower() in known_metrics()}
    if len(kinds) > 1:
        values = ", ".join(metric.name for metric in known_metrics().values() if metric.of_scores)
        raise ConfigError(
            f"metrics={metrics} is not allowed: RecBole cannot compute {values} and metrics of rankings in one run"
        )
    return list(names)


def _instead_of(name: str) -> str:
    known = [metric.name for metric in known_metrics().values()]
    return f"; there are {', '.join(known)}{did_you_mean(near_names(name, known)[:1])}"


def check_topk(topk: Any) -> list[int]:
    """The cutoffs as a list.

    Raises:
        ConfigError: they are no whole numbers from 1.
    """
    given = topk if isinstance(topk, list) else [topk]
    cutoffs = [k for k in given if is_whole(k) and k > 0]
    if not cutoffs or len(cutoffs) < len(given):
        raise ConfigError(
            f"topk={topk} is not allowed: RecBole takes a whole number from 1 or a list, such as [10, 20]"
        )
    return cutoffs


def check_valid_metric(name: object, registered: Collection[str] = ()) -> str:
    """The metric in a ``valid_metric``, in lower case.

    Raises:
        ConfigError: it is none of RecBole's.
    """
    base = name.partition("@")[0] if isinstance(name, str) else ""
    if base.lower() not in known_metrics() and base.lower() not in registered:
        raise ConfigError(
            f"valid_metric={name} is not allowed: {base or name} is no metric of RecBole's{_instead_of(base)}"
        )
    return base.lower()


def check_direction(valid_metric: str, bigger: object) -> None:
    """Refuse a ``valid_metric_bigger`` that RecBole would quietly replace; None where the user gave none.

    Raises:
        ConfigError: the message says which value of the metric is better.
    """
    metric = known_metrics().get(valid_metric.partition("@")[0].lower())
    if bigger is not None and metric is not None and bigger is metric.smaller:
        better = "smaller" if metric.smaller else "bigger"
        raise ConfigError(
            f"valid_metric_bigger={bigger} is not allowed: of {metric.name} the {better} value is better, "
            "which RecBole knows by itself; leave valid_metric_bigger out"
        )


def check_evaluation(settings: Mapping[str, Any], registered: Collection[str] = ()) -> None:
    """Refuse settings of the evaluation that RecBole stumbles over, or quietly passes over.

    Args:
        settings: all settings of a config, as RecBole has merged them.
        registered: further metrics that exist in this process, in lower case.

    Raises:
        ConfigError: the message names the setting and what would be allowed.
    """
    metrics = check_metrics(settings["metrics"], registered)
    check_topk(settings["topk"])
    check_valid_metric(settings["valid_metric"], registered)
    if isinstance(settings["eval_args"], dict):  # RecBole refuses anything else in a sentence of its own
        _check_eval_args(settings["eval_args"], settings.get("benchmark_filename") is not None)
        _check_modes(settings["eval_args"].get("mode", "full"), metrics)
    if isinstance(settings.get("train_neg_sample_args"), dict):
        _check_keys("train_neg_sample_args", settings["train_neg_sample_args"], _SAMPLING)


def check_selection(settings: Mapping[str, Any], given: Collection[str]) -> None:
    """Refuse a validation metric that no evaluation will compute; asked before anything is trained.

    Args:
        settings: ``metrics``, ``topk`` and ``valid_metric`` of a built config.
        given: names that the user or a recipe set; what is not among them is a default.

    Raises:
        ConfigError: the message names what the metrics and cutoffs give.
    """
    metrics, topk, chosen = (settings[name] for name in ("metrics", "topk", "valid_metric"))
    base = chosen.partition("@")[0].lower()
    if base not in known_metrics():
        return  # somebody's own metric, whose results nobody knows before it has run
    results = [text for name in metrics for text in _results(name, topk)]
    if chosen.lower() in map(str.lower, results):
        return
    default = "" if "valid_metric" in given else " (the default)"
    near = near_names(chosen, results)[:1] or [text for text in results if text.lower().startswith(f"{base}@")][:1]
    shown = ", ".join(results[:_MOST_SHOWN]) + (" ..." if len(results) > _MOST_SHOWN else "")
    raise ConfigError(
        f"valid_metric={chosen}{default} is not among what metrics={metrics} and topk={topk} give: {shown}"
        f"{did_you_mean([f'--valid_metric={text}' for text in near or results[:1]])}"
    )


def check_cutoffs(settings: Mapping[str, Any], items: int) -> None:
    """Refuse a cutoff beyond the items that RecBole ranks; asked when the data is known.

    Raises:
        ConfigError: the message names the largest that is allowed.
    """
    known = [known_metrics().get(name.lower()) for name in settings["metrics"]]
    if max(settings["topk"]) > items and any(metric is None or metric.at_k for metric in known):
        raise ConfigError(
            f"topk={settings['topk']} is not allowed: there are {items} items to rank, take at most {items}"
        )


def _results(name: str, topk: Sequence[int]) -> list[str]:
    """What a metric is called in the results of an evaluation, apart from case."""
    metric = known_metrics().get(name.lower(), Metric(name, True, False, False))
    return [f"{metric.name}@{k}" for k in topk] if metric.at_k else [metric.name]


def _check_keys(name: str, value: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for key in value:
        if key not in allowed:
            near = did_you_mean(near_names(str(key), allowed)[:1])
            raise ConfigError(
                f"{name}={value} is not allowed: it has no part {key}; there are {', '.join(allowed)}{near}"
            )


def _check_eval_args(value: Mapping[str, Any], is_split: bool) -> None:
    _check_keys("eval_args", value, _EVAL_ARGS)
    if value.get("order", "RO") not in ("RO", "TO"):
        raise ConfigError(
            f"eval_args: order={value['order']} is not allowed: RecBole takes RO (random) or TO (by time)"
        )
    group_by = value.get("group_by")
    if group_by is not None and str(group_by).lower() not in ("user", "none"):
        raise ConfigError(f"eval_args: group_by={group_by} is not allowed: RecBole takes user or none")
    if "split" in value and not is_split:
        _check_split(value["split"])


def _check_split(split: object) -> None:
    if not isinstance(split, dict) or len(split) != 1 or not set(split) <= {"RS", "LS", "TS"}:
        raise ConfigError(
            f"eval_args: split={split} is not allowed: RecBole takes one of RS (ratios), LS (leave one out) and TS "
            "(by time) with its value, such as {'RS': [0.8, 0.1, 0.1]}"
        )
    ((kind, value),) = split.items()
    if kind == "LS":
        if value not in _LEAVE_OUT:
            raise ConfigError(f"eval_args: split={split} is not allowed: RecBole takes LS with {', '.join(_LEAVE_OUT)}")
    elif kind == "RS" and not (
        isinstance(value, list)
        and len(value) == 3
        and all(is_number(part) and part >= 0 for part in value)
        and isfinite(sum(value))
        and sum(value) > 0
    ):
        raise ConfigError(
            f"eval_args: split={split} is not allowed: RS takes three numbers from 0, for training, validation and test"
        )


def _check_modes(mode: object, metrics: Sequence[str]) -> None:
    if isinstance(mode, dict):
        _check_keys("eval_args: mode", mode, _PARTS)
    modes = list(mode.values()) if isinstance(mode, dict) else [mode]
    for each in modes:
        if not isinstance(each, str) or not _MODE.fullmatch(each):
            raise ConfigError(f"eval_args: mode={each} is not allowed: RecBole takes {_MODES}")
    known = [known_metrics()[name.lower()] for name in metrics if name.lower() in known_metrics()]
    of_scores, of_rankings = metrics_of_scores(metrics), [metric.name for metric in known if not metric.of_scores]
    if of_rankings and "labeled" in modes:
        raise ConfigError(
            f"metrics={metrics} and eval_args: mode=labeled cannot go together: {of_rankings[0]} ranks items; "
            "set mode to full or uni100 (a context-aware model: to uni100), or metrics to such as ['AUC', 'LogLoss']"
        )
    if of_scores and "full" in modes:
        raise ConfigError(
            f"metrics={metrics} and eval_args: mode=full cannot go together: {of_scores[0]} compares scores with "
            "labels; set mode to labeled or uni100, or metrics to such as ['Recall', 'NDCG']"
        )
