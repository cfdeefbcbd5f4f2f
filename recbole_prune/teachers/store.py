"""What is computed once for the run folder of a student: its teachers' rankings, and notes; read back hash-checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from recbole_prune.config.fingerprint import one_or_all
from recbole_prune.config.schema import check
from recbole_prune.disk.files import WAY_OUT, read_file
from recbole_prune.disk.seals import seal, unseal
from recbole_prune.errors import ConfigError, StoreError
from recbole_prune.ranks import group
from recbole_prune.run.provenance import read_record
from recbole_prune.run.store import DISTILLATION, RunFolder

if TYPE_CHECKING:
    from recbole_prune.config.prune_config import PruneConfig

Arrays = dict[str, np.ndarray]
# what the record of the only teacher is called, and that of several together; of several each has one of its own
TEACHER = "teacher"


@group.on_first
def require_unchanged(config: PruneConfig, folder: RunFolder) -> None:
    """Refuse to begin anew what the same command has begun with other content in the same place.

    The content of ``distill_teacher`` is a part of the name of a run folder, so such a run lies beside this one. A
    teacher of another place is another teacher.

    Raises:
        StoreError: there is such a run, and it is not finished.
    """
    method, places = folder.path.name.rpartition("-")[0], config.plain_settings()["distill_teacher"]
    for path in sorted(folder.path.parent.glob(f"{method}-*")):
        before = _teachers_in(path)
        if before is None or path == folder.path:
            continue
        begun = RunFolder(path)
        same = path.name == f"{method}-{config.run_hash_of(before)}" and _places_of_teachers(begun) == places
        if same and _goes_on(begun):
            raise StoreError(
                f"{_changed(path, before, config.teacher_digests)}; put the old one back to continue, or begin another "
                "run with --fresh=True (that folder stays)"
            )


def _changed(path: Path, before: Sequence[str], now: Sequence[str]) -> str:
    return f"the teacher changed since {path} was begun: its sha256 was {', '.join(before)} and is {', '.join(now)}"


def _teachers_in(path: Path) -> list[str] | None:
    """sha256 of each teacher of a run; None where none is known."""
    try:
        record = unseal(read_file(path / DISTILLATION / f"{TEACHER}.json").rstrip(b"\n"))
    except StoreError:
        return None
    return None if record is None else _all(record["teacher_sha256"])


def _all(one_or_several: str | list[str]) -> list[str]:
    return [one_or_several] if isinstance(one_or_several, str) else one_or_several


def _places_of_teachers(folder: RunFolder) -> object:
    """``distill_teacher`` of a run; None where its record cannot be read."""
    try:
        return check("distill_teacher", read_record(folder)["settings"].get("distill_teacher"))
    except (StoreError, ConfigError):
        return None


def _goes_on(folder: RunFolder) -> bool:
    """Whether a run has begun to train and is not finished; one that is damaged does not."""
    try:
        return folder.is_trained() and not folder.is_finished()
    except StoreError:
        return False


class ListStore:
    """The rankings of one teacher, or of several together, in one run folder.

    Args:
        folder: of the run; None keeps nothing.
        contents: sha256 of the teacher, or of each.
        length: of the lists.
        name: of its files: :data:`TEACHER`, or that of one of several.
        states: sha256 of the states of the teacher's training that are read.

    Raises:
        StoreError: the run was begun with another teacher, or the record is damaged.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        contents: Sequence[str],
        length: int,
        name: str = TEACHER,
        states: Sequence[str] = (),
    ) -> None:
        self.folder, self._name = folder, name
        own: dict[str, Any] = {"teacher_sha256": one_or_all(contents), "length": length}
        own.update({"states_sha256": list(states)} if states else {})
        self._record: dict[str, Any] = {**own, "files": {}, "notes": {}}
        if folder is None:
            return
        found = group.first(lambda: self._read(folder))  # another process may be about to write
        if found is not None:
            if {key: found.get(key) for key in own} == own:
                self._record.update(found)
                return
            if folder.is_trained():
                before, now = _all(found["teacher_sha256"]), list(contents)
                if before == now:
                    before, now = [*before, *found.get("states_sha256", [])], [*now, *states]
                raise StoreError(
                    f"{_changed(folder.path, before, now)}; put the old one back, or start over with --fresh=True "
                    "(this folder is kept aside)"
                )
        self._write()

    def _read(self, folder: RunFolder) -> dict[str, Any] | None:
        path = folder.path / self._place
        if not path.exists():
            return None
        found = unseal(read_file(path).rstrip(b"\n"))
        if found is None:
            raise StoreError(f"{path} is corrupt: its sha256 does not fit its content; {WAY_OUT}")
        return found

    @property
    def _place(self) -> str:
        return f"{DISTILLATION}/{self._name}.json"

    def get(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """Arrays that were stored under a name; they are computed and stored where there are none.

        Raises:
            StoreError: the file is missing or damaged.
        """
        of = "" if self._name == TEACHER else f"{self._name}-"
        file, digests = f"{DISTILLATION}/{of}{name}.safetensors", self._record["files"]
        if self.folder is not None and name in digests:
            return load_safetensors(self.folder.read(file, digests[name]))
        getLogger("recbole_prune").info(f"the {self._name.replace('-', ' ')} ranks: {name.replace('_', ' ')}")
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
            self.folder.write(self._place, seal(self._record) + b"\n")
