"""An artifact: a trained ticket as a small folder that is read with numpy alone.

``ticket.json``         what it is, how to build the model, its scores and sizes, the sha256 of every file
``ticket.safetensors``  weights in the encodings of :mod:`recbole_prune.artifact.encoding`, and forms of
                        :mod:`recbole_prune.artifact.forms`; vectors, or the graph that they follow from
                        (:mod:`recbole_prune.artifact.graph`)
``tokens.user.txt``     the user's own token of every internal user id, one a line from id 0
``tokens.item.txt``     likewise for items
``seen.safetensors``    the items that every user has consumed

Data without users and items (clicks described by features alone) has none of the last three.

Nothing is pickled. Reading checks the format version first, then the hash of every file. A hash finds damage, not
malice: whoever changes a file can change its hash too. So every field and every array is checked as well, against the
others and against the bytes that are there, before anything is allocated or computed from it; only regular files are
opened. Only ``export.py`` and ``vectors.py`` import torch; nothing here reads settings or a run folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, Union

from safetensors.numpy import save as save_safetensors

from recbole_prune.artifact import files
from recbole_prune.artifact.encoding import Array, EncodedTensor
from recbole_prune.artifact.fields import Fields
from recbole_prune.artifact.files import Seen
from recbole_prune.artifact.forms import StoredTensor, read_tensor
from recbole_prune.artifact.graph import GRAPH, PropagatedTable, StoredGraph, read_propagated
from recbole_prune.artifact.replacing import replace_folder
from recbole_prune.artifact.tokens import Tokens, tokens_to_bytes
from recbole_prune.errors import ArtifactError

PathLike = Union[str, "os.PathLike[str]"]

ServedTable = Union[StoredTensor, PropagatedTable]
Stored = TypeVar("Stored", bound=StoredTensor)

_WEIGHTS = "weights"
_VECTORS = "vectors"
# decoded, artifacts are a few to some hundred times as large as on disk, with a line for each user and item
_SMALL = 64 << 20
_MOST_GROWTH = 1024
# products that a graph may ask for, for each byte: with the widest tables, 99 % of them pruned, it is some 4,000
_MOST_PRODUCTS = 1 << 14
_RESERVED = ("format", "format_version", "tensors", _VECTORS, GRAPH, "bytes", "files", "sha256")


@dataclass(frozen=True)
class Artifact:
    """What an artifact holds; tensors are decoded when asked for.

    Attributes:
        folder: where it was read from.
        info: the content of ticket.json.
        tensors: encoded weights by their name in the model's ``state_dict``.
        shared: weights that are the same tensor under a second name, by that name.
        vectors: user and item vectors that are not weights, by name: encoded, or computed with the graph.
        users: the user's own token of every internal user id; id 0 is padding. Empty where the data has no users.
        items: likewise for items.
        seen: what every user has consumed.
    """

    folder: Path
    info: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    shared: Mapping[str, str]
    vectors: Mapping[str, EncodedTensor | PropagatedTable]
    users: Tokens = field(repr=False)
    items: Tokens = field(repr=False)
    seen: Seen = field(repr=False)

    def encoded(self, name: str) -> ServedTable:
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
    tensors: Mapping[str, StoredTensor],
    users: Iterable[str] | None,
    items: Iterable[str] | None,
    seen: Seen | None,
    document: Mapping[str, Any],
    shared: Mapping[str, str] | None = None,
    vectors: Mapping[str, EncodedTensor] | None = None,
    graph: StoredGraph | None = None,
    tables: Iterable[str] = (),
    check: Callable[[Artifact], None] = lambda artifact: None,
) -> dict[str, Any]:
    """Write an artifact; it appears complete or not at all, and replaces an older one only then.

    Args:
        folder: the artifact's folder.
        tensors: encoded weights by name.
        users: token of every internal user id, from 0; None, as the next two, where the data has no users and items.
        items: token of every internal item id, from 0.
        seen: what every user has consumed.
        document: further content of ticket.json, JSON only.
        shared: second name -> name in ``tensors``, for weights that are one tensor.
        vectors: encoded user and item vectors by name.
        graph: from which user and item vectors are computed.
        tables: names of the tensors that were pruned; their bytes are compared with the information bound.
        check: called with the artifact as read back from disk before it appears; it may raise ArtifactError.

    Returns:
        the content of ticket.json.

    Raises:
        ArtifactError: the folder holds other things, the disk is full, or ``check`` refuses.
        ValueError: ``document`` has a key that is written here, or ``users``, ``items`` and ``seen`` are not all given.
    """
    clash = set(document) & set(_RESERVED)
    if clash:
        raise ValueError(f"document may not have {sorted(clash)}")
    if len({part is None for part in (users, items, seen)}) > 1:
        raise ValueError("users, items and seen belong together: give all or none")
    shared, vectors = dict(shared or {}), dict(vectors or {})
    edges = {} if graph is None else {f"{GRAPH}/{part}": array for part, array in graph.parts.items()}
    content = {files.TENSORS: save_safetensors({**_parts(_WEIGHTS, tensors), **_parts(_VECTORS, vectors), **edges})}
    if users is not None and items is not None and seen is not None:
        content[files.USERS], content[files.ITEMS] = tokens_to_bytes(users), tokens_to_bytes(items)
        content[files.SEEN] = seen.to_bytes()
    described = {name: encoded.describe() for name, encoded in tensors.items()}
    described.update({name: {"same_as": owner} for name, owner in shared.items()})
    sealed = files.seal(
        {
            "format": files.FORMAT,
            "format_version": max(
                (part.format_version for part in (*tensors.values(), *vectors.values(), graph) if part is not None),
                default=1,
            ),
            **document,
            "bytes": {"total": 0, **_sizes([tensors[name] for name in tables])},
            "tensors": described,
            _VECTORS: {name: encoded.describe() for name, encoded in vectors.items()},
            **({} if graph is None else {GRAPH: graph.describe()}),
            "files": {name: {"bytes": len(data), "sha256": files.sha256(data)} for name, data in content.items()},
        }
    )
    target = Path(folder)
    replace_folder(target, {**content, files.TICKET: sealed}, lambda path: check(read_artifact(path)))
    return files.unseal(sealed, target / files.TICKET)


def _parts(group: str, tensors: Mapping[str, StoredTensor]) -> dict[str, Array]:
    return {
        f"{group}/{name}/{part}": array for name, encoded in tensors.items() for part, array in encoded.parts.items()
    }


def _sizes(tables: Sequence[StoredTensor]) -> dict[str, Any]:
    """Bytes of the pruned tables, positions and scales too, beside their information bound and their dense form."""
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
        ArtifactError: there is none, it has a newer format, a file is missing, truncated or changed (each is named), or
            a field or an array is not what it must be.
    """
    path = Path(folder)
    info = _read_ticket(path)
    fields = Fields(info, path / files.TICKET)
    content = _read_content(path, fields)
    arrays = files.load_arrays(content[files.TENSORS], path / files.TENSORS)
    described, vectors = fields.inner("tensors"), fields.inner(_VECTORS)
    tensors = {name: described.inner(name) for name in described}
    shared = {name: about.text("same_as") for name, about in tensors.items() if "same_as" in about}
    own = {name: about for name, about in tensors.items() if name not in shared}
    for name in shared:
        tensors[name].text("same_as", list(own))
    users, items, seen = _read_users_and_items(content, path)
    weights = _assemble(_WEIGHTS, own, arrays, read_tensor)
    stored = _assemble(
        _VECTORS, {name: vectors.inner(name) for name in vectors}, arrays, EncodedTensor.from_description
    )
    known = {**weights, **{name: weights[owner] for name, owner in shared.items()}}
    artifact = Artifact(
        folder=path,
        info=info,
        tensors=weights,
        shared=shared,
        vectors={**stored, **read_propagated(fields, arrays, known, stored, seen, len(items))},
        users=users,
        items=items,
        seen=seen,
    )
    _refuse_growth(artifact, sum(map(len, content.values())))
    for key in arrays:
        raise ArtifactError(f"{path / files.TENSORS} holds {key}, of which {path / files.TICKET} does not speak")
    return artifact


def _read_ticket(path: Path) -> dict[str, Any]:
    ticket = path / files.TICKET
    try:
        return files.unseal(files.read_regular(ticket, files.LONGEST_TICKET), ticket)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"no artifact in {path}: {ticket} is missing") from error
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise ArtifactError(f"{ticket} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _read_content(path: Path, fields: Fields) -> dict[str, bytes]:
    """Every file beside ticket.json, hash-checked; all that is wrong goes into one message."""
    listed = fields.inner("files")
    if set(listed) not in (set(files.CONTENT), {files.TENSORS}):
        raise fields.wrong("files", f"an object of {', '.join(files.CONTENT)}, or of {files.TENSORS} alone")
    content, problems = {}, []
    for name in [name for name in files.CONTENT if name in listed]:
        size, digest = listed.inner(name).whole("bytes", 1 << 60), listed.inner(name).text("sha256")
        try:
            found = files.size_of(path / name)
            if found == size:
                content[name] = files.read_regular(path / name, size)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            problems.append(f"{path / name} " + ("is missing" if missing else f"cannot be read: {error.strerror}"))
            continue
        if found != size:
            kind = "is truncated" if found < size else "is too long"
            problems.append(f"{path / name} {kind}: {found} bytes, {size} expected")
        elif files.sha256(content[name]) != digest:
            problems.append(f"{path / name} is damaged: its sha256 does not fit its content")
    if problems:
        raise ArtifactError("; ".join([*problems, "export the artifact again or copy it again"]))
    return content


def _read_users_and_items(content: Mapping[str, bytes], path: Path) -> tuple[Tokens, Tokens, Seen]:
    """Tokens of users and items and what users have seen; empty where the data has no users and items."""
    if files.SEEN not in content:
        return Tokens.none(), Tokens.none(), Seen.of_nobody()
    users, items = (Tokens(content[name], path / name) for name in (files.USERS, files.ITEMS))
    return users, items, Seen.from_bytes(content[files.SEEN], path / files.SEEN, len(users), len(items))


def _assemble(
    group: str,
    described: Mapping[str, Fields],
    arrays: dict[str, Array],
    read: Callable[[Fields, Mapping[str, Array]], Stored],
) -> dict[str, Stored]:
    """Tensors from their descriptions and from their arrays, which are taken out."""
    parts: dict[str, dict[str, Array]] = {name: {} for name in described}
    for key in list(arrays):
        of_group, _, rest = key.partition("/")
        name, _, part = rest.rpartition("/")
        if of_group == group and name in parts:
            parts[name][part] = arrays.pop(key)
    return {name: read(about, parts[name]) for name, about in described.items()}


def _refuse_growth(artifact: Artifact, stored: int) -> None:
    """Refuse an artifact that declares tensors out of all proportion to its bytes."""
    most, needed = max(_SMALL, _MOST_GROWTH * stored), 0
    for table in artifact.vectors.values():
        if isinstance(table, PropagatedTable) and table.products > max(_SMALL, _MOST_PRODUCTS * stored):
            raise ArtifactError(
                f"{table.source} asks for {table.products} products, out of all proportion: the files of the artifact "
                f"have {stored} bytes"
            )
    for tensor in [*artifact.tensors.values(), *artifact.vectors.values()]:
        needed += tensor.working_nbytes
        if needed > most:
            raise ArtifactError(
                f"{tensor.source}.shape {list(tensor.shape)} is too large: the tensors up to here take {needed} bytes, "
                f"and the files of the artifact have {stored}"
            )
