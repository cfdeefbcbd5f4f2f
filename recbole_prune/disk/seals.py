"""JSON records that carry their own sha256, so that what is read is what was written.

A hash shows damage and mix-ups. It does not show forgery: who changes a record can make its hash fit again.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

_MOST_DIGITS = 400  # more than any float has


def sha256(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def canonical(record: dict[str, Any]) -> bytes:
    """One line of JSON with sorted keys."""
    return json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def digest_of(record: dict[str, Any]) -> str:
    """The sha256 that stands for a record, whatever the order of its keys."""
    return sha256(canonical(record))


def seal(record: dict[str, Any], indent: int | None = None) -> bytes:
    """JSON that carries the sha256 of its record: one line, or indented for people.

    Raises:
        ValueError: the record holds a number that JSON lacks.
    """
    sealed = {**record, "sha256": digest_of(record)}
    return json.dumps(sealed, ensure_ascii=False, allow_nan=False, indent=indent).encode()


def read_json(data: bytes) -> Any:
    """The content of JSON, None where it is none, or holds a number that takes long to read."""
    try:
        return json.loads(data, parse_int=_whole)
    except (ValueError, RecursionError):
        return None


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def unseal(data: bytes, indent: int | None = None) -> dict[str, Any] | None:
    """The record, or None if the data is not byte for byte what :func:`seal` wrote."""
    record = read_json(data)
    if not isinstance(record, dict) or record.pop("sha256", None) is None:
        return None
    try:
        return record if seal(record, indent) == data else None
    except (ValueError, RecursionError):
        return None
