"""``bench table``: the JSON files of benchmarks as tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_prune.bench.results import place, read_document, table_of
from recbole_prune.errors import ConfigError

TITLES = {
    "train": "Training epoch",
    "eval": "Full-sort validation",
    "recommend": "Top-k for all users from the artifact",
    "memory": "Memory of training",
    "energy": "Energy",
    "artifact": "Artifact on disk",
    "start": "Whole processes",
    "processes": "An epoch in one process and in several",
    "search": "A whole search against one dense run of plain RecBole",
}
_LIBRARIES = ("python", "torch", "numpy", "numba", "recbole", "recbole-prune")


def markdown_of_files(files: Sequence[str]) -> str:
    """One section for each file, in the order given.

    Raises:
        ConfigError: there is no file, or one is no benchmark's JSON.
    """
    if not files:
        raise ConfigError("bench table: name the JSON files that bench wrote with --to=FILE")
    return "\n\n".join(markdown(read_document(Path(file))) for file in files)


def markdown(document: Mapping[str, Any]) -> str:
    """A title, the table, then where, with what and when it was measured."""
    settings = document["settings"]
    title = TITLES.get(document["benchmark"], document["benchmark"])
    header, rows = table_of(document)
    lines = [f"**{title}: {settings.get('model')} on {settings.get('dataset')}**", "", row(header)]
    lines += ["|" + "|".join("---" if column == 0 else "---:" for column in range(len(header))) + "|"]
    lines += [row(cells) for cells in rows]
    lines += ["", *(f"- {note}" for note in document["notes"])] if document["notes"] else []
    lines += ["", f"{place(document)}; {', '.join(versions(document))}; {document['date'][:10]}."]
    lines += [f"`{document['command']}`"]
    if not document["complete"]:
        lines.append("INCOMPLETE: not everything was measured.")
    return "\n".join(lines)


def row(cells: Sequence[str]) -> str:
    """A line of a table in Markdown."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def versions(document: Mapping[str, Any]) -> list[str]:
    """Name and version of Python, of the libraries that matter, and of the rivals that took part."""
    found = document["versions"]
    rivals = [name for name in document["references"] if name in ("faiss", "implicit")]
    return [f"{name} {found.get(name) or '(none)'}" for name in (*_LIBRARIES, *rivals)]
