"""An artifact: a trained ticket as a small folder that is read with numpy alone.

``ticket.json``         what it is, how to build the model, its scores and sizes, the sha256 of every file
``ticket.safetensors``  weights in the encodings of :mod:`recbole_prune.artifact.encoding`
``tokens.user.txt``     the user's own token of every internal user id, one a line from id 0
``tokens.item.txt``     likewise for items
``seen.safetensors``    the items that every user has consumed

Nothing is pickled. Reading checks the format version first, then the hash of every file. Only ``export.py`` imports
torch; nothing here reads settings or a run folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

from safetensors.numpy import save as save_safetensors

from recbole_prune.artifact import files
from recbole_prune.artifact.encoding import Array, EncodedTensor
from recbole_prune.artifact.files import Seen
from recbole_prune.errors import ArtifactError

PathLike = Union[str, "os.PathLike[str]"]

_WEIGHTS = "weights"
_VECTORS = "vectors"
_RESERVED = ("format", "format_version", "tensors", "vectors", "bytes", "files", "sha256")


@dataclass(frozen=True)
class Artifact:
    """What an artifact holds; tensors are decoded when asked for.

    Attributes:
        folder: where it was read from.
        info: the content of ticket.json.
        tensors: encoded weights by their name in the model's ``state_dict``.
        shared: weights that are the same tensor under a second name, by that name.
        vectors: encoded user and item vectors that are not weights, by name.
        users: the user's own token of every internal user id; id 0 is padding.
        items: likewise for items.
        seen: what every user has consumed.
    """

    folder: Path
    info: Mapping[str, Any]
    tensors: Mapping[str, EncodedTensor]
    shared: Mapping[str, str]
    vectors: Mapping[str, EncodedTensor]
    users: Sequence[str] = field(repr=False)
    items: Sequence[str] = field(repr=False)
    seen: Seen = field(repr=False)

    def encoded(self, name: str) -> EncodedTensor:
        """One weight, or one of the vectors, as it is stored.

        Raises:
            ArtifactError: there is none of that name.
        """
        encoded = self.tensors.get(self.shared.get(name, name)) or self.vectors.get(name)
        if encoded is None:
            known = ", ".join([*self.tensors, *self.shared, *self.vectors])
            raise ArtifactError(f"{self.folder} has no tensor {name!r}; it has {known}")
        return encoded

    def tensor(self, name: str) -> Array:
        """Decode one weight, or one of the vectors; as :meth:`encoded`."""
        return self.encoded(name).decode()

    def state(self) -> dict[str, Array]:
        """Decode all weights: the model's ``state_dict`` in numpy."""
        decoded = {name: encoded.decode() for name, encoded in self.tensors.items()}
        return {**decoded, **{name: decoded[owner] for name, owner in self.shared.items()}}


def write_artifact(
    folder: PathLike,
    *,
    tensors: Mapping[str, EncodedTensor],
    users: Iterable[str],
    items: Iterable[str],
    seen: Seen,
    document: Mapping[str, Any],
    shared: Mapping[str, str] | None = None,
    vectors: Mapping[str, EncodedTensor] | None = None,
    tables: Iterable[str] = (),
    check: Callable[[Artifact], None] = lambda artifact: None,
) -> dict[str, Any]:
    """Write an artifact; it appears complete or not at all, and replaces an older one only then.

    Args:
        folder: the artifact's folder.
        tensors: encoded weights by name.
        users: token of every internal user id, from 0.
        items: token of every internal item id, from 0.
        seen: what every user has consumed.
        document: further content of ticket.json, JSON only.
        shared: second name -> name in ``tensors``, for weights that are one tensor.
        vectors: encoded user and item vectors by name.
        tables: names of the tensors that were pruned; their bytes are compared with the information bound.
        check: called with the artifact as read back from disk before it appears; it may raise ArtifactError.

    Returns:
        the content of ticket.json.

    Raises:
        ArtifactError: the folder holds other things, the disk is full, or ``check`` refuses.
        ValueError: ``document`` has a key that is written here.
    """
    clash = set(document) & set(_RESERVED)
    if clash:
        raise ValueError(f"document may not have {sorted(clash)}")
    shared, vectors = dict(shared or {}), dict(vectors or {})
    content = {
        files.TENSORS: save_safetensors({**_parts(_WEIGHTS, tensors), **_parts(_VECTORS, vectors)}),
        files.USERS: files.tokens_to_bytes(users),
        files.ITEMS: files.tokens_to_bytes(items),
        files.SEEN: seen.to_bytes(),
    }
    described = {name: encoded.describe() for name, encoded in tensors.items()}
    described.update({name: {"same_as": owner} for name, owner in shared.items()})
    sealed = files.seal(
        {
            "format": files.FORMAT,
            "format_version": files.FORMAT_VERSION,
            **document,
            "bytes": {"total": 0, **_sizes([tensors[name] for name in tables])},
            "tensors": described,
            "vectors": {name: encoded.describe() for name, encoded in vectors.items()},
            "files": {name: {"bytes": len(data), "sha256": files.sha256(data)} for name, data in content.items()},
        }
    )
    target = Path(folder)
    files.replace_folder(target, {**content, files.TICKET: sealed}, lambda path: check(read_artifact(path)))
    return files.unseal(sealed, target / files.TICKET)


def _parts(group: str, tensors: Mapping[str, EncodedTensor]) -> dict[str, Array]:
    return {
        f"{group}/{name}/{part}": array for name, encoded in tensors.items() for part, array in encoded.parts.items()
    }


def _sizes(tables: Sequence[EncodedTensor]) -> dict[str, Any]:
    """Bytes of the pruned tables (values, positions, scales) beside their information bound and their dense form."""
    stored = sum(table.nbytes for table in tables)
    bound = sum(table.bound_bytes for table in tables)
    return {
        "tables": stored,
        "tables_bound": round(bound, 1),
        "tables_ratio": round(stored / bound, 4) if bound else None,
        "tables_dense": sum(table.dense_nbytes for table in tables),
    }


def read_artifact(folder: PathLike) -> Artifact:
    """Read an artifact; tensors stay encoded until they are asked for.

    Raises:
        ArtifactError: there is none, it has a newer format, or a file is missing, truncated or changed (each is named).
    """
    path = Path(folder)
    info = _read_ticket(path)
    content = _read_content(path, info)
    arrays = files.load_arrays(content[files.TENSORS], path / files.TENSORS)
    try:
        described = info["tensors"]
        shared = {name: about["same_as"] for name, about in described.items() if "same_as" in about}
        own = {name: about for name, about in described.items() if name not in shared}
        artifact = Artifact(
            folder=path,
            info=info,
            tensors=_assemble(_WEIGHTS, own, arrays),
            shared=shared,
            vectors=_assemble(_VECTORS, info["vectors"], arrays),
            users=files.tokens_from_bytes(content[files.USERS]),
            items=files.tokens_from_bytes(content[files.ITEMS]),
            seen=Seen.from_bytes(content[files.SEEN], path / files.SEEN),
        )
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not a complete artifact: {type(error).__name__} {error}") from error
    if len(artifact.seen.indptr) != len(artifact.users) + 1 or not set(shared.values()) <= set(own):
        raise ArtifactError(f"{path} contradicts itself: the files do not speak of the same users or weights")
    return artifact


def _read_ticket(path: Path) -> dict[str, Any]:
    ticket = path / files.TICKET
    try:
        return files.unseal(ticket.read_bytes(), ticket)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"no artifact in {path}: {ticket} is missing") from error
    except OSError as error:
        raise ArtifactError(f"{ticket} cannot be read: {error.strerror or error}") from error


def _read_content(path: Path, info: Mapping[str, Any]) -> dict[str, bytes]:
    """Every file beside ticket.json, hash-checked; all that is wrong goes into one message."""
    listed = info.get("files")
    if not isinstance(listed, dict) or set(listed) != set(files.CONTENT):
        raise ArtifactError(f"{path / files.TICKET} must list {', '.join(files.CONTENT)}")
    content, problems = {}, []
    for name, expected in listed.items():
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            problems.append(f"{path / name} " + ("is missing" if missing else f"cannot be read: {error.strerror}"))
            continue
        content[name] = data
        if len(data) != expected["bytes"]:
            kind = "is truncated" if len(data) < expected["bytes"] else "is too long"
            problems.append(f"{path / name} {kind}: {len(data)} bytes, {expected['bytes']} expected")
        elif files.sha256(data) != expected["sha256"]:
            problems.append(f"{path / name} is damaged: its sha256 does not fit its content")
    if problems:
        raise ArtifactError("; ".join([*problems, "export the artifact again or copy it again"]))
    return content


def _assemble(
    group: str, described: Mapping[str, Mapping[str, Any]], arrays: Mapping[str, Array]
) -> dict[str, EncodedTensor]:
    parts: dict[str, dict[str, Array]] = {name: {} for name in described}
    for key, array in arrays.items():
        of_group, _, rest = key.partition("/")
        name, _, part = rest.rpartition("/")
        if of_group == group:
            parts[name][part] = array
    return {name: EncodedTensor.from_description(about, parts[name]) for name, about in described.items()}
