"""What a benchmark measured: every sample, its median and spread, its ratio to plain RecBole; as JSON and as text."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from recbole_prune.disk.files import write_atomic
from recbole_prune.errors import ConfigError
from recbole_prune.report.table import format_rows

FORMAT = "recbole_prune benchmark"
_OPTIONAL = {"numba": ("numba",), "faiss": ("faiss-cpu", "faiss-gpu"), "implicit": ("implicit",)}
FASTER = "reference / candidate: how many times faster"
PART = "candidate / reference: the part, or multiple, of the reference"


class Results:
    """Samples by candidate and measure; written to a file whenever :meth:`save` is called.

    Args:
        benchmark: name of the subcommand.
        units: unit of each measure, ``seconds``, ``bytes``, ``joules`` or ``watts``.
        references: names of the candidates that others are compared with.
        file: where the JSON goes; None writes none.
        command: the words after ``recbole-prune bench``.
        ranges: measures whose range the table shows; None: all.
        speedups: ratios of seconds say how many times faster; False: the part of the reference, as for all else.

    Attributes:
        settings: settings of the runs, filled in when they are known.
        notes: sentences that belong to the figures.
        complete: False until everything was measured.
    """

    def __init__(
        self,
        benchmark: str,
        units: Mapping[str, str],
        references: Sequence[str],
        file: Path | None = None,
        command: Sequence[str] = (),
        speedups: bool = True,
        ranges: Sequence[str] | None = None,
    ) -> None:
        self.benchmark = benchmark
        self.units = dict(units)
        self.references = list(references)
        self.file = file
        self.command = ["recbole-prune", "bench", *command]
        self.ratios = {name: FASTER if speedups and unit == "seconds" else PART for name, unit in units.items()}
        self.ranges = list(units if ranges is None else ranges)
        self.settings: dict[str, Any] = {}
        self.notes: list[str] = []
        self.complete = False
        self._candidates: list[dict[str, Any]] = []
        self._environment = {"versions": versions(), "machine": machine()}
        self._date = datetime.now(timezone.utc).isoformat(timespec="seconds")

    def candidate(self, name: str, sparsity: float | None = None, **facts: Any) -> dict[str, Any]:
        """The record of a candidate, made if it is new; ``facts`` are added to it.

        Args:
            sparsity: None where there is none (plain RecBole).
            facts: JSON values, shown in the file only.
        """
        found = next((c for c in self._candidates if (c["name"], c["sparsity"]) == (name, sparsity)), None)
        if found is None:
            found = {"name": name, "sparsity": sparsity, "measures": {}}
            self._candidates.append(found)
        found.update(facts)
        return found

    def add(self, name: str, sparsity: float | None, **samples: float) -> None:
        """Add one sample for each measure named."""
        measures = self.candidate(name, sparsity)["measures"]
        for measure, sample in samples.items():
            if measure not in self.units:
                raise ValueError(f"{measure} has no unit; there are {', '.join(self.units)}")
            measures.setdefault(measure, []).append(sample)

    @property
    def has_samples(self) -> bool:
        """Whether there is anything to show."""
        return bool(self._candidates)

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "format": FORMAT,
            "benchmark": self.benchmark,
            "complete": self.complete,
            "date": self._date,
            "command": shlex.join(self.command),
            **self._environment,
            "settings": self.settings,
            "units": self.units,
            "ratios": self.ratios,
            "ranges": self.ranges,
            "references": self.references,
            "candidates": [self._describe(candidate) for candidate in self._candidates],
            "notes": self.notes,
        }

    def _describe(self, candidate: Mapping[str, Any]) -> dict[str, Any]:
        measures = {
            measure: {
                "samples": samples,
                "median": median(samples),
                "min": min(samples),
                "max": max(samples),
                "ratio_to": self._ratios(candidate, measure, median(samples)),
            }
            for measure, samples in candidate["measures"].items()
        }
        return {**candidate, "measures": measures}

    def _ratios(self, candidate: Mapping[str, Any], measure: str, value: float) -> dict[str, float | None]:
        """Ratio to every other reference that has this measure: at the same sparsity, or without one."""
        ratios: dict[str, float | None] = {}
        for name in self.references:
            if name == candidate["name"]:
                continue
            others = {c["sparsity"]: c["measures"].get(measure) for c in self._candidates if c["name"] == name}
            samples = others.get(candidate["sparsity"]) or others.get(None)
            if samples:
                reference = median(samples)
                over, under = (reference, value) if self.ratios[measure] == FASTER else (value, reference)
                ratios[name] = over / under if under else None
        return ratios

    def save(self) -> None:
        """Write the document as it stands.

        Raises:
            StoreError: the file cannot be written.
        """
        if self.file is not None:
            text = json.dumps(self.document(), indent=1, ensure_ascii=False, allow_nan=False, default=str)
            write_atomic(self.file, text.encode() + b"\n")

    def text(self) -> str:
        """The table for a terminal."""
        document = self.document()
        lines = [describe(document), format_rows(*table_of(document)), *self.notes]
        if not self.complete:
            lines.append("INCOMPLETE: not everything was measured")
        return "\n".join(lines + ([f"written to {self.file}"] if self.file else []))


def read_document(path: Path) -> dict[str, Any]:
    """What :meth:`Results.save` wrote.

    Raises:
        ConfigError: the file is missing or holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a benchmark's JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ConfigError(f"{path} was not written by recbole-prune bench --to=FILE")
    return document


# ---- where it was measured -------------------------------------------------------------------------------------------


def versions() -> dict[str, str | None]:
    """Versions of Python and of every library that is measured; None for what is not installed."""
    from recbole_prune.run import provenance

    found: dict[str, str | None] = {
        name: None if value == "not installed" else value for name, value in provenance.versions().items()
    }
    for name, distributions in _OPTIONAL.items():
        found[name] = next((v for v in map(_version, distributions) if v is not None), None)
    return found


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Processor, cores, threads in use, memory in bytes, load when the benchmark began; ``device`` is set later."""
    import torch

    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


# ---- as text ---------------------------------------------------------------------------------------------------------


def describe(document: Mapping[str, Any]) -> str:
    """One line: what was measured on what."""
    settings, where = document["settings"], document["machine"]
    on = " on ".join(str(settings[key]) for key in ("model", "dataset") if key in settings)
    return f"bench {document['benchmark']} {on}: {place(document)}, load {where['load_average']} at the start"


def place(document: Mapping[str, Any]) -> str:
    """Machine and threads in words."""
    where = document["machine"]
    device = f"{where['gpu']}, " if document["settings"].get("device", "cpu") != "cpu" else ""
    threads = f"{where['threads']} thread{'s' if where['threads'] != 1 else ''}"
    return f"{device}{where['cpu']}, {threads} of {where['usable_cores']} cores"


def table_of(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: for each measure the median, the range where there is one, and the ratios."""
    units, candidates = document["units"], document["candidates"]
    header, columns = ["candidate", "sparsity"], []
    for measure, unit in units.items():
        having = [c["measures"][measure] for c in candidates if measure in c["measures"]]
        if not having:
            continue
        ranged = measure in document.get("ranges", units) and any(len(m["samples"]) > 1 for m in having)
        references = [name for name in document["references"] if any(name in m["ratio_to"] for m in having)]
        faster = document["ratios"][measure] == FASTER
        columns.append((measure, unit, ranged, faster, references))
        header += [measure, *(["min - max"] if ranged else [])]
        header += [f"{'times faster than' if faster else 'of'} {name}" for name in references]
    if not columns and any(candidate.get("failed") for candidate in candidates):
        header.append("result")
    rows = []
    for candidate in candidates:
        sparsity = candidate["sparsity"]
        row = [candidate["name"], "" if sparsity is None else f"{100 * sparsity:g} %"]
        for measure, unit, ranged, faster, references in columns:
            found = candidate["measures"].get(measure)
            row += _cells(found, unit, ranged, faster, references) if found else [""] * (1 + ranged + len(references))
        if candidate.get("failed"):
            row[2:] = [str(candidate["failed"]), *[""] * (len(header) - 3)][: len(header) - 2]
        rows.append(row)
    return header, rows


def _cells(found: Mapping[str, Any], unit: str, ranged: bool, faster: bool, references: list[str]) -> list[str]:
    cells = [quantity(found["median"], unit)]
    if ranged:
        cells.append(f"{quantity(found['min'], unit)} - {quantity(found['max'], unit)}")
    for name in references:
        ratio = found["ratio_to"].get(name)
        cells.append("" if ratio is None else f"{ratio:.2f}" if faster else f"{ratio:.3f}")
    return cells


def quantity(value: float, unit: str) -> str:
    """Seconds, bytes, joules or watts with three digits that count."""
    if unit in ("joules", "watts"):
        return f"{value:,.0f} {unit[0].upper()}" if abs(value) >= 1000 else f"{value:.3g} {unit[0].upper()}"
    if unit == "seconds":
        return f"{value:.3g} s" if 1 <= value < 1000 else f"{value:.0f} s" if value >= 1 else f"{1000 * value:.3g} ms"
    for power, name in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{value / 1024**power:.2f} {name}"
    return f"{value:.0f} B"
