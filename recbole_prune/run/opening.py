"""Where the folder of a run lies, and how it is opened while others may work there."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path
from time import sleep

from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.disk.names import method_name
from recbole_prune.errors import BusyError
from recbole_prune.run.store import ARTIFACT, RunFolder

_SECONDS_BETWEEN_LOOKS = 1.0


def run_path(config: PruneConfig) -> Path:
    """``<output_dir>/<dataset>/<model>/<pruner>[+<distiller>]-<hash>`` as an absolute path."""
    settings = config.settings
    name = f"{method_name(settings.pruner, settings.distiller)}-{config.run_hash}"
    return Path(settings.output_dir).absolute() / str(config["dataset"]) / str(config["model"]) / name


def open_folder(folder: RunFolder, waits: bool) -> None:
    """Create and lock the folder of a run.

    Args:
        folder: of the run.
        waits: until no other process works in it, as runs do that share a teacher or a student alone.

    Raises:
        StoreError: as :meth:`RunFolder.open` says; a busy folder only where nobody waits.
    """
    told = False
    while True:
        try:
            return folder.open()
        except BusyError:
            if not waits:
                raise
            if not told:
                getLogger().warning(f"another process is working in {folder.path}, which this run needs too: waiting")
            told = True
            sleep(_SECONDS_BETWEEN_LOOKS)


def run_folder_of(path: Path) -> Path:
    """The folder of a run that is named by a checkpoint in it, or by its artifact, or by itself."""
    if path.suffix == ".pth":
        return path.parent.parent
    return path.parent if path.name == ARTIFACT else path
