"""``recbole-prune run``: RecBole's command line with a pruner."""

from __future__ import annotations

import argparse
import sys

from recbole_prune.cli import USAGE
from recbole_prune.config.schema import help_text


def main(argv: list[str]) -> int:
    """Parse what RecBole's own launcher parses, leave ``--key=value`` to its Config, and run."""
    if any(word in ("-h", "--help") for word in argv):
        print(USAGE + "\n" + help_text())
        return 0
    model, dataset, files = hand_to_recbole(argv)
    from recbole_prune.quick_start import run_recbole_prune

    result = run_recbole_prune(model=model, dataset=dataset, config_file_list=files)
    if "plan" in result:
        print(result["plan"])
    return 0


def hand_to_recbole(argv: list[str]) -> tuple[str, str, list[str] | None]:
    """Parse what RecBole's own launcher parses, and leave all words in ``sys.argv`` as its Config reads them.

    Returns:
        model, dataset and config files.
    """
    parser = argparse.ArgumentParser(prog="recbole-prune", add_help=False, allow_abbrev=False)
    parser.add_argument("--model", "-m", default="BPR")
    parser.add_argument("--dataset", "-d", default="ml-100k")
    parser.add_argument("--config_files", default=None)
    known, rest = parser.parse_known_args(argv)
    # RecBole's Config reads sys.argv itself and knows only --key=value
    named = [f"--{name}={value}" for name, value in vars(known).items() if value is not None]
    sys.argv = [sys.argv[0] if sys.argv else "recbole-prune", *named, *rest]
    return known.model, known.dataset, known.config_files.split() if known.config_files else None
