"""How a run ends: the table, and in words what was chosen, what it saves, where it is and what to do next."""

from __future__ import annotations

import shlex
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recbole_prune.config.usage import is_used
from recbole_prune.errors import printable
from recbole_prune.report.as_good import as_good_legend, verdict_sentence
from recbole_prune.report.costs import macs_line, times_faster
from recbole_prune.report.energy import energy_lines
from recbole_prune.report.popularity import popularity_lesson
from recbole_prune.report.runs import from_here
from recbole_prune.report.stored import stored_sentence
from recbole_prune.report.table import is_taught, legend, live_parameters, shows_tests, teachers_of, ticket_table
from recbole_prune.run.summary import RunResult
from recbole_prune.run.ticket import Ticket
from recbole_prune.run.workshop import NO_TEST_DATA

_PARTS = {"valid": "validation", "test": "test"}


def result_text(result: RunResult) -> str:
    """Table and closing words; lines fit a terminal and 100 columns, but for paths and ``verbose`` tables."""
    config = result.experiment.config
    metric, verbose = config["valid_metric"], config.settings.verbose
    table = ticket_table(
        result.tickets,
        metric,
        chosen=result.chosen,
        bytes_of=result.bytes_of,
        others=result.siblings,
        every_metric=verbose,
        teacher=result.teacher,
        alone=result.alone,
        as_good=result.as_good,
    )
    seconds = macs_line(result.chosen, result.dense)
    notice = [f"NOTE {NO_TEST_DATA}"] if not result.chosen.test else []
    notice += [f"NOTE {result.notice}"] if result.notice else []
    tested = shows_tests(result.as_good, result.siblings)
    notes = legend(result.tickets, metric, verbose, result.teacher, tested) + as_good_legend(result.as_good, tested)
    stored = stored_sentence(result.stored, metric.lower())
    said = [" ".join(_outcome(result)), *stored, *_lesson(result), seconds, *_advice(result), *notice]
    energy = [text if "\n" in text else _wrapped(text) for text in energy_lines(result)]
    places = map(printable, _places(result))
    said += ["", *_verdict(result)] if result.chosen is not result.dense else []
    return "\n".join(["", table, *map(_wrapped, notes), *energy, "", *map(_wrapped, said), *places])


def _verdict(result: RunResult) -> list[str]:
    """What to do with the chosen ticket, in a sentence."""
    chosen, dense, sizes = result.chosen, result.dense, result.bytes_of
    beside = sizes[chosen.ticket], None if dense is None else sizes[dense.ticket]
    return verdict_sentence(chosen, result.as_good, beside, times_faster(chosen, dense))


def _wrapped(text: str) -> str:
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _outcome(result: RunResult) -> Iterator[str]:
    """Choice, entries, bytes and metrics, each beside the dense model's."""
    chosen, dense = result.chosen, None if result.dense is result.chosen else result.dense
    yield f"Chosen is ticket {chosen.ticket}: {result.reason}."
    yield f"It keeps {chosen.kept:,} of {chosen.prunable:,} prunable entries ({100 * chosen.sparsity:.2f} % sparse)"
    size = result.bytes_of[chosen.ticket]
    before = None if dense is None else result.bytes_of[dense.ticket]
    if size is None:
        yield "and its bytes could not be counted;"
    elif before is None:
        yield f"in {size:,} bytes of weights;"
    else:
        yield f"in {size:,} bytes of weights, {100 * size / before:.0f} % of the dense model's {before:,};"
    metric = result.experiment.config["valid_metric"].lower()
    usual = chosen if dense is None else dense
    parts = [
        ("validation", chosen.valid.get(metric), usual.valid.get(metric)),
        ("test", chosen.test.get(metric), usual.test.get(metric)),
    ]
    said = [
        f"{name} {metric} {_change(now, then)}" for name, now, then in parts if now is not None and then is not None
    ]
    yield f"{' and '.join(said) or f'{metric} is not defined on this data'}."


def _lesson(result: RunResult) -> Iterator[str]:
    """What the teacher brought: the chosen student beside the student alone, and beside the teacher.

    Without one, whether pruning costs unpopular items their places.
    """
    if not is_taught(result.tickets, result.teacher):
        if result.dense is not None:
            yield from popularity_lesson(result.dense.method, result.chosen.method, "Pruning")
        return
    chosen, metric = result.chosen, result.experiment.config["valid_metric"].lower()
    alone = {} if result.alone is None else {"valid": result.alone.valid, "test": result.alone.test}
    gains = []
    for part, name, now in (("valid", "validation", chosen.valid), ("test", "test", chosen.test)):
        value, before = now.get(metric), alone.get(part, {}).get(metric)
        if value is not None and before is not None:
            gains.append(f"{name} {metric} {_change(value, before)}")
    if gains:
        yield f"Taught instead of alone: {' and '.join(gains)}."
    if result.alone is not None:
        yield from popularity_lesson(result.alone.method, chosen.method)
    if result.teacher is None:
        yield (
            "There was no teacher: the other objectives are gone, and learning with them makes a model neither smaller "
            "nor faster (same size as alone)."
        )
    for label, teacher in teachers_of(result.teacher).items():
        yield f"{'The teacher' if label == 'teacher' else label.capitalize()} has {_has(teacher, metric, chosen)}."


def _has(teacher: Mapping[str, Any], metric: str, chosen: Ticket) -> str:
    """The metrics and the weights of a teacher, beside those of the student."""
    metrics = {name: (teacher["metrics"].get(part) or {}).get(metric) for part, name in _PARTS.items()}
    heights = [f"{name} {metric} {best:.4f}" for name, best in metrics.items() if best is not None]
    size, whole = live_parameters(chosen), teacher["parameters"]
    has = [" and ".join(heights)] if heights else []
    if whole:
        has.append(f"{whole:,} weights, the student {size:,} ({100 * size / whole:.1f} %)")
    return " with ".join(has) or f"ranked lists only; the student has {size:,} weights"


def _change(value: float, dense: float) -> str:
    """A metric and how far it is from the dense model's."""
    if value == dense:
        return f"{value:.4f}"
    percent = f" ({100 * (value - dense) / dense:+.1f} %)" if dense else ""
    return f"{dense:.4f} -> {value:.4f}{percent}"


def _advice(result: RunResult) -> Iterator[str]:
    """What to try where no pruned ticket reaches the dense model's validation score, unless one is tested as good."""
    pruned = [ticket for ticket in result.tickets if ticket.ticket > 0]
    if not pruned or any(ticket.wins_metric or ticket.wins_metric is None for ticket in pruned):
        return
    reached = "No ticket reaches the dense model's validation score"
    tested = [number for number, block in result.as_good.blocks.items() if block["as_good"] == "yes"]
    if tested:
        which = f"ticket {tested[0]} is" if len(tested) == 1 else f"tickets {', '.join(map(str, tested))} are"
        yield f"{reached}, but {which} as good on the test data within {100 * result.as_good.margin:g} %."
        return
    settings = result.experiment.settings
    least = min(ticket.sparsity for ticket in pruned)
    tries = []
    if settings.prune_target_sparsity is not None:
        tries.append(f"less than {100 * least:.0f} % with a lower --prune_target_sparsity")
    elif is_used("prune_rate", settings):
        tries.append(f"smaller steps with --prune_rate={settings.prune_rate / 2:g}")
    if settings.pruner != "imp":
        tries.append("--pruner=imp, which prunes what training has found to be small")
    elif settings.prune_rewind == "init":
        tries.append("--prune_rewind=none, which goes on from the trained weights")
    if settings.pruner != "small_dense":
        tries.append("--pruner=small_dense, a narrower dense model of equal bytes")
    yield f"{reached}. Try {'; or '.join(tries)}."


def _places(result: RunResult) -> Iterator[str]:
    """Where things are, and the command that uses them, each on a line of its own."""
    artifact = from_here(Path(result.artifact))
    yield f"run folder: {from_here(result.experiment.folder.path)}"
    if result.failure is not None:
        return
    yield f"artifact:   {artifact}"
    users = _some_users(result)
    if result.recommends and users:
        yield f"recommend:  recbole-prune recommend {shlex.quote(f'--artifact={artifact}')} --users={','.join(users)}"
    else:
        yield f"load:       recbole_prune.load_ticket({artifact!r})"


def _some_users(result: RunResult) -> list[str]:
    """The first two users whose tokens need no quotes."""
    dataset = result.experiment.workshop.dataset
    if not dataset.uid_field:
        return []
    tokens = map(str, dataset.field2id_token[dataset.uid_field][1:50])
    return [token for token in tokens if token == shlex.quote(token) and "," not in token][:2]
