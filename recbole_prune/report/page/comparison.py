"""The comparison of all tickets as rows of text: the page, CSV and LaTeX show the same."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import recbole_prune
from recbole_prune.errors import printable
from recbole_prune.report.page.entries import Entry, Study, number_in
from recbole_prune.report.page.quality import Quality
from recbole_prune.report.page.scales import NOT_MEASURED, digits, percent, three, whole

_LATEX_CHANGE = r"change [95\,\%], \%"
_BEGINS_FORMULA = ("=", "+", "-", "@")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}", "-": "{-}",
    "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column of the comparison.

    Attributes:
        header: of the column.
        cell: the text of a ticket's cell.
        of_metric: a name by which the page changes the cells with the metric; empty: they stay.
        is_text: whether cells hold names and not numbers.
    """

    header: str
    cell: Callable[[Entry], str]
    of_metric: str = ""
    is_text: bool = False


def columns_of(study: Study, quality: Quality, metric: str, front: Sequence[bool]) -> list[Column]:
    """The columns of the page's table.

    Args:
        study: of the report.
        quality: intervals and verdicts.
        metric: which is shown.
        front: whether each entry is on the Pareto front of quality and bytes.
    """
    places = {id(entry): number for number, entry in enumerate(study.entries)}

    def on_front(entry: Entry) -> str:
        return NOT_MEASURED if entry.bytes is None else "yes" if front[places[id(entry)]] else "no"

    return [
        Column("ticket", lambda entry: f"{entry.name}{' *' * entry.is_chosen}", is_text=True),
        Column("sparsity (%)", lambda entry: digits(100 * entry.line["sparsity"], 1)),
        Column("bytes", lambda entry: whole(entry.bytes)),
        Column("times smaller", _times_smaller),
        Column("validation", lambda entry: digits(entry.metric("valid", metric)), "valid"),
        Column("test", lambda entry: digits(entry.metric("test", metric)), "test"),
        Column("change (%) [95 %]", lambda entry: quality.change_text(entry, metric), "change"),
        Column("as good", quality.verdict_text, is_text=True),
        Column("wins", _wins, is_text=True),
        Column("latency (ms)", lambda entry: _in_milliseconds(entry.measured("latency", "latency_median_s"))),
        Column("p95 (ms)", lambda entry: _in_milliseconds(entry.measured("latency", "latency_p95_s"))),
        Column("epoch", lambda entry: f"{entry.line['best_epoch']} of {entry.line['epochs']}"),
        Column("front", on_front, "front", is_text=True),
    ]


def _in_milliseconds(value: float | None) -> str:
    return NOT_MEASURED if value is None else three(1000 * value)


def _times_smaller(entry: Entry) -> str:
    if entry.is_dense:
        return "-"
    return f"{three(entry.bytes_of_dense / entry.bytes)}" if entry.bytes and entry.bytes_of_dense else NOT_MEASURED


def _wins(entry: Entry) -> str:
    wins, metric = entry.line.get("wins"), entry.line.get("wins_metric")
    if wins is None:
        return "dense" if entry.is_dense else NOT_MEASURED
    return "yes" if wins else "metric" if metric else "no"


def csv_text(study: Study, quality: Quality, names: Collection[str] = ()) -> str:
    """Every ticket with what was measured, numbers as they were written; RFC 4180.

    A text that a spreadsheet would take for a formula begins with an apostrophe.

    Args:
        study: of the report.
        quality: intervals and verdicts.
        names: of columns beside the test metrics; by default there are all.
    """
    fields = {
        name: of
        for name, of in _fields(study, quality).items()
        if not names or name in names or name.startswith(f"{study.part} ")
    }
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_csv_cell(name) for name in fields])
    writer.writerows([_csv_cell(of(entry)) for of in fields.values()] for entry in study.entries)
    return file.getvalue()


def _fields(study: Study, quality: Quality) -> dict[str, Callable[[Entry], object]]:
    """The columns of the CSV file: a name and what a ticket has there."""

    def metric(part: str, name: str) -> Callable[[Entry], object]:
        return lambda entry: entry.metric(part, name)

    def change(place: int) -> Callable[[Entry], object]:
        return lambda entry: quality.numbers_of(entry, quality.picked_by(entry))[place]

    def of_line(name: str) -> Callable[[Entry], object]:
        return lambda entry: entry.line.get(name)

    def measured(*names: str) -> Callable[[Entry], object]:
        return lambda entry: entry.measured(*names)

    def of_test(name: str) -> Callable[[Entry], object]:
        return lambda entry: number_in(quality.test_of(entry), name)

    return {
        "model": lambda entry: entry.run.model,
        "dataset": lambda entry: entry.run.dataset,
        "method": lambda entry: entry.run.method,
        "run": lambda entry: entry.run.path.name,
        "seed": of_line("seed"),
        "ticket": of_line("ticket"),
        "chosen": lambda entry: "yes" if entry.is_chosen else "no",
        **{name: of_line(name) for name in ("sparsity", "kept", "prunable")},
        "weights": lambda entry: entry.live,
        "bytes": lambda entry: entry.bytes,
        **{f"{part} {name}": metric(part, name) for part in ("valid", "test") for name in _metrics_of(study, part)},
        "picked by": quality.picked_by,
        **{name: change(place) for place, name in enumerate(("change_percent", "low_percent", "high_percent"))},
        **{name: of_test(name) for name in ("effect_size", "p_noninferior", "p_adjusted")},
        "as_good": quality.verdict_text,
        "wins": _wins,
        "latency_median_s": measured("latency", "latency_median_s"),
        "latency_p95_s": measured("latency", "latency_p95_s"),
        "train_host_bytes": measured("peak_memory", "training", "host_bytes"),
        "rank_host_bytes": measured("peak_memory", "ranking", "host_bytes"),
        "macs_exact": measured("macs", "inference", "exact"),
        **{
            name: of_line(name) for name in ("epochs", "best_epoch", "relative_epochs", "train_seconds", "eval_seconds")
        },
    }


def _metrics_of(study: Study, part: str) -> list[str]:
    """The metrics of any entry."""
    return list(dict.fromkeys(name for entry in study.entries for name in entry.line[part]))


def _csv_cell(value: object) -> str:
    """Numbers without loss; texts that no spreadsheet computes."""
    if value is None:
        return NOT_MEASURED
    if isinstance(value, (int, float)):
        is_whole = isinstance(value, int) or (value.is_integer() and abs(value) < 1e15)
        return str(int(value)) if is_whole else repr(float(value))
    text = printable(str(value))
    return f"'{text}" if text.startswith(_BEGINS_FORMULA) else text


def latex_text(study: Study, quality: Quality) -> str:
    r"""A ``tabular`` for papers, with the rules of the package booktabs: all metrics that all runs have."""
    part = study.part
    header = ["method", "sparsity", "bytes", *study.metrics, _LATEX_CHANGE, "as good"]
    shown = [name if name == _LATEX_CHANGE else latex(name) for name in header]
    rows = []
    for entry in study.entries:
        cells = [entry.name, percent(entry.line["sparsity"]), whole(entry.bytes)]
        cells += [digits(entry.metric(part, name)) for name in study.metrics]
        cells += [quality.change_text(entry, quality.picked_by(entry)), quality.verdict_text(entry)]
        rows.append(" & ".join(map(_latex_cell, cells)) + r" \\")
    lines = [
        f"% recbole_prune {recbole_prune.__version__}, booktabs: {part} metrics; change beside the dense model",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(shown) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _latex_cell(text: str) -> str:
    """Numbers in mathematics, for their minus signs."""
    is_number = re.fullmatch(r"[+-]\d[\d.]*( \[[+-][\d.]+, [+-][\d.]+\])?", text)
    return f"${text.replace(' [', chr(92) + ' [')}$" if is_number else latex(text)


def latex(text: str) -> str:
    """Text that TeX prints as it is; what TeX's fonts may lack, and line ends, as escapes."""
    plain = text.encode("ascii", "backslashreplace").decode("ascii")
    return "".join(
        _LATEX.get(sign, sign if sign.isprintable() else f"\\textbackslash{{}}x{ord(sign):02x}") for sign in plain
    )
