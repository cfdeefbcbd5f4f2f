"""The files of a run folder one by one, read within bounds and checked field by field."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from recbole_prune.disk.names import CONFIG, JOURNAL, SCOPE, SEAL_OF_CONFIG, SEAL_OF_RUN, SUMMARY
from recbole_prune.disk.seals import digest_of, read_json, sha256, unseal
from recbole_prune.errors import StoreError

# far above what any run writes
_LONGEST = {CONFIG: 1 << 20, SCOPE: 8 << 20, SUMMARY: 64 << 20, JOURNAL: 256 << 20}
_MOST_VALUES = 1_000_000  # of a document, aliases of YAML written out
_DEEPEST = 32

_NUMBER, _COUNT = "a finite number", "a whole number from 0"
_METRICS = "metrics by name, each a number or null for undefined"
_FIELDS = {
    "ticket": _COUNT, "kept": _COUNT, "prunable": _COUNT, "parameters": _COUNT, "epochs": _COUNT, "best_epoch": _COUNT,
    "sparsity": _NUMBER, "valid_score": _NUMBER, "train_seconds": _NUMBER, "eval_seconds": _NUMBER,
    "valid": _METRICS, "test": _METRICS, "seed": "a whole number", "checkpoint_file": "a text",
}  # fmt: skip
_OPTIONAL = {
    "wins": "true, false or null", "wins_metric": "true, false or null", "measured": "an object or null",
    "history": "pairs of numbers", "losses": "numbers or null", "relative_epochs": "a finite number or null",
    "mask_file": "a text or null",
}  # fmt: skip


class DamagedError(StoreError):
    """A file of a run folder is not what a run writes."""


def read_contents(folder: Path) -> Iterator[tuple[str, Any]]:
    """``record``, ``scope``, ``tickets`` and ``summary`` of a run folder, each as soon as it is checked.

    Raises:
        DamagedError: a file cannot be read, holds what no run writes, or is of another run.
    """
    config = _read(folder / CONFIG)
    if config is None:
        raise DamagedError(f"{folder / CONFIG} is missing")
    yield "record", _record(config, folder / CONFIG)
    data, identity = _read(folder / SCOPE), None
    if data is not None:
        scope = _sealed(data, folder / SCOPE)
        if not isinstance(scope.get("targets"), list):
            raise DamagedError(f"{folder / SCOPE} is damaged: it has no list of targets")
        if scope.get(SEAL_OF_CONFIG) is not None:
            identity = digest_of(scope)
            if scope[SEAL_OF_CONFIG] != sha256(config):
                raise DamagedError(f"{folder / CONFIG} is not as the run was begun with it: its sha256 is another one")
        yield "scope", scope
    lines = list(_lines(folder / JOURNAL, identity))
    yield "tickets", tuple(sorted(lines, key=lambda line: line["ticket"]))
    summary = _summary(folder / SUMMARY, identity)
    if summary is not None and all(summary["chosen"] != line["ticket"] for line in lines):
        raise DamagedError(f"{folder / SUMMARY} chose ticket {summary['chosen']}, which {JOURNAL} does not have")
    yield "summary", summary


def _read(path: Path) -> bytes | None:
    """The bytes of a file, None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise DamagedError(f"{path} is not a file")
            longest = _LONGEST[path.name]
            data = file.read(longest + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > longest:
        raise DamagedError(f"{path} is no file of a run: it has more than {longest:,} bytes")
    return data


def _record(data: bytes, path: Path) -> dict[str, Any]:
    try:
        document = yaml.load(data.decode(), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:  # without the line itself: it may come from any file
        line = "" if error.problem_mark is None else f" (line {error.problem_mark.line + 1})"
        raise DamagedError(f"{path} is damaged: it is not valid YAML{line}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise DamagedError(f"{path} is damaged: it is not valid YAML") from error
    if not isinstance(document, dict) or not isinstance(document.get("settings"), dict):
        raise DamagedError(f"{path} is damaged: it holds no settings")
    _check_size(document, path)
    for name in ("model", "dataset"):
        if not isinstance(document["settings"].get(name), str):
            raise DamagedError(f"{path} is damaged: it does not say which {name}")
    return document


def _check_size(document: object, path: Path) -> None:
    """Refuse what grows without end where it is walked through: aliases that contain themselves or each other."""
    count, waiting = 0, [(document, 0)]
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > _MOST_VALUES or depth > _DEEPEST:
            raise DamagedError(f"{path} is no file of a run: it holds too much")
        if isinstance(value, Mapping):
            waiting += [(child, depth + 1) for pair in value.items() for child in pair]
        elif isinstance(value, (list, tuple, set)):
            waiting += [(child, depth + 1) for child in value]


def _sealed(data: bytes, path: Path, indent: int | None = None) -> dict[str, Any]:
    record = unseal(data.rstrip(b"\n"), indent)
    if record is None:
        raise DamagedError(f"{path} is damaged: its sha256 does not fit its content")
    _check_size(record, path)
    return record


def _unsealed(data: bytes, path: Path) -> dict[str, Any]:
    """A summary of the versions that sealed none."""
    record = read_json(data)
    if not isinstance(record, dict):
        raise DamagedError(f"{path} is damaged: it is not valid JSON")
    _check_size(record, path)
    return record


def _lines(path: Path, identity: str | None) -> Iterator[dict[str, Any]]:
    numbers = set()
    for number, data in enumerate((_read(path) or b"").split(b"\n"), 1):
        if not data:
            continue
        place = f"{path} line {number}"
        record = unseal(data)
        if record is None:
            raise DamagedError(f"{place} is damaged: its sha256 does not fit its content")
        if record.pop(SEAL_OF_RUN, None) != identity:
            raise DamagedError(f"{place} is of another run than {SCOPE}")
        _check_size(record, path)
        for name, kind in {**_FIELDS, **{name: kind for name, kind in _OPTIONAL.items() if name in record}}.items():
            if not _fits(record.get(name), kind):
                raise DamagedError(f"{place} is damaged: {name} is not {kind}")
        if record["ticket"] in numbers:
            raise DamagedError(f"{place} is damaged: ticket {record['ticket']} is there twice")
        numbers.add(record["ticket"])
        yield record


def _summary(path: Path, identity: str | None) -> dict[str, Any] | None:
    data = _read(path)
    if data is None:
        return None
    summary = _sealed(data, path, indent=2) if identity is not None else _unsealed(data, path)
    if summary.pop(SEAL_OF_RUN, None) != identity:
        raise DamagedError(f"{path} is of another run than {SCOPE}")
    tickets = summary.get("tickets")
    if not _fits(summary.get("chosen"), _COUNT) or not isinstance(summary.get("valid_metric"), str):
        raise DamagedError(f"{path} is damaged: chosen or valid_metric is missing")
    if not isinstance(tickets, list) or not all(
        isinstance(t, dict) and _fits(t.get("ticket"), _COUNT) for t in tickets
    ):
        raise DamagedError(f"{path} is damaged: tickets is no list of tickets")
    for ticket in tickets:
        if ticket.get("bytes") is not None and not _fits(ticket["bytes"], _COUNT):
            raise DamagedError(f"{path} is damaged: bytes of ticket {ticket['ticket']} is not {_COUNT} or null")
    return summary


def _fits(value: object, kind: str) -> bool:
    """Whether a value of JSON is of a kind, which is said in words."""
    if kind.endswith(" or null") and value is None:
        return True
    if kind.startswith("a finite number"):
        return _is_number(value)
    if kind in (_COUNT, "a whole number"):
        return isinstance(value, int) and not isinstance(value, bool) and (kind != _COUNT or value >= 0)
    if kind == _METRICS:
        return isinstance(value, dict) and all(each is None or _is_number(each) for each in value.values())
    if kind.startswith("true, false"):
        return value is None or isinstance(value, bool)
    if kind.startswith("a text"):
        return isinstance(value, str)
    if kind.startswith("an object"):
        return isinstance(value, dict)
    pairs = kind == "pairs of numbers"
    return isinstance(value, list) and all(
        (isinstance(each, list) and len(each) == 2 and all(map(_is_number, each)))
        if pairs
        else each is None or _is_number(each)
        for each in value
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
