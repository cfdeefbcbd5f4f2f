"""``recbole-prune run``: RecBole's command line with a pruner, and the same as a function."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from recbole_prune.commands import USAGE
from recbole_prune.config.schema import help_text
from recbole_prune.config.words import launch


def main(words: Sequence[str]) -> int:
    """Parse what RecBole's own launcher parses, leave ``--key=value`` to the config, run and print what was found."""
    asked = launch(words)
    from recbole_prune.config.prune_config import PruneConfig

    print(_run(PruneConfig(asked.model, asked.dataset, asked.files, words=asked.words))[0])
    return 0


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
    killed run continues. Nothing is printed but RecBole's log and progress bars. ``saved`` is there because RecBole has
    it and can only be True: a run keeps its tickets.

    Returns:
        ``folder``, ``tickets`` (list of records), ``chosen`` (record), ``artifact`` (path), ``table`` (text) and, as in
        RecBole, ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result`` and ``test_result`` of the chosen
        ticket. With ``dry_run`` only ``plan``, a text.

    Raises:
        PruneError: bad settings, nothing to prune, a damaged or busy folder; the message says what to do.
    """
    from recbole_prune.config.prune_config import PruneConfig

    if not saved:
        config_dict = {**(config_dict or {}), "saved": False}
    program, *words = sys.argv or [""]
    notebook = "ipykernel_launcher" in program
    return _run(PruneConfig(model, dataset, config_file_list, config_dict, () if notebook else words))[1]


def _run(config: Any) -> tuple[str, dict[str, Any]]:
    """What a person sees of a run, and what a program gets."""
    if config.settings.dry_run:
        from recbole_prune.report.dry_run import describe_plan

        plan = describe_plan(config)
        return plan, {"plan": plan}
    from recbole_prune import quick_start
    from recbole_prune.report.table import result_text

    result = quick_start.run(config)
    text = result_text(result)
    return text, {**result.to_dict(), "table": text}
