"""``recbole-prune run``: RecBole's command line with a pruner, and the same as a function."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from recbole_prune import garbage
from recbole_prune.commands import USAGE
from recbole_prune.config.schema import help_text
from recbole_prune.config.words import launch
from recbole_prune.errors import in_one_line, printable, printable_lines
from recbole_prune.ranks import launcher

if TYPE_CHECKING:
    from recbole_prune.config.prune_config import PruneConfig
    from recbole_prune.run.summary import RunResult


def main(words: Sequence[str]) -> int:
    """Parse what RecBole's own launcher parses, leave ``--key=value`` to the config, run and print what was found."""
    asked = launch(words)
    if asked.ranks is not None and os.environ.get("WORLD_SIZE", "1") == "1":
        status, why = launcher.run(["run", *words], asked.ranks)
        if why:
            print(printable(f"recbole-prune: {why}"), file=sys.stderr)
        return status
    with garbage.not_searched(forever=True):
        import_module("recbole_prune.quick_start")  # with it comes whatever else a run imports
        from recbole_prune.config.prune_config import PruneConfig
        from recbole_prune.ranks import group

    group.join()
    config = PruneConfig(asked.model, asked.dataset, asked.files, words=asked.words)
    if config.settings.dry_run:
        _print(printable_lines(_plan(config)))
        return 0
    result, text = _run(config)
    _print(text)
    result.raise_failure()
    group.leave()
    return 0


def _print(text: str) -> None:
    """Of several processes only the first prints."""
    from recbole_prune.ranks import group

    if group.is_first():
        print(text, flush=True)


def usage() -> str:
    """The commands, then every setting of this package."""
    return f"{USAGE}\n{help_text()}"


def run_recbole_prune(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: list[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
) -> dict[str, Any]:
    """Run RecBole with a pruner; the arguments are those of RecBole's ``run_recbole``.

    ``model`` may also be a model class of your own, as in RecBole's ``Config``.

    As there, ``--key=value`` among the words of the running program (``sys.argv``) goes before ``config_dict``, and
    that before the files. The same settings find the same folder: what is finished there is not trained again, a
    killed run continues. Nothing is printed; log lines and a progress bar go to standard error. ``saved`` is there
    because RecBole has it and can only be True: a run keeps its tickets.

    Returns:
        ``folder``, ``tickets`` (list of records), ``chosen`` (record), ``artifact`` (path), ``table`` (text) and, as in
        RecBole, ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result`` and ``test_result`` of the chosen
        ticket. With ``dry_run`` only ``plan``, a text.

    Raises:
        PruneError: bad settings, nothing to prune, a damaged or busy folder; the message says what to do. Where RecBole
            or a class of your own failed, the message says so and ``__cause__`` is what it raised.
    """
    from recbole_prune.config.prune_config import PruneConfig
    from recbole_prune.ranks import group

    if not saved:
        config_dict = {**(config_dict or {}), "saved": False}
    program, *words = sys.argv or [""]
    notebook = "ipykernel_launcher" in program
    with in_one_line():
        group.join()
        config = PruneConfig(model, dataset, config_file_list, config_dict, () if notebook else words)
        if config.settings.dry_run:
            return {"plan": _plan(config)}
        result, text = _run(config)
        result.raise_failure()
    return {**result.to_dict(), "table": text}


def _plan(config: PruneConfig) -> str:
    from recbole_prune.report.dry_run import describe_plan

    return describe_plan(config)


def _run(config: PruneConfig) -> tuple[RunResult, str]:
    """What a run found, and the text of it, which of several processes the first has."""
    from recbole_prune import quick_start
    from recbole_prune.ranks import group
    from recbole_prune.report.closing import result_text

    result = quick_start.run(config)
    return result, result_text(result) if group.is_first() else ""
