"""``users.safetensors``: what each user scores by each per-user metric, of every ticket of a run.

Tensors ``valid/NNN/recall@10`` and ``test/NNN/recall@10`` (float32 ``[users]``, NNN the ticket's number) beside
``valid/users`` and ``test/users`` (int64 internal ids, in the order of the data); of sequential data a row is a history
with its next item, so a user may be there several times. A journal line holds the sha256 of its own ticket's tensors,
not of the file, which grows with every ticket.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from recbole_prune.disk.files import WAY_OUT, read_file
from recbole_prune.disk.seals import read_json
from recbole_prune.errors import StoreError

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Arrays = dict[str, NDArray[np.generic]]

PARTS = ("valid", "test")
# one entry: safetensors writes several in any order, and equal values are to be equal bytes
_VERSION, _KEY = "1", "users_format_version"
_NAME = re.compile(r"(valid|test)/(?:(users)|(\d{3,9})/([^/]+))")
# far above what any run writes
_LONGEST, _LONGEST_HEADER = 1 << 32, 64 << 20


def name_of(part: str, ticket: int, metric: str) -> str:
    """The tensor with a ticket's values of a metric, as ``recall@10``."""
    return f"{part}/{ticket:03d}/{metric}"


def ticket_in(name: str) -> int | None:
    """The ticket of a tensor; None of ``valid/users`` and ``test/users``."""
    found = _NAME.fullmatch(name)
    return None if found is None or found[3] is None else int(found[3])


def only(arrays: Mapping[str, NDArray[np.generic]], tickets: Iterable[int]) -> Arrays:
    """The arrays of some tickets, with the ids of the users of parts that they have values of."""
    wanted = set(tickets)
    values = {name: array for name, array in arrays.items() if ticket_in(name) in wanted}
    parts = [part for part in PARTS if any(name.startswith(f"{part}/") for name in values)]
    return {**{f"{part}/users": arrays[f"{part}/users"] for part in parts}, **values}


def digest_of(arrays: Mapping[str, NDArray[np.generic]], ticket: int) -> str | None:
    """The sha256 that a journal line has of its ticket's values and their users; None where there are none."""
    found = only(arrays, [ticket])
    digest = hashlib.sha256()
    for name in sorted(found):
        array = found[name].astype(found[name].dtype.newbyteorder("<"))
        digest.update(f"{name} {array.dtype.str} {array.size}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest() if found else None


def encode(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """The file."""
    return save({name: arrays[name] for name in sorted(arrays)}, metadata={_KEY: _VERSION})


def read(path: Path, expected: Mapping[int, str]) -> Arrays:
    """The values of some tickets from the file; those of others, which a killed process left, are passed over.

    Args:
        path: of the file.
        expected: by ticket the sha256 in its line of the journal; of none the file is not opened.

    Raises:
        StoreError: it is missing, damaged, of a newer format, or not the one that the journal names.
    """
    if not expected:
        return {}
    if path.is_file() and path.stat().st_size > _LONGEST:
        raise _damaged(path, f"it has more than {_LONGEST:,} bytes")
    arrays = only(_decode(read_file(path), path), expected)
    for ticket, digest in expected.items():
        if digest_of(arrays, ticket) != digest:
            raise _damaged(path, f"the values of ticket {ticket} are not those that its line of the journal names")
    return arrays


def _decode(data: bytes, path: Path) -> Arrays:
    """Undo :func:`encode`."""
    size = int.from_bytes(data[:8], "little")
    header = read_json(data[8 : 8 + size]) if size <= min(_LONGEST_HEADER, len(data) - 8) else None
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    version = metadata.get(_KEY) if isinstance(metadata, dict) else None
    if version is None:
        raise _damaged(path, "it is no file of users' values")
    if version != _VERSION:
        raise StoreError(f"{path} has format version {version}, this recbole_prune reads {_VERSION}: upgrade")
    try:
        arrays: Arrays = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise _damaged(path, str(error)) from error
    for name, array in arrays.items():
        _check(name, array, arrays, path)
    return arrays


def _check(name: str, array: NDArray[np.generic], arrays: Mapping[str, NDArray[np.generic]], path: Path) -> None:
    found = _NAME.fullmatch(name)
    if found is None:
        raise _damaged(path, f"no run writes a tensor {name}")
    users = arrays.get(f"{found[1]}/users")
    if users is None or array.ndim != 1 or array.shape != users.shape:
        raise _damaged(path, f"{name} does not have a value for each of {found[1]}/users")
    if found[2]:
        if array.dtype != np.int64 or (array.astype(np.int64) < 0).any():
            raise _damaged(path, f"{name} does not hold ids")
    elif array.dtype != np.float32 or not np.isfinite(array.astype(np.float32)).all():
        raise _damaged(path, f"{name} does not hold finite float32 values")


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(f"{path} is damaged: {why}; {WAY_OUT}")
