"""Hashing by quotient and remainder: two small tables whose rows are multiplied, trained from the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_prune.artifact.forms import hashed
from recbole_prune.pruners.table_forms import NUMBER_BYTES, TableForms, split_padding
from recbole_prune.run.ticket import Plan, Ticket

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recbole_prune.masking.scope import Target

    Array = NDArray[Any]


class QuotientRemainder(TableForms):
    """Row i is row p(i) mod c of one table times row p(i) div c of another; p shuffles the rows by the run's seed.

    Shi et al., "Compositional Embeddings Using Complementary Partitions", KDD 2020, arXiv 1909.02107, the product.
    4 d (c + ceil(n / c)) bytes a table with the divider c; no two rows are equal. It knows nothing of the data, so it
    is the floor under every other form. Tables that would not get smaller stay dense.
    """

    form = "hashed"
    promises = replace(TableForms.promises, least_sparsity=0.6)

    def sizes(self) -> Sequence[int]:
        """Dividers, up to the root of the rows of the longest table, beyond which nothing gets smaller."""
        return range(max(isqrt(target.rows) for target in self.tables()), 0, -1)

    def divider(self, target: Target, size: int) -> int | None:
        """The divider of one table; None where it stays dense."""
        divider = max(1, min(size, isqrt(target.rows)))
        return divider if rows_of(target.rows, divider) < target.rows else None

    def bytes_of(self, size: int) -> int:
        """4 d (c + ceil(n / c)) for a hashed table, 4 n d for one that stays dense."""
        total = 0
        for target in self.tables():
            divider = self.divider(target, size)
            rows = target.rows if divider is None else rows_of(target.rows, divider)
            total += NUMBER_BYTES * target.width * rows
        return total

    def plan(self, number: int, keep: int, size: int, dense: Ticket) -> Plan:
        """Two small tables in the place of each, drawn so that their products vary as the initial rows do."""
        seed, initial = self.experiment.config["seed"], self.initial()
        draw = np.random.RandomState(seed)
        forms = {}
        for target in self.tables():
            divider = self.divider(target, size)
            if divider is not None:
                counted, padding = split_padding(initial[target.name], target)
                small = initial_tables(counted, divider, draw)
                forms[target.name] = hashed(*small, len(counted), seed, target.padding_rows, padding)
        return self._trained(number, keep, size, forms)


def rows_of(rows: int, divider: int) -> int:
    """Rows of both small tables together."""
    return divider - (-rows // divider)


def initial_tables(table: Array, divider: int, draw: np.random.RandomState) -> tuple[Array, Array]:
    """Remainder and quotient table, uniform from sqrt(1/n) to 1 as in the paper's code, then made smaller.

    Products of such numbers are far larger than what models start from, so both tables are multiplied by what gives
    the products the standard deviation of the initial table.

    Args:
        table: the initial one, ``[n, d]``.
        divider: c.
        draw: random numbers.

    Returns:
        ``[c, d]`` and ``[ceil(n / c), d]`` in the table's dtype.
    """
    low = (1 / len(table)) ** 0.5
    mean, square = (1 + low) / 2, (1 + low + low * low) / 3
    deviation = (square * square - mean**4) ** 0.5
    factor = (float(table.std()) / deviation) ** 0.5 if deviation else 1.0
    remainder, quotient = (
        (factor * draw.uniform(low, 1, (rows, table.shape[1]))).astype(table.dtype)
        for rows in (divider, -(-len(table) // divider))
    )
    return remainder, quotient
