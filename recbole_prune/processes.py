"""How this package starts processes of itself. Standard library only: workers of a cluster load nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_prune.signals import PARENT

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
# without the working directory among the places of modules: nothing that lies there is imported by accident
_CODE = "import sys; del sys.path[0]; from recbole_prune.cli import main; sys.exit(main())"


def command(words: Sequence[str]) -> list[str]:
    """What starts ``recbole-prune`` with some words, in this Python."""
    return [sys.executable, "-c", _CODE, *words]


def environment(threads: int | None) -> dict[str, str]:
    """The same package, no more threads than its share, and an end when this process ends.

    Args:
        threads: of the process, where the environment says no number; None leaves it to libraries.
    """
    ours = str(Path(__file__).resolve().parents[1])
    places = [ours, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    counts = {} if threads is None else {name: str(threads) for name in _THREADS if name not in os.environ}
    return {**os.environ, **counts, "PYTHONPATH": os.pathsep.join(dict.fromkeys(places)), PARENT: str(os.getpid())}
