"""Where the live entries of a ticket are: in which tensor, and in the rows of popular or of rare users and items.

Read from packed mask files with numpy; what a mask file or an artifact holds is checked before memory is taken for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_prune.artifact import read_artifact
from recbole_prune.artifact.files import LONGEST_HEADER, load_arrays, read_regular, sha256
from recbole_prune.errors import ArtifactError
from recbole_prune.report.folders import RunRecord

GROUPS = 10
_ROWS_AT_ONCE = 1 << 13  # a multiple of eight, so that blocks begin at a byte
_MOST_ENTRIES = 1 << 34

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Target:
    """A tensor that may be pruned: its name, rows, entries of a row, and the rows that never count."""

    name: str
    rows: int
    width: int
    padding: tuple[int, ...]

    @property
    def prunable(self) -> int:
        """Entries that may be pruned: those of all rows but padding."""
        return (self.rows - len(set(self.padding))) * self.width


def targets_of(scope: Mapping[str, Any]) -> list[Target]:
    """The tensors of a run's ``scope.json``.

    Raises:
        ArtifactError: an entry is not what a run writes.
    """
    found = []
    for target in scope.get("targets", []):
        fields = target if isinstance(target, dict) else {}
        name, shape, padding = fields.get("name"), _counts(fields.get("shape")), _counts(fields.get("padding_rows"))
        if not isinstance(name, str) or not shape or padding is None:
            raise ArtifactError("scope.json is damaged: a target has no name, no shape or no padding rows")
        if not 0 < prod(shape) <= _MOST_ENTRIES or any(row >= shape[0] for row in padding):
            raise ArtifactError(f"scope.json is damaged: {name} has no such shape or padding rows")
        found.append(Target(name, shape[0], prod(shape[1:]), tuple(padding)))
    return found


def _counts(value: object) -> list[int] | None:
    """A list of whole numbers from 0; None where it is none."""
    return value if isinstance(value, list) and all(type(each) is int and each >= 0 for each in value) else None


def live_per_row(run: RunRecord, line: Mapping[str, Any], targets: Sequence[Target]) -> dict[str, Counts]:
    """Live entries of each row of every target, padding rows 0.

    Args:
        run: the run folder.
        line: of a ticket that has a mask file.
        targets: of the run.

    Raises:
        ArtifactError: the file is missing, damaged, or of another model.
    """
    path = run.path / line["mask_file"]
    if path.parent != run.path / "masks" or path.name != f"ticket-{line['ticket']:03d}.safetensors":
        raise ArtifactError(f"{path} is not where a run keeps a mask")
    sizes = {target.name: -(-target.rows * target.width // 8) for target in targets}
    try:
        data = read_regular(path, sum(sizes.values()) + LONGEST_HEADER)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    if sha256(data) != line.get("mask_sha256"):
        raise ArtifactError(f"{path} is damaged: its sha256 is not that of the journal")
    arrays = load_arrays(data, path)
    if {name: (array.dtype.name, array.shape) for name, array in arrays.items()} != {
        name: ("uint8", (size,)) for name, size in sizes.items()
    }:
        raise ArtifactError(f"{path} does not fit the tensors of scope.json")
    return {target.name: _count(arrays[target.name], target) for target in targets}


def _count(packed: NDArray[np.uint8], target: Target) -> Counts:
    counts = np.zeros(target.rows, np.int64)
    for start in range(0, target.rows, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, target.rows - start)
        first = start * target.width // 8
        bits = np.unpackbits(packed[first : first + -(-rows * target.width // 8)], count=rows * target.width)
        counts[start : start + rows] = bits.reshape(rows, target.width).sum(1, dtype=np.int64)
    counts[list(target.padding)] = 0
    return counts


def density_of(counts: Mapping[str, Counts], targets: Sequence[Target]) -> float:
    """Live entries of tensors together over those that may be pruned.

    Args:
        counts: live entries of each row, by tensor.
        targets: the tensors.
    """
    prunable = sum(target.prunable for target in targets)
    return sum(int(counts[target.name].sum()) for target in targets) / prunable if prunable else 0.0


@dataclass(frozen=True)
class Popularity:
    """Rows of users or of items in groups of equally many interactions, the most popular first.

    Attributes:
        side: ``user`` or ``item``.
        interactions: of every id, 0 for padding.
        group: of every id, 0 for the most popular; -1 for padding.
    """

    side: str
    interactions: Counts
    group: NDArray[np.int64]

    def members(self) -> list[int]:
        """How many users or items each group has."""
        return np.bincount(self.group[self.group >= 0], minlength=GROUPS).tolist()  # type: ignore[no-any-return]


def popularities(run: RunRecord) -> list[Popularity]:
    """Users and items of a run by their interactions, as its artifact lists them (``seen.safetensors``).

    These are all interactions of the data set: those of validation and test too.

    Raises:
        ArtifactError: there is no artifact, it is damaged, or its data has no users and items.
    """
    artifact = read_artifact(run.path / "artifact")
    if not len(artifact.users) or not len(artifact.items):
        raise ArtifactError("the data has no users and items")
    seen = artifact.seen
    pointers = seen.indptr.astype(np.int64)
    of_users = pointers[1:] - pointers[:-1]
    of_items = np.bincount(seen.indices, minlength=len(artifact.items)).astype(np.int64)
    return [grouped("user", of_users), grouped("item", of_items)]


def grouped(side: str, interactions: Counts) -> Popularity:
    """Cut ids, by interactions downwards and equal ones by id, into groups of equal sums of interactions.

    An id belongs to the group in which its first interaction falls (methods/lottery_ticket.md 2.12); those without any
    to the last. Id 0 is padding.
    """
    order = np.argsort(-interactions[1:], kind="stable") + 1
    before = np.cumsum(interactions[order]) - interactions[order]
    total = int(interactions[1:].sum())
    group = np.full(len(interactions), -1, np.int64)
    group[order] = np.minimum(GROUPS * before // total, GROUPS - 1) if total else GROUPS - 1
    return Popularity(side, interactions, group)


def tables_of(popularity: Popularity, others: Sequence[Popularity], targets: Sequence[Target]) -> list[Target]:
    """Tensors with a row for every user (item): those with as many rows, where users and items differ in number."""
    rows = len(popularity.interactions)
    if any(len(other.interactions) == rows for other in others if other.side != popularity.side):
        return []
    return [target for target in targets if target.rows == rows]


def density_by_group(
    counts: Mapping[str, Counts], popularity: Popularity, tables: Sequence[Target]
) -> list[float | None]:
    """Live over all entries of the rows of each group; None for a group without rows."""
    rows = np.bincount(popularity.group[popularity.group >= 0], minlength=GROUPS) * sum(t.width for t in tables)
    live = sum(
        (
            np.bincount(popularity.group[popularity.group >= 0], counts[t.name][popularity.group >= 0], GROUPS)
            for t in tables
        ),
        np.zeros(GROUPS),
    )
    return [float(kept) / int(all_) if all_ else None for kept, all_ in zip(live, rows)]
