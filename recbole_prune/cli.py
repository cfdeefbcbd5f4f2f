"""``recbole-prune``: run (default), export, recommend, compare, bench, doctor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

from recbole_prune.errors import PruneError

USAGE = """usage: recbole-prune [run] --model=BPR --dataset=ml-100k --pruner=imp [--key=value ...]
       recbole-prune export --run=FOLDER [--export_ticket=N] [--export_values=fp16] [--to=FOLDER]
       recbole-prune recommend --artifact=FOLDER --users=196,186 [--k=10]
       recbole-prune compare --model=BPR --dataset=ml-100k --pruners=static,dsl --sparsities=0.5,0.9 --seeds=1,2,3
       recbole-prune bench train --model=BPR --dataset=ml-100k [--sparsities=0,0.9] [--to=FILE]   (bench --help)
       recbole-prune doctor

Every RecBole setting works as with run_recbole.py: --model (-m), --dataset (-d), --config_files="a.yaml b.yaml",
and any --key=value.
"""

# command -> module with main(argv) -> exit status; imported when called, so recommend loads neither torch nor RecBole
COMMANDS = {
    "run": "recbole_prune.commands.run",
    "export": "recbole_prune.commands.export",
    "recommend": "recbole_prune.commands.recommend",
    "compare": "recbole_prune.commands.compare",
    "bench": "recbole_prune.commands.bench",
    "doctor": "recbole_prune.commands.doctor",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; errors that a user can act on are printed in one line.

    Returns:
        exit status: 0, 2 for an error, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "run"
    if name != "bench" and arguments and not arguments[0].startswith("-"):
        print(f"recbole-prune: unknown command {arguments[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        command: Callable[[list[str]], int] = import_module(COMMANDS[name]).main
        return command(arguments)
    except PruneError as error:
        print(f"recbole-prune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrecbole-prune: interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
