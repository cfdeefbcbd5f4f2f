"""Methods at several sizes over several seeds as one table, with bytes, and what is not in it and why."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from recbole_prune.config.evaluation import smaller_is_better
from recbole_prune.disk.names import method_name
from recbole_prune.report.rows import figure, format_rows

Record = Mapping[str, Any]


def compare_table(records: Sequence[Record]) -> str:
    """Mean and standard deviation over seeds of the validation score and of the same metric on test data, mean bytes.

    Where that was not tested it is the first metric that was.

    Every model and dataset has a table of its own. Below stand, in one line each, cells without a result and why.

    Args:
        records: as :func:`recbole_prune.compare.results.records_of` gives them.
    """
    places = list(dict.fromkeys((record["model"], record["dataset"]) for record in records))
    blocks = []
    for place in places:
        there = [record for record in records if (record["model"], record["dataset"]) == place]
        found = [record for record in there if record["failure"] is None]
        title = [f"{place[0]} on {place[1]}"] if len(places) > 1 else []
        blocks.append("\n".join([*title, *_table(found), *_failures(there)]))
    return "\n\n".join(blocks)


def _table(found: Sequence[Record]) -> Iterator[str]:
    """Rows by size, in each the methods in the order in which they were asked for."""
    if not found:
        return
    score, measured = found[0]["valid_metric"], [name for record in found for name in record["test"]]
    metric = score.lower() if score.lower() in measured else next(iter(measured), "")
    by_budget = any(record["budget"] is not None for record in found)
    several = len({record["values"] for record in found}) > 1
    groups: dict[tuple[float, str, str], dict[int, Record]] = {}
    for record in found:
        method = method_name(record["pruner"], record["distiller"])
        groups.setdefault((_size(record, by_budget), method, record["values"]), {})[record["seed"]] = record
    dense: dict[int, int] = {}  # in the format that runs export
    for record in found:
        if _size(record, by_budget) == _DENSE and record["distiller"] is None:
            dense.setdefault(record["seed"], record["bytes"])
    rows = []
    for (size, method, values), runs in sorted(groups.items(), key=lambda item: item[0][0]):
        tests = [run["test"] for run in runs.values()]
        missing = [figure(test, metric) for test in tests if test.get(metric) is None]
        tested = missing[0] if missing else _spread([test[metric] for test in tests])
        sizes = [run["bytes"] for run in runs.values() if run["bytes"] is not None]
        shares = [run["bytes"] / dense[seed] for seed, run in runs.items() if run["bytes"] and dense.get(seed)]
        rows.append(
            [
                _said(size, by_budget),
                method,
                *([values] if several else []),
                str(len(runs)),
                _spread([run["valid_score"] for run in runs.values()]),
                tested,
                f"{mean(sizes):.0f}" if sizes else "-",
                f"{100 * mean(shares):.1f} %" if shares else "-",
            ]
        )
    columns = {"validation": score, f"test {metric}".rstrip(): metric}
    kind = ["budget" if by_budget else "sparsity", "method", *(["values"] if several else []), "seeds"]
    yield format_rows([*kind, *columns, "bytes", "of dense"], rows)
    smaller = [name for name, shown in columns.items() if smaller_is_better(str(shown))]
    legend = f"validation: {str(score).lower()}; mean ± standard deviation over seeds; bytes: weights in an artifact"
    yield from _wrapped(f"{legend}{'; smaller is better: ' if smaller else ''}{', '.join(smaller)}")
    for size in sorted({size for size, _, _ in groups if size >= 0}):
        of_size = {key: list(runs.values()) for key, runs in groups.items() if key[0] == size}
        yield from _wrapped(_best(of_size, dense, str(score), f"test {metric}", by_budget))


_DENSE = -1.0
# more bytes than the budget times this are not what was asked for
MOST_ABOVE_BUDGET = 1.15


def _best(
    groups: Mapping[tuple[float, str, str], Sequence[Record]],
    dense: Mapping[int, int],
    score: str,
    tested: str,
    by_budget: bool,
) -> str:
    """Which method of one size has the best validation score, and what it loses."""
    fitting = {
        key: runs
        for key, runs in groups.items()
        if not by_budget
        or all(
            run["bytes"] and run["budget"] and run["bytes"] <= MOST_ABOVE_BUDGET * run["budget"] * dense[run["seed"]]
            for run in runs
            if run["seed"] in dense
        )
    }
    if len(fitting) < 2:
        return ""
    sign = -1 if smaller_is_better(score) else 1
    (size, method, values), runs = max(
        fitting.items(), key=lambda item: sign * mean(run["valid_score"] for run in item[1])
    )
    change, (low, high) = runs[0].get("change_percent"), runs[0].get("interval_percent") or (None, None)
    lost = "" if change is None else f": {tested} changes by {change:+.1f} % of dense"
    interval = "" if low is None or high is None else f" (95 % interval over users {low:+.1f} to {high:+.1f} %)"
    kind = "" if len({key[2] for key in fitting}) == 1 else f" in {values}"
    return f"best on validation at {_said(size, by_budget)}: {method}{kind}{lost}{interval}"


def _size(record: Record, by_budget: bool) -> float:
    """What rows are sorted by: the sparsity, dense models first; methods without a target last."""
    if record["pruner"] == "dense":
        return _DENSE
    size = record["budget" if by_budget else "prune_target_sparsity"]
    return 2.0 if size is None else 1 - float(size) if by_budget else float(size)


def _said(size: float, by_budget: bool) -> str:
    if size == _DENSE:
        return "100 %" if by_budget else "0 %"
    return "-" if size > 1 else f"{100 * (1 - size if by_budget else size):g} %"


def _failures(records: Sequence[Record]) -> Iterator[str]:
    """Cells without a result; those with the same reason in one line."""
    reasons: dict[str, list[str]] = {}
    for record in records:
        if record["failure"] is not None:
            values = [record["values"]] if record.get("values") else []
            reasons.setdefault(record["failure"], []).append(" ".join([_name(record), *values]))
    for reason, names in reasons.items():
        yield from _wrapped(f"not in the table: {'; '.join(names)}: {reason}")


def _name(record: Record) -> str:
    size = record["budget"] if record["budget"] is not None else record["prune_target_sparsity"]
    shown = "" if size is None else f" {100 * size:g} %"
    return f"{method_name(record['pruner'], record['distiller'])}{shown}, seed {record['seed']}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _spread(values: list[float]) -> str:
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")
