"""What a run would do, said in seconds: targets, schedule, sizes, speed. Nothing is trained or written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole_prune.artifact.export import explain_scoring, weight_bytes
from recbole_prune.config.evaluation import check_selection
from recbole_prune.config.teachers import trained_first
from recbole_prune.disk.names import method_name
from recbole_prune.distillers.teaching import Teaching
from recbole_prune.masking.allocate import entries_per_row, select
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scores import uniform
from recbole_prune.pruners import get_pruner
from recbole_prune.pruners.base import Pruner
from recbole_prune.report.table import format_rows, teacher_name
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.store import RunFolder
from recbole_prune.run.workshop import Workshop
from recbole_prune.signals import on_abort


def describe_plan(config: Any) -> str:
    """The plan of a run as text.

    Raises:
        PruneError: whatever would stop the run before its first training.
    """
    check_selection(config, config.external_config_dict)
    with planned(Workshop(config)) as pruner:
        experiment, counts = pruner.experiment, pruner.counts()
        model = experiment.workshop.build_model()
        scope = experiment.scope
        method = method_name(config.settings.pruner, config.settings.distiller)
        of_tables = pruner.table_bytes()
        sizes = _bytes_with_tables(model, of_tables) if of_tables else _predicted_bytes(experiment, model, counts)
        how = "as fp32, in forms of no fewer bytes than masks" if of_tables else "predicted from random masks"
        rows = [
            [str(number), f"{100 * (1 - kept / scope.prunable):.2f} %", str(kept), f"{size:,}"]
            for number, (kept, size) in enumerate(zip(counts, sizes))
        ]
        return "\n".join(
            [
                f"{method} on {config['model']} / {config['dataset']}",
                *_teaching(experiment.workshop),
                f"targets: {scope.prunable} prunable of {scope.parameters} trainable entries",
                scope.describe(),
                f"schedule (bytes: the weights in the artifact, {how} of these sizes):",
                format_rows(["ticket", "sparsity", "kept", "bytes"], rows),
                *(["first a search for the masks, at most as long as a training"] if pruner.searches else []),
                *([] if pruner.promises.masks else ["the tickets are no masks: these are what they are compared with"]),
                *_equal_rows(pruner, counts),
                *pruner.announced(),
                f"scoring: {explain_scoring(model, config, experiment.workshop.dataset)}",
                "nothing was trained (--dry_run=True)",
            ]
        )


def _teaching(workshop: Workshop) -> Iterator[str]:
    """Who would teach, and what else would be trained for it; a teacher that is there already is opened.

    Raises:
        ConfigError: it cannot teach this student.
    """
    settings = workshop.config.settings
    if not settings.distiller:
        return
    teacher, firsts = Teaching(workshop).teacher, trained_first(settings)
    if teacher is None:
        yield "no teacher: the model learns with other objectives, which are dropped afterwards"
    for first in firsts:
        given = ", ".join(f"{name}={value}" for name, value in first.settings.items())
        named = f"{first.model} with {given}" if given else first.model
        yield f"teacher: {named}, trained first unless its run is there already"
    for identity in () if firsts or teacher is None else [member.identity for member in teacher.members]:
        size = "" if identity["parameters"] is None else f", {identity['parameters']:,} weights"
        yield f"teacher: {teacher_name(identity)}{size}"
    if settings.distill_alone:
        yield "the student is also trained alone, dense, to compare with (--distill_alone=False leaves that out)"


@contextmanager
def planned(workshop: Workshop) -> Iterator[Pruner]:
    """The pruner of a run that begins anew, in a folder that goes away again.

    Raises:
        PruneError: whatever would stop the run before its first training.
    """
    scratch = tempfile.TemporaryDirectory(prefix="recbole-prune-plan-")
    with on_abort(scratch.cleanup), scratch as folder:
        pruner = get_pruner(workshop.config.settings.pruner)(Experiment(workshop, RunFolder(Path(folder))))
        pruner.check()
        yield pruner


def _equal_rows(pruner: Pruner, counts: list[int]) -> Iterator[str]:
    """How many entries every row keeps, where all keep equally many."""
    if pruner.has_equal_rows:
        each = ", ".join(str(entries_per_row(pruner.scope, count)) for count in counts)
        yield f"every row keeps equally many entries (prune_allocation=row), from ticket 0 on: {each}"


def _predicted_bytes(experiment: Experiment, model: Any, counts: list[int]) -> Iterator[int]:
    """Bytes of all weights in the artifact for each count: targets under a random mask, everything else dense."""
    order = uniform(experiment.scope, experiment.config["seed"])
    masks = MaskSet.dense(experiment.scope)
    for kept in counts:
        masks = select(order, masks, kept, allocation=experiment.settings.prune_allocation)
        yield weight_bytes(model, dict(masks), experiment.settings.export_values)


def _bytes_with_tables(model: Any, of_tables: list[int]) -> Iterator[int]:
    """Bytes of all weights in the artifact, of which the targets take so many; the first of them is dense."""
    others = weight_bytes(model, {}, "fp32") - of_tables[0]
    for size in of_tables:
        yield others + size
