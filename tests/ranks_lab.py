"""Runs a list of settings one after the other, in every process that this module is started in, and notes what came.

Started by ``tests/test_ranks.py`` with the variables of torchrun; or by hand: ``torchrun --nproc_per_node=2``.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from recbole_prune import run_recbole_prune
from recbole_prune.errors import PruneError
from recbole_prune.ranks import group
from recbole_prune.ranks.gradients import GradientSums
from recbole_prune.sparse.entries import nonzero_entries
from recbole_prune.training.trainer import MaskAwareTrainer

_epochs: list[dict[str, Any]] = []
_waited: list[int] = []


def _digest(tensors: list[torch.Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _watch() -> None:
    """Note weights, masks and random streams of this process after every epoch, and how many tables' rows waited."""
    train, lazy_tables = MaskAwareTrainer._train_epoch, MaskAwareTrainer._lazy_tables

    def counted(self: MaskAwareTrainer) -> list[Any]:
        found = lazy_tables(self)
        _waited.append(len(found))
        return found

    MaskAwareTrainer._lazy_tables = counted

    def noted(self: MaskAwareTrainer, *args: Any, **kwargs: Any) -> Any:
        losses = train(self, *args, **kwargs)
        moments = [
            value
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor) and value.dtype.is_floating_point
        ]
        masks = self.model.masks
        _epochs.append(
            {
                "losses": losses,
                "waited": _waited.pop(),
                "weights": _digest(list(self.model.parameters())),
                "moments": _digest([moment + 0.0 for moment in moments]),
                "masks": None if masks is None else hashlib.sha256(masks.to_bytes()).hexdigest(),
            }
        )
        return losses

    MaskAwareTrainer._train_epoch = noted


def sums_are_right() -> bool:
    """Whether sums of gradients are those of dense ones, the same in every process; five batches of changing sizes."""
    shapes = [(400, 60), (50_000,), (30, 7), (3,), (700, 40)]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    sums = GradientSums(parameters, [parameters[number] for number in (0, 1, 2, 4)], nonzero_entries)
    for batch, density in enumerate((0.01, 0.2, 0.001, 0.9, 0.05)):
        made: list[list[torch.Tensor | None]] = []
        for process in range(group.count()):
            generator = torch.Generator().manual_seed(100 * batch + process)
            of_process: list[torch.Tensor | None] = [
                torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)
                for shape in shapes
            ]
            of_process[4] = None  # nowhere
            of_process[batch % 4] = None if process == batch % 2 else of_process[batch % 4]
            made.append(of_process)
        for parameter, gradient in zip(parameters, made[group.rank()]):
            parameter.grad = None if gradient is None else gradient.clone()
        finite = sums.add_up(is_finite=(batch, group.rank()) != (2, 1))
        if density == 0.9 and len(sums._exchange._own) > 60_000:  # so dense a gradient is not sent as entries
            return False
        if finite == (batch == 2) or parameters[4].grad is not None:
            return False
        for parameter, *gradients in zip(parameters[:4], *made):
            expected = sum(gradient for gradient in gradients if gradient is not None)
            if parameter.grad is None or not torch.equal(parameter.grad, expected):
                return False
    return True


class ReadByRows:
    """A table whose rows are read, as a loss would, in a batch of which every process knows what all have."""

    is_open = True

    def __init__(self, rows: int, width: int) -> None:
        self.parameter = torch.nn.Parameter(torch.zeros(rows, width))
        self.caught_up: list[int] = []
        self._ids, self._rows = torch.zeros(0, dtype=torch.int64), torch.zeros(0, width)

    def set(self, ids: torch.Tensor, rows: torch.Tensor, kind: str) -> None:
        """Rows that are read, with a gradient of rows, of all, or none."""
        self.caught_up.clear()
        gradient = torch.sparse_coo_tensor(ids[None], rows, self.parameter.shape)
        self.parameter.grad = {"rows": gradient, "whole": gradient.to_dense(), "none": None}[kind]
        self._ids, self._rows = ids, rows if kind == "rows" else torch.zeros_like(rows)

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._ids, self._rows

    def catch_up(self, ids: torch.Tensor) -> None:
        self.caught_up += ids.tolist()


def sums_of_rows_are_right() -> bool:
    """Whether gradients of rows are added up where every process has such, and whole ones where one has all of it."""
    table, other = ReadByRows(300, 70), torch.nn.Parameter(torch.zeros(5))
    sums = GradientSums([table.parameter, other], [table.parameter], nonzero_entries)
    sums.read_by_rows([table])
    kinds = ["rows", "whole", "none"]
    for batch, of_processes in enumerate([(first, second) for first in kinds for second in kinds]):
        generator, made = torch.Generator().manual_seed(batch), []
        for kind in of_processes:
            ids = torch.randint(300, (3 + batch,), generator=generator)
            made.append((ids, torch.randn(len(ids), 70, generator=generator), kind))
        table.set(*made[group.rank()])
        other.grad = torch.ones(5)
        sums.add_up(is_finite=True)
        expected = torch.zeros(300, 70)
        for ids, rows, kind in made:
            if kind != "none":
                expected += torch.zeros(300, 70).index_add_(0, ids, rows)
        found, read = table.parameter.grad, torch.cat([ids for ids, *_ in made]).tolist()
        if not torch.equal(other.grad, torch.full((5,), 2.0)):
            return False
        if table.caught_up != ([] if "whole" in of_processes else read):
            return False
        if found is None or set(of_processes) == {"none"}:
            if found is not None or set(of_processes) != {"none"}:
                return False
        elif found.is_sparse == ("whole" in of_processes) or not torch.allclose(found.to_dense(), expected, atol=1e-6):
            return False
    return True


def main(cases: list[dict[str, Any]], out: Path) -> None:
    """Run every case; the notes are a JSON file for each process."""
    _watch()
    notes = []
    for case in cases:
        _epochs.clear()
        settings = dict(case)
        torch.set_num_threads(settings.pop("threads", [1, 1])[group.rank()])
        try:
            found = run_recbole_prune(settings.pop("model"), settings.pop("dataset"), config_dict=settings)
            tickets = [
                {name: ticket[name] for name in ("sparsity", "kept", "valid", "test", "best_epoch", "mask_sha256")}
                for ticket in found["tickets"]
            ]
            notes.append({"tickets": tickets, "folder": found["folder"], "epochs": list(_epochs)})
        except PruneError as error:
            notes.append({"error": str(error), "epochs": list(_epochs)})
    if group.count() > 1:
        on_one_machine = group.have_wires(), sums_are_right(), sums_of_rows_are_right()
        group._wires = None
        notes.append({"one machine": on_one_machine, "several": [sums_are_right(), sums_of_rows_are_right()]})
    out.with_suffix(f".{group.rank()}.json").write_text(json.dumps(notes))


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    del sys.argv[1:]
    main(given, Path(os.environ["RANKS_LAB_OUT"]))
