"""What is computed once for the run folder of a student: its teacher's rankings, and notes; read back hash-checked."""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from recbole_prune.errors import StoreError
from recbole_prune.run.files import WAY_OUT, read_file
from recbole_prune.run.provenance import read_record
from recbole_prune.run.seals import seal, unseal
from recbole_prune.run.store import DISTILLATION, RunFolder

if TYPE_CHECKING:
    from recbole_prune.config.prune_config import PruneConfig

Arrays = dict[str, np.ndarray]
_RECORD = f"{DISTILLATION}/teacher.json"


def require_unchanged(config: PruneConfig, folder: RunFolder) -> None:
    """Refuse to begin anew what the same command has begun with other content in the same place.

    The content of ``distill_teacher`` is a part of the name of a run folder, so such a run lies beside this one. A
    teacher of another place is another teacher.

    Raises:
        StoreError: there is such a run, and it is not finished.
    """
    method, place = folder.path.name.rpartition("-")[0], config.plain_settings()["distill_teacher"]
    for path in sorted(folder.path.parent.glob(f"{method}-*")):
        before = _teacher_in(path)
        if before is None or path == folder.path:
            continue
        begun = RunFolder(path)
        same = path.name == f"{method}-{config.run_hash_of(before)}" and _place_of_teacher(begun) == place
        if same and _goes_on(begun):
            raise StoreError(
                f"the teacher changed since {path} was begun: its sha256 was {before} and is {config.teacher_digest}; "
                "put the old one back to continue, or begin another run with --fresh=True (that folder stays)"
            )


def _teacher_in(path: Path) -> str | None:
    """sha256 of the teacher of a run; None where none is known."""
    try:
        record = unseal(read_file(path / _RECORD).rstrip(b"\n"))
    except StoreError:
        return None
    return None if record is None else str(record["teacher_sha256"])


def _place_of_teacher(folder: RunFolder) -> object:
    """``distill_teacher`` of a run; None where its record cannot be read."""
    try:
        return read_record(folder)["settings"].get("distill_teacher")
    except StoreError:
        return None


def _goes_on(folder: RunFolder) -> bool:
    """Whether a run has begun to train and is not finished; one that is damaged does not."""
    try:
        return folder.is_trained() and not folder.is_finished()
    except StoreError:
        return False


class ListStore:
    """The rankings of one teacher in one run folder.

    Args:
        folder: of the run; None keeps nothing.
        sha256: of the teacher.
        length: of the lists.

    Raises:
        StoreError: the run was begun with another teacher, or the record is damaged.
    """

    def __init__(self, folder: RunFolder | None, sha256: str, length: int) -> None:
        self.folder = folder
        own: dict[str, Any] = {"teacher_sha256": sha256, "length": length}
        self._record: dict[str, Any] = {**own, "files": {}, "notes": {}}
        if folder is None:
            return
        if (folder.path / _RECORD).exists():
            found = unseal(read_file(folder.path / _RECORD).rstrip(b"\n"))
            if found is None:
                raise StoreError(f"{folder.path / _RECORD} is corrupt: its sha256 does not fit its content; {WAY_OUT}")
            if {name: found[name] for name in own} == own:
                self._record.update(found)
                return
            if folder.is_trained():
                before = found["teacher_sha256"]
                raise StoreError(
                    f"the teacher changed since {folder.path} was begun: its sha256 was {before} and is {sha256}; put "
                    "the old one back, or start over with --fresh=True (this folder is kept aside)"
                )
        self._write()

    def get(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """Arrays that were stored under a name; they are computed and stored where there are none.

        Raises:
            StoreError: the file is missing or damaged.
        """
        file, digests = f"{DISTILLATION}/{name}.safetensors", self._record["files"]
        if self.folder is not None and name in digests:
            return load_safetensors(self.folder.read(file, digests[name]))
        getLogger("recbole_prune").info(f"the teacher ranks: {name.replace('_', ' ')}")
        arrays = {part: np.ascontiguousarray(array) for part, array in compute().items()}
        if self.folder is not None:
            digests = {**digests, name: self.folder.write(file, save_safetensors(arrays))}
            self._write(files=digests)
        return arrays

    def note(self, name: str, compute: Callable[[], Any]) -> Any:
        """A value of JSON that was noted under a name; it is computed and noted where there is none."""
        if name not in self._record["notes"]:
            self._write(notes={**self._record["notes"], name: compute()})
        return self._record["notes"][name]

    def _write(self, **changes: Any) -> None:
        self._record = {**self._record, **changes}
        if self.folder is not None:
            self.folder.write(_RECORD, seal(self._record) + b"\n")
