"""Several pruners at several sparsities over several seeds as one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from recbole_prune.config.evaluation import smaller_is_better
from recbole_prune.report.table import figure, format_rows


def compare_table(records: Sequence[Mapping[str, Any]], valid_metric: str = "") -> str:
    """Mean and standard deviation over seeds of the validation score and of the first test metric.

    A line below says in which of these smaller is better.

    Args:
        records: ``pruner``, ``prune_target_sparsity``, ``seed``, ``valid_score`` and ``test`` of every run; the dense
            model's may be repeated. ``test`` is empty where there is no test data.
        valid_metric: what the validation score is.
    """
    metric = next(iter(records[0]["test"]), "")
    groups: dict[tuple[float, str], dict[int, Mapping[str, Any]]] = {}
    for record in records:
        sparsity = 0.0 if record["pruner"] == "dense" else record["prune_target_sparsity"]
        groups.setdefault((sparsity, record["pruner"]), {})[record["seed"]] = record
    rows = []
    for (sparsity, pruner), runs in sorted(groups.items(), key=lambda item: item[0][0]):
        valid = [run["valid_score"] for run in runs.values()]
        measured = [run["test"] for run in runs.values()]
        missing = [figure(test, metric) for test in measured if test.get(metric) is None]
        tested = missing[0] if missing else _spread([test[metric] for test in measured])
        rows.append([f"{100 * sparsity:g} %", pruner, str(len(runs)), _spread(valid), tested])
    columns = {"validation": valid_metric, f"test {metric}".rstrip(): metric}
    smaller = [name for name, shown in columns.items() if smaller_is_better(shown)]
    table = format_rows(["sparsity", "pruner", "seeds", *columns], rows)
    return f"{table}\nsmaller is better: {', '.join(smaller)}" if smaller else table


def _spread(values: list[float]) -> str:
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")
