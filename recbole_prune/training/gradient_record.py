"""Dense gradients of a few batches, pruned entries included, for methods that grow by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from recbole_prune.ranks import group
from recbole_prune.training import codec


class Record(NamedTuple):
    """Gradients of some rows of a tensor.

    Attributes:
        rows: row numbers, int64, each once; None stands for all rows.
        values: shape ``[rows, width]``.
    """

    rows: torch.Tensor | None
    values: torch.Tensor


class GradientRecorder:
    """Adds up absolute gradients, batch by batch.

    A looked up table is recorded by its touched rows only, so that recording takes no memory of the size of the table.
    A batch whose gradient is not finite (a loss scaler will skip its step) is left out.
    """

    def __init__(self) -> None:
        self._batch: dict[str, list[Record]] = {}
        self._total: dict[str, Record] = {}

    def of(self, name: str) -> Callable[[torch.Tensor | None, torch.Tensor], None]:
        """What a tensor's backward calls with row numbers (None: all rows) and gradients."""

        def add(rows: torch.Tensor | None, gradient: torch.Tensor) -> None:
            values = gradient.detach().reshape(len(gradient), -1)
            self._batch.setdefault(name, []).append(Record(rows, values))

        return add

    def end_batch(self) -> None:
        """Take the batch in: gradients of an entry are summed, then their absolute value is added to what there is."""
        for name, records in _of_all_processes(self._batch).items():
            batch = _sum(records)
            if bool(torch.isfinite(batch.values).all()):
                batch = Record(batch.rows, batch.values.abs())
                self._total[name] = _sum([self._total[name], batch]) if name in self._total else batch
        self._batch = {}

    def drop_batch(self) -> None:
        """Leave the batch out."""
        self._batch = {}

    def take(self, name: str) -> Record | None:
        """The sum for a tensor, which is forgotten; None if it received no gradient."""
        return self._total.pop(name, None)

    def state(self) -> dict[str, dict[str, torch.Tensor | None]]:
        """What has been recorded, for a resume point between two batches."""
        return {name: record._asdict() for name, record in self._total.items()}

    def restore(self, state: dict[str, dict[str, torch.Tensor | None]], device: torch.device) -> None:
        """Undo :meth:`state`."""
        self._total = {
            name: Record(*(part if part is None else part.to(device) for part in record.values()))  # type: ignore[arg-type]
            for name, record in state.items()
        }


def _of_all_processes(batch: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """The records of the parts of a batch that the processes of a run have, in the order of the processes."""
    if not group.are_several():
        return batch
    own = {name: _sum(records)._asdict() for name, records in batch.items()}
    device = next((records[0].values.device for records in batch.values()), torch.device("cpu"))
    found: dict[str, list[Record]] = {}
    for data in group.gather(codec.encode(own)):
        for name, record in codec.decode(data).items():
            rows = None if record["rows"] is None else record["rows"].to(device)
            found.setdefault(name, []).append(Record(rows, record["values"].to(device)))
    return found


def _sum(records: list[Record]) -> Record:
    """The records of one tensor as one, every row once."""
    if len(records) == 1 and records[0].rows is None:
        return records[0]
    whole = next((record.values.clone() for record in records if record.rows is None), None)
    looked_up = [record for record in records if record.rows is not None]
    if whole is not None:
        for record in looked_up:
            whole.index_add_(0, record.rows, record.values)  # type: ignore[arg-type]
        for record in [record for record in records if record.rows is None][1:]:
            whole += record.values
        return Record(None, whole)
    rows, place = torch.unique(torch.cat([r.rows for r in looked_up if r.rows is not None]), return_inverse=True)
    values = torch.cat([record.values for record in looked_up])
    return Record(rows, values.new_zeros(len(rows), values.shape[1]).index_add_(0, place, values))
