"""The files of an artifact one by one: tokens, what users consumed, the sealed ticket.json, the replaced folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from recbole_prune.errors import ArtifactError
from recbole_prune.signals import on_abort

FORMAT = "recbole_prune ticket"
FORMAT_VERSION = 1

TICKET = "ticket.json"
TENSORS = "ticket.safetensors"
USERS = "tokens.user.txt"
ITEMS = "tokens.item.txt"
SEEN = "seen.safetensors"
CONTENT = (TENSORS, USERS, ITEMS, SEEN)

_UNSEALED = "0" * 64
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_ORIGINALS = {escaped: token for token, escaped in _ESCAPES.items()}


def tokens_to_bytes(tokens: Iterable[str]) -> bytes:
    r"""One token a line in UTF-8, the line number from 0 being RecBole's id; ``\\``, ``\n`` and ``\r`` are escaped."""
    lines = (re.sub(r"[\\\n\r]", lambda match: _ESCAPES[match[0]], token) for token in tokens)
    # tokens read from broken files may hold lone surrogates, which plain UTF-8 refuses
    return "".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass")


def tokens_from_bytes(data: bytes) -> list[str]:
    """Undo :func:`tokens_to_bytes`."""
    lines = data.decode("utf-8", "surrogatepass").split("\n")[:-1]
    return [re.sub(r"\\.", lambda match: _ORIGINALS[match[0]], line) for line in lines]


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
        pairs = np.unique(users * step + items)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(pairs // step, minlength=user_count))])
        return cls(_narrow(indptr), _narrow(pairs % step))

    def of(self, user: int) -> NDArray[Any]:
        """Ascending item ids that a user has consumed."""
        return self.indices[int(self.indptr[user]) : int(self.indptr[user + 1])]

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        return save_safetensors({"indptr": self.indptr, "indices": self.indices})

    @classmethod
    def from_bytes(cls, data: bytes, path: Path) -> Seen:
        """Undo :meth:`to_bytes`; ``path`` is for the message."""
        arrays = load_arrays(data, path)
        if set(arrays) != {"indptr", "indices"}:
            raise ArtifactError(f"{path} holds {sorted(arrays)} where indptr and indices are needed")
        return cls(arrays["indptr"], arrays["indices"])


def _narrow(numbers: NDArray[np.int64]) -> NDArray[Any]:
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


def load_arrays(data: bytes, path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file; ``path`` is for the message."""
    try:
        return load_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path} is not a readable safetensors file: {error}") from error


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
    try:
        document = json.loads(data.decode("ascii"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: it is not valid JSON ({error})") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ArtifactError(f"{path} is damaged or not a ticket of recbole_prune: its format is not {FORMAT!r}")
    version = document.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ArtifactError(f"{path} is damaged: {version!r} is no format version")
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: artifact has format version {version}, this recbole_prune reads up to {FORMAT_VERSION}: upgrade"
        )
    claimed = document.get("sha256")
    sealed = isinstance(claimed, str) and re.fullmatch("[0-9a-f]{64}", claimed)
    if not sealed or sha256(data.replace(str(claimed).encode(), _UNSEALED.encode(), 1)) != claimed:
        raise ArtifactError(f"{path} is damaged: its sha256 does not fit its content; export the artifact again")
    return document


def replace_folder(folder: Path, files: Mapping[str, bytes], check: Callable[[Path], None]) -> None:
    """Write files into a folder that appears complete or not at all; an older artifact stays until then.

    The files go into a temporary folder beside, are synced and checked, then the folders change names.

    Args:
        folder: what to write; its parents are made.
        files: content by file name.
        check: called with the temporary folder; if it raises, nothing appears.

    Raises:
        ArtifactError: the folder holds other things than an artifact, or cannot be written (disk full).
    """
    folder = Path(os.path.realpath(folder))
    old = _kept_aside(folder)
    temporary = folder.with_name(f".{folder.name}.tmp-{secrets.token_hex(4)}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not folder.exists():
            old.rename(folder)  # a process that died between the two renames below left it there
        _refuse_foreign_content(folder)
        with on_abort(partial(shutil.rmtree, temporary, ignore_errors=True)):
            temporary.mkdir()
            for name, data in files.items():
                _write_synced(temporary / name, data)
            check(temporary)
            _sync_folder(temporary)
            _exchange(temporary, folder, old)
    except OSError as error:
        reason = error.strerror or str(error)
        kept = "; the artifact that was there is unchanged" if folder.exists() else ""
        raise ArtifactError(f"artifact {folder} was not written: {reason}{kept}") from error


def _kept_aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _refuse_foreign_content(folder: Path) -> None:
    if folder.is_file():
        raise ArtifactError(f"artifact {folder} was not written: there is a file of that name")
    if folder.is_dir():
        foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in (TICKET, *CONTENT))
        if foreign:
            raise ArtifactError(
                f"artifact {folder} was not written: the folder holds {foreign[0]!r}, which is no part of an artifact "
                "and would be lost; name another folder or move it away"
            )


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows has no descriptor for a folder
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, folder: Path, old: Path) -> None:
    """Put ``new`` in the place of ``folder``, whose former content is deleted last."""
    shutil.rmtree(old, ignore_errors=True)
    with on_abort(lambda: old.exists() and not folder.exists() and old.rename(folder)):
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    try:
        _sync_folder(folder.parent)
    except OSError:
        return  # the new artifact stands; the old one is kept until an exchange is known to be on the disk
    shutil.rmtree(old, ignore_errors=True)
