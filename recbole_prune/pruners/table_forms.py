"""What pruners share whose tickets hold embedding tables in a small form instead of a mask."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from recbole_prune.errors import ConfigError
from recbole_prune.masking.bound import information_bound_bits
from recbole_prune.pruners.base import Promises, Pruner
from recbole_prune.run.ticket import Plan, Ticket
from recbole_prune.scoring.dot_product import to_numpy
from recbole_prune.training.computed_tables import FixedForms, StartCounts, TrainedForms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recbole_prune.artifact.forms import TableForm
    from recbole_prune.masking.scope import Target
    from recbole_prune.run.experiment import Weights

NUMBER_BYTES = 4  # float32, as RecBole trains


class TableForms(Pruner):
    """A method whose tickets are smaller forms of the embedding tables in scope.

    The forms of a family differ in one number, its size (a rank, codes in a row, a divider). A ticket of sparsity s is
    charged what a mask of that sparsity takes at least, N*D*(H2(s) + 32*(1-s)) bits, and gets the smallest form of no
    fewer bytes, so what it is compared with is never larger. Points of the schedule at which the largest form is still
    smaller than that, at which no form is smaller than the dense tables, or whose form the ticket before has already,
    have no ticket.

    Padding rows are stored exactly and cost their own bytes, which do not count in the choice. All other tensors stay
    as they are.

    Attributes:
        form: what the journal calls the form.
    """

    form: ClassVar[str]
    promises = Promises(
        masks=False, exact=False, nested=False, refuses=("has no embedding table", "no ticket at any of these")
    )

    @abstractmethod
    def sizes(self) -> Sequence[int]:
        """Every size of the family, from fewest to most bytes; of equal ones the preferred first."""

    @abstractmethod
    def bytes_of(self, size: int) -> int:
        """Bytes of all tables at a size, padding rows left out."""

    @abstractmethod
    def plan(self, number: int, keep: int, size: int, dense: Ticket) -> Plan:
        """The ticket of one size."""

    def tables(self) -> list[Target]:
        """The embedding tables in scope."""
        return [target for target in self.scope if target.kind == "embedding"]

    def budget(self, keep: int) -> float:
        """Bytes that a mask of ``keep`` live entries and its values take at least."""
        return information_bound_bits(self.scope.prunable, keep, 8 * NUMBER_BYTES) / 8

    def size_for(self, keep: int) -> int | None:
        """The smallest form of at least the bytes of a mask; None where the largest has fewer."""
        budget = self.budget(keep)
        return next((size for size in self.sizes() if self.bytes_of(size) >= budget), None)

    def live_entries(self, size: int) -> int:
        """Entries of a dense table of the bytes of a size."""
        return min(self.scope.prunable, ceil(self.bytes_of(size) / NUMBER_BYTES))

    def points(self) -> list[tuple[int, int]]:
        """For every ticket the entries that a mask in its place keeps, and the size of the form."""
        return self._points()[0]

    def _points(self) -> tuple[list[tuple[int, int]], list[str]]:
        """:meth:`points`, and why the other points of the schedule have no ticket."""
        found: list[tuple[int, int]] = []
        left_out: list[str] = []
        last = self.scope.prunable
        for keep in super().counts()[1:]:
            size = self.size_for(keep)
            at = f"at sparsity {1 - keep / self.scope.prunable:.4f} ({self.budget(keep):,.0f} bytes)"
            if size is None:
                largest = self.bytes_of(self.sizes()[-1])
                left_out.append(f"{at} the largest form of {self.settings.pruner} has only {largest:,} bytes")
            elif self.live_entries(size) >= self.scope.prunable:
                left_out.append(f"{at} no form of {self.settings.pruner} is smaller than the dense tables")
            elif self.live_entries(size) >= last:
                left_out.append(f"{at} the form is that of the ticket before")
            else:
                found.append((keep, size))
                last = self.live_entries(size)
        return found, left_out

    def counts(self) -> list[int]:
        """Live entries of a mask in the place of each ticket, ticket 0 first."""
        return [self.scope.prunable, *(keep for keep, _ in self.points())]

    def stored_bytes(self, size: int) -> int:
        """:meth:`bytes_of` with the padding rows."""
        padding = sum(NUMBER_BYTES * len(target.padding_rows) * target.width for target in self.tables())
        return self.bytes_of(size) + padding

    def table_bytes(self) -> list[int]:
        """Bytes of the tables of each ticket."""
        dense = sum(NUMBER_BYTES * target.shape[0] * target.width for target in self.scope)
        return [dense, *(self.stored_bytes(size) for _, size in self.points())]

    def check(self) -> None:
        """The model needs embedding tables, and the schedule a point that the family reaches."""
        if not self.tables():
            raise ConfigError(
                f"pruner={self.settings.pruner}: {self.experiment.config['model']} has no embedding table in scope"
            )
        found, left_out = self._points()
        if not found:
            if len(left_out) > 3:
                left_out = [left_out[0], f"and at {len(left_out) - 2} more", left_out[-1]]
            raise ConfigError(
                f"pruner={self.settings.pruner}: there is no ticket at any of these sparsities: {'; '.join(left_out)}; "
                "change prune_target_sparsity, prune_rate or prune_rounds"
            )

    def tickets(self) -> Iterator[Ticket]:
        """Ticket 0, then a ticket for every point that the family reaches."""
        dense = self.experiment.dense()
        yield dense
        found, left_out = self._points()
        for reason in left_out:
            self.experiment.logger.warning(f"no ticket: {reason}")
        for number, (keep, size) in enumerate(found, 1):
            if number not in self.experiment.tickets:
                self.experiment.logger.info(self._about(number, keep, size))
            yield self.experiment.obtain(number, partial(self.plan, number, keep, size, dense))

    def announced(self) -> list[str]:
        """The form of every ticket, and why other points of the schedule have none."""
        found, left_out = self._points()
        forms = [self._about(number, keep, size) for number, (keep, size) in enumerate(found, 1)]
        return [*forms, *(f"no ticket: {reason}" for reason in left_out)]

    def _about(self, number: int, keep: int, size: int) -> str:
        return (
            f"ticket {number}: form {self.form} of size {size}, {self.bytes_of(size):,} bytes, where a mask of "
            f"{keep:,} entries takes at least {self.budget(keep):,.0f}"
        )

    # ---- plans -------------------------------------------------------------------------------------------------------

    def _method(self, keep: int, size: int, forms: Mapping[str, TableForm]) -> dict[str, Any]:
        """Fields of the journal line."""
        whole = sum(NUMBER_BYTES * t.shape[0] * t.width for t in self.tables() if t.name not in forms)
        stored = whole + sum(form.nbytes for form in forms.values())
        return {"form": self.form, "size": size, "bytes": stored, "equal_to_kept": keep}

    def _untrained(
        self, number: int, keep: int, size: int, weights: Weights, forms: Mapping[str, TableForm], **method: object
    ) -> Plan:
        """Forms of trained tables: evaluated as they are, or with ``prune_form_tune`` trained on from there."""
        fields = {**self._method(keep, size, forms), **method}
        plan = Plan(number, None, rewind="none", kept=self.live_entries(size), method=fields)
        if self.settings.prune_form_tune:
            parts = (TrainedForms(forms, weights), StartCounts(self.experiment.workshop.select_data))
            return replace(plan, parts=parts)
        return replace(plan, parts=(FixedForms(forms),), weights=self._decoded_into(weights, forms), train=False)

    def _decoded_into(self, weights: Weights, forms: Mapping[str, TableForm]) -> Weights:
        """A state dict with the tables of forms in the place of its own, under all their names."""
        state = dict(weights)
        for name, form in forms.items():
            table = torch.from_numpy(form.decode())
            state.update(dict.fromkeys((name, *self.scope[name].tied_to), table))
        return state

    def _trained(self, number: int, keep: int, size: int, forms: Mapping[str, TableForm], **method: object) -> Plan:
        """Forms that are trained with the rest of the model from its initial weights."""
        fields = {**self._method(keep, size, forms), **method}
        return Plan(number, None, kept=self.live_entries(size), parts=(TrainedForms(forms),), method=fields)

    def initial(self) -> dict[str, NDArray[Any]]:
        """The tables as the model is built."""
        model = self.experiment.workshop.build_model()
        return {target.name: to_numpy(model.state_dict()[target.name]) for target in self.tables()}


def split_padding(table: NDArray[Any], target: Target) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows of a table that count, and its padding rows."""
    counted = target.countable().numpy()
    return table[counted], table[np.flatnonzero(~counted)]
