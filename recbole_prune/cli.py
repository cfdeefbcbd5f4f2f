"""``recbole-prune``, and ``python -m recbole_prune.cli``."""

from __future__ import annotations

import sys

from recbole_prune.commands import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
