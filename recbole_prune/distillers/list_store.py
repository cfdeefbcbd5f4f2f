"""A teacher's rankings on disk: computed once for a run folder, read back hash-checked by a run that continues."""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger
from typing import Any

import numpy as np
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from recbole_prune.errors import StoreError
from recbole_prune.run.files import WAY_OUT, read_file
from recbole_prune.run.seals import seal, unseal
from recbole_prune.run.store import DISTILLATION, RunFolder

Arrays = dict[str, np.ndarray]
_RECORD = f"{DISTILLATION}/teacher.json"


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
        self._record: dict[str, Any] = {"teacher_sha256": sha256, "length": length, "files": {}}
        if folder is None:
            return
        if (folder.path / _RECORD).exists():
            found = unseal(read_file(folder.path / _RECORD).rstrip(b"\n"))
            if found is None:
                raise StoreError(f"{folder.path / _RECORD} is corrupt: its sha256 does not fit its content; {WAY_OUT}")
            if {**found, "files": {}} == self._record:
                self._record = found
                return
            if folder.is_trained():
                before = found["teacher_sha256"]
                raise StoreError(
                    f"the teacher changed since {folder.path} was begun: its sha256 was {before} and is {sha256}; put "
                    "the old one back, or start over with --fresh=True (this folder is kept aside)"
                )
        folder.write(_RECORD, seal(self._record) + b"\n")

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
            self._record = {**self._record, "files": digests}
            self.folder.write(_RECORD, seal(self._record) + b"\n")
        return arrays
