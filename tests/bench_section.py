"""The README's benchmarks, made from ``tests/figures/*.json``: ``python tests/bench_section.py --write``.

The files are what ``recbole-prune bench ... --to=FILE`` wrote. ``recbole-prune bench table`` prints them in full; the
README has medians and the ratio to the first reference, one table for each kind of benchmark.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_prune.bench.results import place, read_document, table_of
from recbole_prune.bench.table import TITLES, row, versions

FIGURES = Path(__file__).resolve().parent / "figures"
README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
# names of the files that the README shows, in its order, as far as they exist; the others are for bench table only
SHOWN = "train-bpr train-lightgcn eval recommend-bpr recommend-lightgcn".split()
_LEFT_OUT = ("peak_of_epoch", "peak_on_device")

Document = Mapping[str, Any]


def documents(folder: Path = FIGURES) -> dict[str, Document]:
    """What the README shows, by name."""
    files = {file.stem: file for file in folder.glob("*.json")}
    return {name: read_document(files[name]) for name in SHOWN if name in files}


def section(shown: Mapping[str, Document]) -> str:
    """The text between the markers."""
    parts = [f"Medians. {_where(list(shown.values()))}."]
    for kind in dict.fromkeys(document["benchmark"] for document in shown.values()):
        members = {name: document for name, document in shown.items() if document["benchmark"] == kind}
        parts += [f"**{TITLES[kind]}**", _tables(members)]
    return "\n\n".join(parts)


def _tables(members: Mapping[str, Document]) -> str:
    """One table, or one for each set of columns."""
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for name, document in members.items():
        header, rows = table_of(document)
        columns = _columns(header, document)
        found = tables.setdefault(tuple(header[column] for column in columns), [])
        measured = [cells for cells, each in zip(rows, document["candidates"]) if each["measures"]]
        found += [[name, *(cells[column] for column in columns)] for cells in measured]
    texts = []
    for columns_of_table, rows in tables.items():
        lines = [row(["file", *columns_of_table]), "|---|---|" + "---:|" * (len(columns_of_table) - 1)]
        texts.append("\n".join([*lines, *map(row, rows)]))
    return "\n\n".join(texts)


def _columns(header: Sequence[str], document: Document) -> list[int]:
    """Places of the columns to show: measures, and ratios to the first reference."""
    measure, found = "", []
    for column, name in enumerate(header):
        measure = name if name in document["units"] else measure
        shown = name in ("candidate", "sparsity", measure) or name.endswith(f" {document['references'][0]}")
        if shown and measure not in _LEFT_OUT:
            found.append(column)
    return found


def _where(found: Sequence[Document]) -> str:
    """Every machine, version and day that occurs."""
    machines = dict.fromkeys(place(document) for document in found)
    named = dict.fromkeys(library for document in found for library in versions(document))
    libraries = [library for library in named if not library.endswith("(none)")]
    days = sorted({document["date"][:10] for document in found})
    return f"{' / '.join(machines)}; {', '.join(libraries)}; {' to '.join(dict.fromkeys((days[0], days[-1])))}"


def present_section() -> str:
    """What stands between the markers now."""
    return README.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()


def print_or_write(text: str, begin: str, end: str) -> None:
    """Print a section or, with ``--write``, put it between its markers in the README."""
    if "--write" not in sys.argv:
        print(text)
        return
    before, _, rest = README.read_text(encoding="utf-8").partition(begin)
    README.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def main() -> int:
    """Print the section, or write it into the README."""
    shown = documents()
    if not shown:
        print(f"none of {', '.join(SHOWN)} is in {FIGURES}", file=sys.stderr)
        return 2
    print_or_write(section(shown), BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
