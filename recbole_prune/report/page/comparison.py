"""The comparison of all tickets as rows of text: the page, CSV and LaTeX show the same."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import recbole_prune
from recbole_prune.report.page.entries import Entry, Study
from recbole_prune.report.page.quality import Quality
from recbole_prune.report.page.scales import NOT_MEASURED, digits, milliseconds, percent, three, whole

_BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}", "-": "{-}",
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
    return [
        Column("ticket", lambda entry: f"{entry.name}{' *' * entry.is_chosen}", is_text=True),
        Column("sparsity", lambda entry: percent(entry.line["sparsity"])),
        Column("bytes", lambda entry: whole(entry.bytes)),
        Column("smaller", _times_smaller),
        Column("validation", lambda entry: digits(entry.metric("valid", metric)), "valid"),
        Column("test", lambda entry: digits(entry.metric("test", metric)), "test"),
        Column("change [95 %]", lambda entry: quality.change_text(entry, metric), "change"),
        Column("as good", quality.verdict_text, is_text=True),
        Column("wins", _wins, is_text=True),
        Column("latency", lambda entry: milliseconds(entry.measured("latency", "latency_median_s"))),
        Column("p95", lambda entry: milliseconds(entry.measured("latency", "latency_p95_s"))),
        Column("epoch", lambda entry: f"{entry.line['best_epoch']} of {entry.line['epochs']}"),
        Column("front", lambda entry: "yes" if front[places[id(entry)]] else "no", "front", is_text=True),
    ]


def _times_smaller(entry: Entry) -> str:
    if entry.is_dense:
        return "-"
    return f"{three(entry.bytes_of_dense / entry.bytes)} x" if entry.bytes and entry.bytes_of_dense else NOT_MEASURED


def _wins(entry: Entry) -> str:
    wins, metric = entry.line.get("wins"), entry.line.get("wins_metric")
    if wins is None:
        return "dense" if entry.is_dense else NOT_MEASURED
    return "yes" if wins else "metric" if metric else "no"


def csv_text(study: Study, quality: Quality) -> str:
    """Every ticket with all metrics and what was measured, numbers as they were written; RFC 4180.

    A text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    metrics = {part: _metrics_of(study, part) for part in ("valid", "test")}
    header = ["model", "dataset", "method", "run", "seed", "ticket", "chosen", "sparsity", "kept", "prunable", "weights", "bytes"]
    header += [f"{part} {name}" for part, names in metrics.items() for name in names]
    header += ["picked by", "change_percent", "low_percent", "high_percent", "p_noninferior", "p_adjusted", "as_good", "wins"]
    header += [name for name, _ in _MEASURED] + ["epochs", "best_epoch", "relative_epochs", "train_seconds", "eval_seconds"]
    rows = []
    for entry in study.entries:
        run, line, test = entry.run, entry.line, quality.test_of(entry)
        row: list[object] = [run.model, run.dataset, run.method, run.path.name, line["seed"], entry.number]
        row += ["yes" if entry.is_chosen else "no", line["sparsity"], line["kept"], line["prunable"], entry.live, entry.bytes]
        row += [entry.metric(part, name) for part, names in metrics.items() for name in names]
        row += [quality.picked_by(entry), *quality.numbers_of(entry, quality.picked_by(entry)), test.get("p_noninferior"), test.get("p_adjusted")]
        row += [quality.verdict_text(entry), _wins(entry), *(entry.measured(*names) for _, names in _MEASURED)]
        row += [line["epochs"], line["best_epoch"], line.get("relative_epochs"), line["train_seconds"], line["eval_seconds"]]
        rows.append(row)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([[_csv_cell(cell) for cell in row] for row in [header, *rows]])
    return file.getvalue()


_MEASURED = (
    ("latency_median_s", ("latency", "latency_median_s")),
    ("latency_p95_s", ("latency", "latency_p95_s")),
    ("train_host_bytes", ("peak_memory", "training", "host_bytes")),
    ("rank_host_bytes", ("peak_memory", "ranking", "host_bytes")),
    ("macs_exact", ("macs", "inference", "exact")),
)


def _metrics_of(study: Study, part: str) -> list[str]:
    """The metrics of any entry."""
    return list(dict.fromkeys(name for entry in study.entries for name in entry.line[part]))


def _csv_cell(value: object) -> str:
    """Numbers without loss; texts that no spreadsheet computes."""
    if value is None:
        return NOT_MEASURED
    if isinstance(value, (int, float)):
        return repr(value)
    text = str(value)
    return f"'{text}" if text.startswith(_BEGINS_FORMULA) else text


def table_as_csv(columns: Sequence[Column], entries: Sequence[Entry]) -> str:
    """The table of the page as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_csv_cell(column.header) for column in columns])
    for entry in entries:
        writer.writerow([_spreadsheet_text(column.cell(entry)) for column in columns])
    return file.getvalue()


def _spreadsheet_text(text: str) -> str:
    """A number stays one, with its sign; any other text is kept from being computed."""
    plain = text.replace(",", "")
    return plain if re.fullmatch(r"-?\d+(\.\d+)?", plain) else _csv_cell(text)


def latex_text(study: Study, quality: Quality) -> str:
    r"""A ``tabular`` for papers, with the rules of the package booktabs: all metrics that all runs have."""
    part = study.part
    header = ["method", "sparsity", "bytes", *study.metrics, r"change [95\,\%]", "as good"]
    shown = [latex(name) if name != r"change [95\,\%]" else name for name in header]
    rows = []
    for entry in study.entries:
        cells = [entry.name, percent(entry.line["sparsity"]), whole(entry.bytes)]
        cells += [digits(entry.metric(part, name)) for name in study.metrics]
        cells += [quality.change_text(entry, quality.picked_by(entry)), quality.verdict_text(entry)]
        rows.append(" & ".join(map(_latex_cell, cells)) + r" \\")
    lines = [
        f"% recbole_prune {recbole_prune.__version__}: {part} metrics, change of the validation metric to the dense model; needs booktabs",
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
    if re.fullmatch(r"-\d[\d.,]*", text):
        return f"${text}$"
    return latex(text)


def latex(text: str) -> str:
    """Text that TeX prints as it is; what TeX's fonts may lack, and line ends, as escapes."""
    plain = text.encode("ascii", "backslashreplace").decode("ascii")
    return "".join(_LATEX.get(sign, sign if sign.isprintable() else f"\\textbackslash{{}}x{ord(sign):02x}") for sign in plain)
