"""``recbole-prune clean``: remove the states of a training that a run folder keeps for students."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recbole_prune.config.options import Option, describe, refuse_all, some_text, split
from recbole_prune.errors import ConfigError, printable

_OPTIONS = {"run": Option(some_text, None, "a folder", "folder of a run", required=True)}


def main(words: Sequence[str]) -> int:
    """Parse ``--run=FOLDER``, remove its states, print how many bytes that were."""
    named = split("clean", _OPTIONS, words, refuse_all)[0]["run"]
    path = Path(named).absolute()
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"clean: --run={named} is no folder of a run: there is no {path / 'config.yaml'}")
    from recbole_prune.run.cleaning import remove
    from recbole_prune.run.store import STATES, RunFolder

    folder = RunFolder(path)
    folder.open()
    try:
        if not folder.tickets():
            raise ConfigError(f"clean: --run={named} has no finished ticket yet, it goes on with its states")
        states = folder.names(STATES)
        size = remove(folder, states)
    finally:
        folder.close()
    print(f"removed {len(states)} states, {size:,} bytes: {printable(str(path))}")
    return 0


def usage() -> str:
    """What the command takes."""
    lines = [
        "usage: recbole-prune clean --run=FOLDER",
        "",
        "Removes the states that --distill_record_states=N kept. No student can be taught by them any more; only",
        "training anew brings them back. Tickets, checkpoints and the artifact stay.",
        "",
    ]
    return "\n".join([*lines, *describe(_OPTIONS, indent=2)])
