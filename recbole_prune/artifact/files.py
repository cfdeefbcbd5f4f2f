"""The files of an artifact one by one: reading, what users consumed, the sealed ticket.json."""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from recbole_prune.artifact.fields import parse
from recbole_prune.errors import ArtifactError
from recbole_prune.sparse.ascending import ascending

FORMAT = "recbole_prune ticket"
FORMAT_VERSION = 3  # the newest that is read; what needs nothing newer is written as version 1

TICKET = "ticket.json"
TENSORS = "ticket.safetensors"
USERS = "tokens.user.txt"
ITEMS = "tokens.item.txt"
SEEN = "seen.safetensors"
CONTENT = (TENSORS, USERS, ITEMS, SEEN)

# no ticket.json and no header comes near; both grow a hundredfold when they are read
LONGEST_TICKET = 8 << 20
LONGEST_HEADER = 8 << 20

_UNSEALED = "0" * 64


@dataclass(frozen=True)
class Seen:
    """What every user has consumed, as compressed sparse rows.

    Attributes:
        indptr: shape ``[users + 1]``; the items of user ``u`` are ``indices[indptr[u]:indptr[u + 1]]``.
        indices: item ids, ascending for each user.
    """

    indptr: NDArray[Any]
    indices: NDArray[Any]

    @classmethod
    def from_pairs(cls, users: NDArray[Any], items: NDArray[Any], user_count: int) -> Seen:
        """From user and item ids of the same length, in any order, with repetitions; item 0 is padding."""
        real = np.asarray(items) > 0
        users, items = np.asarray(users)[real].astype(np.int64), np.asarray(items)[real].astype(np.int64)
        step = int(items.max(initial=0)) + 1
        pairs = ascending(users * step + items)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(pairs // step, minlength=user_count))])
        return cls(_narrow(indptr), _narrow(pairs % step))

    @classmethod
    def of_nobody(cls) -> Seen:
        """Data without users."""
        return cls.from_pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), 0)

    def of(self, user: int) -> NDArray[Any]:
        """Ascending item ids that a user has consumed."""
        return self.indices[int(self.indptr[user]) : int(self.indptr[user + 1])]

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        return save_safetensors({"indptr": self.indptr, "indices": self.indices})

    @classmethod
    def from_bytes(cls, data: bytes, path: Path, users: int, items: int) -> Seen:
        """Undo :meth:`to_bytes`; ``path`` is for the message.

        Raises:
            ArtifactError: these are not ascending ids from 1 to ``items - 1`` for each of ``users`` users.
        """
        arrays = load_arrays(data, path)
        if set(arrays) != {"indptr", "indices"}:
            raise ArtifactError(f"{path} holds {', '.join(sorted(arrays))} where indptr and indices are needed")
        for name, array in arrays.items():
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise ArtifactError(f"{path}: {name} must be a list of integers, but is {array.dtype} of {array.shape}")
        indptr, indices = arrays["indptr"], arrays["indices"]
        if len(indptr) != users + 1:
            raise ArtifactError(
                f"{path}: indptr has {len(indptr)} entries where {users + 1} are needed for {users} users"
            )
        if indptr[0] != 0 or indptr[-1] != len(indices) or (indptr[1:] < indptr[:-1]).any():
            raise ArtifactError(f"{path}: indptr must rise from 0 to {len(indices)}, the length of indices")
        if indices.size and not (indices.min() >= 1 and indices.max() < items):
            raise ArtifactError(
                f"{path}: indices must be items from 1 to {items - 1}, but go from {indices.min()} to {indices.max()}"
            )
        if not ascending_in_rows(indices, indptr):
            raise ArtifactError(f"{path}: the indices of a user must ascend")
        return cls(indptr, indices)


def _narrow(numbers: NDArray[np.int64]) -> NDArray[Any]:
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


def ascending_in_rows(numbers: NDArray[Any], pointers: NDArray[Any]) -> bool:
    """Whether the numbers of every row rise; row ``r`` is ``numbers[pointers[r]:pointers[r + 1]]``, all in range."""
    rises = numbers[1:] > numbers[:-1]
    between = pointers[(pointers > 0) & (pointers < len(numbers))].astype(np.int64)
    rises[between - 1] = True
    return bool(rises.all())


def load_arrays(data: bytes, path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file; ``path`` is for the message.

    Raises:
        ArtifactError: it is none, or its header is longer than any artifact's.
    """
    header = int.from_bytes(data[:8], "little")
    if header > LONGEST_HEADER:
        raise ArtifactError(f"{path} is not a readable safetensors file: its header has {header} bytes")
    try:
        return load_safetensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ArtifactError(f"{path} is not a readable safetensors file: {error}") from error


def size_of(path: Path) -> int:
    """Bytes of a regular file.

    Raises:
        OSError: it is not there, or cannot be asked for.
        ArtifactError: it is a symbolic link, a folder, a pipe or a device.
    """
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no regular file"
        raise ArtifactError(f"{path} is {kind}: an artifact holds regular files only, copy it as such")
    return status.st_size


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file; what was put in its place since :func:`size_of` is not followed or waited for.

    Raises:
        OSError: it cannot be read.
        ArtifactError: it is no regular file, or longer than ``most`` bytes.
    """
    if size_of(path) > most:
        raise ArtifactError(f"{path} has {size_of(path)} bytes where at most {most} are expected")
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ArtifactError(f"{path} is no regular file")
        try:
            return file.read(most + 1)
        except MemoryError as error:
            raise ArtifactError(f"{path} does not fit into memory: it has {size_of(path)} bytes") from error


def sha256(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def seal(document: Mapping[str, Any]) -> bytes:
    """ticket.json: the document with ``bytes.total`` and ``sha256`` filled in.

    The digest is taken over the file's own bytes with 64 zeros in its place, so any change of the file shows.
    """
    sealed = {**document, "bytes": dict(document["bytes"]), "sha256": _UNSEALED}
    others = sum(file["bytes"] for file in document["files"].values())
    while True:
        data = (json.dumps(sealed, indent=1, allow_nan=False) + "\n").encode("ascii")
        # the number counts the file in which it stands; it grows at most once or twice
        if sealed["bytes"].get("total") == others + len(data):
            break
        sealed["bytes"]["total"] = others + len(data)
    return data.replace(_UNSEALED.encode(), sha256(data).encode(), 1)


def unseal(data: bytes, path: Path) -> dict[str, Any]:
    """Undo :func:`seal`: check format and version first, then the digest.

    Raises:
        ArtifactError: not a ticket, of a newer format, or damaged.
    """
    document = parse(data, path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ArtifactError(f"{path} is damaged or not a ticket of recbole_prune: its format is not {FORMAT!r}")
    version = document.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ArtifactError(f"{path} is damaged: {reprlib.repr(version)} is no format version")
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: artifact has format version {version}, this recbole_prune reads up to {FORMAT_VERSION}: upgrade"
        )
    claimed = document.get("sha256")
    sealed = isinstance(claimed, str) and re.fullmatch("[0-9a-f]{64}", claimed)
    if not sealed or sha256(data.replace(str(claimed).encode(), _UNSEALED.encode(), 1)) != claimed:
        raise ArtifactError(f"{path} is damaged: its sha256 does not fit its content; export the artifact again")
    return document
