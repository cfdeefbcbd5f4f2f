"""What a report is about: every ticket of its runs once, with the name that it has in all tables and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recbole_prune.config.evaluation import smaller_is_better
from recbole_prune.errors import ConfigError
from recbole_prune.report.costs import speedup
from recbole_prune.report.folders import RunRecord
from recbole_prune.report.page.splits import refuse_other_data

_LONGEST_SUFFIX = 40
_HOW_FAR = "prune_target_sparsity"
_BEYOND_REASON = 1e100
_TIMED = ("ranking", "latency")


@dataclass(frozen=True)
class Entry:
    """A ticket of a run.

    Attributes:
        run: of the ticket; a dense model that several runs share is a row of the first of them.
        line: of the journal.
        series: its method, with what tells it from other runs of the report but for how far they prune.
        of_run: ``series`` with what tells the run apart.
        name: ``of_run`` with the number of the ticket, or ``series`` with its sparsity; ``dense`` for ticket 0.
    """

    run: RunRecord
    line: Mapping[str, Any]
    series: str
    of_run: str = ""
    name: str = ""

    @property
    def number(self) -> int:
        """Of the ticket, 0 for the dense model."""
        return int(self.line["ticket"])

    @property
    def is_dense(self) -> bool:
        """Whether it is what others are compared with."""
        return self.number == 0

    @property
    def is_chosen(self) -> bool:
        """Whether its run exports it."""
        return self.run.chosen is self.line

    @property
    def bytes(self) -> int | None:
        """Of its weights in an artifact; None while its run goes on, and where they could not be counted."""
        return self.run.bytes_of.get(self.number)

    @property
    def live(self) -> int:
        """Trained weights that are not pruned, those outside the scope included."""
        return int(self.line["parameters"] - self.line["prunable"] + self.line["kept"])

    @property
    def bytes_of_dense(self) -> int | None:
        """Of the weights of the dense model of its run."""
        return self.run.bytes_of.get(0)

    @property
    def ranking_seconds(self) -> float | None:
        """Those of the test evaluation for each of its users."""
        seconds, users = self.measured("ranking", "seconds"), self.measured("ranking", "users")
        return seconds / users if seconds and users else None

    @property
    def times_faster(self) -> float | None:
        """How many times faster than the dense model of its run it ranks, as the run itself says it."""
        before, now = ({name: _timed(line, name) for name in _TIMED} for line in (self.run.dense or {}, self.line))
        return speedup(before, now)

    def metric(self, part: str, name: str) -> float | None:
        """A metric on ``valid`` or ``test``."""
        return number_in(self.line[part], name)

    def measured(self, *names: str) -> float | None:
        """A number below ``measured`` (DESIGN section 8), None where it was not measured."""
        return number_in(self.line.get("measured"), *names)


def _timed(line: Mapping[str, Any], name: str) -> dict[str, object]:
    """What a journal line says of a timing; numbers where numbers belong, whoever wrote it."""
    found = (line.get("measured") or {}).get(name)
    record = found if isinstance(found, Mapping) else {}
    times = {key: number_in(record, key) for key in ("seconds", "latency_median_s")}
    return {**times, **{key: str(record.get(key)) for key in ("users", "threads", "device")}}


def number_in(record: object, *names: str) -> float | None:
    """A number in objects within objects; None where there is none."""
    for name in names:
        if not isinstance(record, Mapping):
            return None
        record = record.get(name)
    if isinstance(record, bool) or not isinstance(record, (int, float)):
        return None
    return within_reason(record)


def within_reason(number: float) -> float | None:
    """A number that charts can compute with: None beyond 1e100, 0 below 1e-100; no run measures such."""
    if not abs(number) < _BEYOND_REASON:
        return None
    return float(number) if abs(number) > 1 / _BEYOND_REASON else 0.0


@dataclass(frozen=True)
class Study:
    """What a report is about.

    Attributes:
        runs: all run folders, also unfinished and damaged ones.
        entries: every ticket of those that are not damaged; of each model the dense one first, then by run.
        metrics: names that every run has, the one that tickets are picked by first.
        part: ``test``, or ``valid`` where a run has no test data.
        problems: in a sentence each what could not be looked into.
    """

    runs: Sequence[RunRecord]
    entries: Sequence[Entry]
    metrics: Sequence[str]
    part: str
    problems: Sequence[str] = ()

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return self.entries[0].run.dataset

    @property
    def models(self) -> list[str]:
        """Names of the models, each once."""
        return list(dict.fromkeys(entry.run.model for entry in self.entries))

    def series(self) -> list[str]:
        """Names of the series, each once."""
        return list(dict.fromkeys(entry.series for entry in self.entries))


def study_of(runs: Sequence[RunRecord], problems: Sequence[str] = ()) -> Study:
    """Order what run folders hold.

    Raises:
        ConfigError: no folder has a ticket, or they are of different data, splits or metrics.
    """
    whole = [run for run in runs if run.tickets and run.reason is None]
    if not whole:
        states = [f"{run.path}: {run.reason or 'no ticket is finished yet'}" for run in runs]
        raise ConfigError(f"report: there is nothing to show: {'; '.join([*states, *problems])}")
    for run in whole[1:]:
        refuse_other_data(whole[0], run)
    part = "test" if all(run.tickets[0]["test"] for run in whole) else "valid"
    return Study(runs, _entries_of(whole), _common_metrics(whole, part), part, problems)


def _common_metrics(runs: Sequence[RunRecord], part: str) -> list[str]:
    """Metrics of all runs, in the order of the first, those that tickets are picked by before others."""
    common = [name for name in runs[0].tickets[0][part] if all(name in run.tickets[0][part] for run in runs)]
    if not common:
        found = {", ".join(run.tickets[0][part]): f" in {run.path}" for run in reversed(runs)}
        said = " and ".join(f"{names or 'none'}{place}" for names, place in reversed(found.items()))
        raise ConfigError(f"report: the runs have no metric in common: {said}")
    picked = [picked_by(run) for run in runs]
    return sorted(common, key=lambda name: name not in picked)


def _entries_of(runs: Sequence[RunRecord]) -> list[Entry]:
    """Every ticket under a name of its own; dense models first, each once."""
    models, seeds = ({str(fact(run)) for run in runs} for fact in (lambda run: run.model, lambda run: run.seed))

    def named(run: RunRecord, what: str) -> str:
        words = [run.model] * (len(models) > 1) + [what] + [f"(seed {run.seed})"] * (len(seeds) > 1)
        return " ".join(words)

    dense: dict[object, Entry] = {}
    pruned = []
    for run in runs:
        for line in run.tickets:
            what = run.method if line["ticket"] else "taught" if run.distiller and line.get("taught", True) else "dense"
            entry = Entry(run, line, named(run, what))
            if line["ticket"]:
                pruned.append(entry)
            else:
                dense.setdefault((run.model, line.get("checkpoint_sha256") or run.path), entry)
    return _with_names([*sorted(dense.values(), key=lambda entry: entry.run.model), *pruned])


def _with_names(entries: Sequence[Entry]) -> list[Entry]:
    """Names in which a run has what tells it from other runs that would have the same.

    Runs that only differ in how far they prune, as those of a comparison, are one series, whose tickets are named by
    their sparsity, where that tells them apart.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.series, []).append(entry)
    names: dict[int, tuple[str, str, str]] = {}
    for series, group in groups.items():
        runs = list({entry.run.path: entry.run for entry in group}.values())
        of_run = {run.path: f"{series} {_told_apart(run, runs)}".rstrip() for run in runs}
        by_sparsity = [f"{series} {100 * entry.line['sparsity']:.1f} %" for entry in group]
        is_one = len(runs) > 1 and _differing(runs) == [_HOW_FAR]
        for entry, short in zip(group, by_sparsity):
            own = of_run[entry.run.path]
            numbered = f"{own} {entry.number}" if entry.number else own
            name = short if is_one and by_sparsity.count(short) == 1 else numbered
            names[id(entry)] = (series, own, name) if is_one and entry.number else (own, own, numbered)
    found = []
    for entry in entries:
        series, of_own_run, name = names[id(entry)]
        found.append(replace(entry, series=series, of_run=of_own_run, name=name))
    return found


def _differing(runs: Sequence[RunRecord]) -> list[str]:
    """The settings in which runs differ."""
    names = sorted({str(name) for run in runs for name in run.settings if not _says_nothing(str(name))})
    return [name for name in names if any(run.settings.get(name) != runs[0].settings.get(name) for run in runs)]


def _told_apart(run: RunRecord, others: Sequence[RunRecord]) -> str:
    """The settings by which a run differs from others of its name, if they are few and short; else its hash."""
    if len(others) == 1:
        return ""
    differing = _differing(others)
    texts = [
        ", ".join(f"{name}={each.settings[name]}" for name in differing if name in each.settings)
        for each in (run, *others)
    ]
    own = texts[0] or "default"
    is_clear = texts.count(texts[0]) == 2 and len(own) <= _LONGEST_SUFFIX
    return f"({own})" if is_clear else run.path.name.rpartition("-")[2][:10]


def _says_nothing(setting: str) -> bool:
    """Whether a setting is in the name already, or says how to run and not what."""
    return setting in ("model", "dataset", "pruner", "distiller", "seed", "eval_args", "metrics") or setting.startswith(
        "measure_"
    )


def picked_by(run: RunRecord) -> str:
    """The metric that tickets of a run are picked by, as the journal names it."""
    if run.valid_metric is not None:
        return run.valid_metric.lower()
    scores, score = run.tickets[0]["valid"], run.tickets[0]["valid_score"]  # a run that goes on with the default
    return next((name for name, value in scores.items() if value == score), "")


def is_smaller_better(metric: str) -> bool:
    """Whether less is better, as RecBole's source says; more is where RecBole is not installed."""
    try:
        return smaller_is_better(metric)
    except ConfigError:
        return False
