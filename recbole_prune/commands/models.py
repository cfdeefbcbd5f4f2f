"""``recbole-prune models``: what is pruned by default in each of RecBole's models, and who can teach it."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence

from recbole_prune.anatomy.prunable import PrunableModel, read_models
from recbole_prune.config.near import did_you_mean, near_names
from recbole_prune.config.options import Option, refuse_options, some_text, split
from recbole_prune.errors import ConfigError

USAGE = """usage: recbole-prune models [NAME ...] [--kind=KIND]

What is pruned by default in each of RecBole's models and in UltraGCN, and which distillers can teach
it, by kind: general, sequential, context, knowledge, traditional, tree. Models that are named are shown
with the reasons why other distillers cannot. A * stands for numbers, (2) for two tensors of such names;
which numbers there are depends on your data. --prune_scope, --prune_include and --prune_exclude
change what is pruned; --dry_run=True shows it for your data, with the reason for every tensor that
is left alone. Tensors that receive no gradient (LR owns a table that it never uses) are left out.
Units are what --pruner=structured removes whole, with the number of layers that have such; where the
class can be built smaller with other settings, a checkpoint that plain RecBole loads is written too.
"""
KINDS = ["general", "sequential", "context", "knowledge", "traditional", "tree"]
WIDTH = 100
_INDENT = 14
_OPTIONS = {"kind": Option(some_text, None, f"one of {', '.join(KINDS)}", "only models of this kind")}


def main(words: Sequence[str]) -> int:
    """Print the models, all or some.

    Args:
        words: names of models (any case) and ``--kind=KIND``.

    Returns:
        Exit status 0.

    Raises:
        ConfigError: an unknown option, kind or model.
    """
    print(table(*_chosen(words)))
    return 0


def usage() -> str:
    """What the command takes."""
    return USAGE.rstrip()


def table(models: list[PrunableModel], explained: Collection[str] = ()) -> str:
    """A section for each kind in the order of ``KINDS``, one entry for each model, at most ``WIDTH`` columns.

    Args:
        models: the models.
        explained: names of those whose entry says why some distillers cannot teach it.
    """
    lines: list[str] = []
    for kind in KINDS:
        members = [model for model in models if model.kind == kind]
        if members:
            lines += [
                "",
                f"{kind} ({len(members)})",
                *(line for model in members for line in _entry(model, model.name in explained)),
            ]
    return "\n".join(lines[1:])


def _entry(model: PrunableModel, explained: bool) -> list[str]:
    notes = f"({model.notes})" if model.targets and model.notes else model.notes
    taught = f"taught by {model.taught_by or 'none'}"
    reasons = model.reasons.split("; ") if explained else []
    units = f"units: {model.units or 'none that can be taken out'}"
    units += f"; masked only: {model.masked_units}" if model.masked_units else ""
    smaller = f"smaller class by {model.smaller_class}" if model.smaller_class else ""
    lines: list[str] = []
    for text in filter(None, (model.targets, notes, units, smaller, taught, *reasons)):
        lines += textwrap.wrap(text, WIDTH - _INDENT, break_long_words=False, break_on_hyphens=False)
    indented = textwrap.indent("\n".join(lines), " " * _INDENT).splitlines()
    return [f"  {model.name}".ljust(_INDENT) + lines[0], *indented[1:]]


def _chosen(words: Sequence[str]) -> tuple[list[PrunableModel], set[str]]:
    """The models to show, and the names of those that were asked for by name."""
    options, names = split("models", _OPTIONS, words, refuse_options)
    models = read_models()
    kind = options["kind"] and _known(options["kind"], KINDS, "kind")
    chosen = {_known(name, [model.name for model in models], "model") for name in names}
    return [model for model in models if not words or model.name in chosen or model.kind == kind], chosen


def _known(word: str, names: list[str], what: str) -> str:
    """The name that a word is in some case."""
    found = next((name for name in names if name.lower() == word.lower()), None)
    if found is None:
        near = did_you_mean(near_names(word, names))
        allowed = f"; there are {', '.join(names)}" if what == "kind" else "; recbole-prune models lists all"
        raise ConfigError(f"models: {word!r} is no {what}{near or allowed}")
    return found
