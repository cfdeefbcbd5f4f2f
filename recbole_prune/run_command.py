"""``recbole-prune run``: RecBole's command line with a pruner."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from recbole_prune.cli import USAGE
from recbole_prune.schema import help_text


def main(argv: list[str]) -> int:
    """Parse what RecBole's own launcher parses, leave ``--key=value`` to its Config, and run."""
    if any(word in ("-h", "--help") for word in argv):
        print(USAGE + "\n" + help_text())
        return 0
    arguments = launch_arguments(argv)
    from recbole_prune.quick_start import run_recbole_prune

    result = run_recbole_prune(**arguments)
    if "plan" in result:
        print(result["plan"])
    return 0


def launch_arguments(argv: list[str]) -> dict[str, Any]:
    """Parse what RecBole's own launcher parses and leave ``--key=value`` to RecBole's Config, which reads ``sys.argv``.

    Returns:
        ``model``, ``dataset`` and ``config_file_list`` for :func:`recbole_prune.run_recbole_prune`.
    """
    parser = argparse.ArgumentParser(prog="recbole-prune", add_help=False, allow_abbrev=False)
    parser.add_argument("--model", "-m", default="BPR")
    parser.add_argument("--dataset", "-d", default="ml-100k")
    parser.add_argument("--config_files", default=None)
    known, rest = parser.parse_known_args(argv)
    # RecBole knows only --key=value
    named = [f"--{name}={value}" for name, value in vars(known).items() if value is not None]
    sys.argv = [sys.argv[0] if sys.argv else "recbole-prune", *named, *rest]
    files = known.config_files.split() if known.config_files else None
    return {"model": known.model, "dataset": known.dataset, "config_file_list": files}
