"""The subcommands of ``recbole-prune``: parse words, call, print.

The only room that reads ``sys.argv`` and prints; what it prints comes from ``report/``. Each module has
``main(words) -> exit status`` and ``usage() -> text``, which ``--help`` prints.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import recbole_prune
from recbole_prune.errors import PruneError

USAGE = """usage: recbole-prune [run] --model=BPR --dataset=ml-100k --pruner=imp [--key=value ...]
       recbole-prune export --run=FOLDER [--export_ticket=N] [--export_values=fp16] [--to=FOLDER]
       recbole-prune recommend --artifact=FOLDER --users=196,186 [--k=10]
       recbole-prune compare --model=BPR --dataset=ml-100k --pruners=static,dsl --sparsities=0.5,0.9 --seeds=1,2,3
       recbole-prune bench train --model=BPR --dataset=ml-100k [--sparsities=0,0.9] [--to=FILE]   (bench --help)
       recbole-prune models [NAME ...] [--kind=general]   (what is pruned in each of RecBole's models)
       recbole-prune doctor

Every RecBole setting works as with run_recbole.py: --model (-m), --dataset (-d), --config_files="a.yaml b.yaml",
and any --key=value.
"""

# imported when called, so that recommend loads neither torch nor RecBole
COMMANDS = ("run", "export", "recommend", "compare", "bench", "models", "doctor")
_TAKE_NAMES = ("bench", "models")  # the others take options only


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; errors that a user can act on are printed in one line.

    Args:
        argv: the words after the program's name, by default those of this process.

    Returns:
        exit status: 0, 2 for an error, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-V", "--version"):
        print(f"recbole-prune {recbole_prune.__version__}" if words else USAGE.rstrip())
        return 0
    name = words.pop(0) if words[0] in COMMANDS else "run"
    if name not in _TAKE_NAMES and words and not words[0].startswith("-"):
        print(f"recbole-prune: unknown command {words[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        command = import_module(f"recbole_prune.commands.{name}")
        if "-h" in words or "--help" in words:
            print(command.usage())
            return 0
        return int(command.main(words))
    except PruneError as error:
        print(f"recbole-prune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrecbole-prune: interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
