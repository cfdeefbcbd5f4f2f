"""What a run would do, said in seconds: targets, schedule, sizes, speed. Nothing is trained or written."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from recbole_prune.encoding import information_bound_bits
from recbole_prune.experiment import Experiment
from recbole_prune.export import explain_scoring
from recbole_prune.pruners import get_pruner
from recbole_prune.report.table import format_rows
from recbole_prune.store import RunFolder

_VALUE_BITS = {"fp32": 32, "fp16": 16, "int8": 8}


def describe_plan(config: Any) -> str:
    """The plan of a run as text.

    Raises:
        PruneError: whatever would stop the run before its first training.
    """
    with tempfile.TemporaryDirectory() as scratch:
        experiment = Experiment(config, RunFolder(Path(scratch)))
        pruner = get_pruner(config.settings.pruner)(experiment)
        pruner.check()
        counts = pruner.counts()
        model = experiment.build_model()
        scope = experiment.scope
        others = scope.parameters - scope.prunable
        bits = _VALUE_BITS[config.settings.export_values]
        rows = []
        for number, kept in enumerate(counts):
            table = information_bound_bits(scope.prunable, kept, bits) / 8
            rows.append(
                [str(number), f"{100 * (1 - kept / scope.prunable):.2f} %", str(kept), f"{int(table + 4 * others):,}"]
            )
        return "\n".join(
            [
                f"{config.settings.pruner} on {config['model']} / {config['dataset']}",
                f"targets: {scope.prunable} prunable of {scope.parameters} trainable entries",
                scope.describe(),
                "schedule (bytes: what the information in values and positions takes at least, everything else dense):",
                format_rows(["ticket", "sparsity", "kept", "artifact bytes"], rows),
                f"scoring: {explain_scoring(model, config, experiment.dataset)}",
                "a target that receives no gradient in the dense training is left out when ticket 0 is done",
                "nothing was trained (--dry_run=True)",
            ]
        )
