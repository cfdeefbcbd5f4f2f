"""``recbole-prune``, and ``python -m recbole_prune.cli``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from recbole_prune import garbage
from recbole_prune.signals import end_on_signals, end_with_parent

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command: :func:`recbole_prune.commands.main`.

    Args:
        argv: the words after the program's name. By default those of this process, which signals then end; a program
            that passes words keeps its own handlers.
    """
    if argv is None:
        end_on_signals()
        end_with_parent()
        garbage.own_process()
    from recbole_prune import commands

    return commands.main(argv)


if __name__ == "__main__":
    sys.exit(main())
