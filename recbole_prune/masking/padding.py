"""Rows that stand for RecBole's [PAD] token: never pruned, never counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from recbole_prune.anatomy.padding import first_rows, is_no_token_table, stacked_fields

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset


@dataclass
class PaddingRule:
    """Tells which rows of an embedding table belong to RecBole's [PAD] token.

    Attributes:
        field_sizes: number of ids, padding included, of every token field of the dataset.
        stacked_fields: lists of field sizes that a model stacks in one table (context-aware models).
    """

    field_sizes: frozenset[int] = frozenset()
    stacked_fields: tuple[tuple[int, ...], ...] = ()

    def rows(self, name: str, module: nn.Module, parent: nn.Module | None) -> tuple[int, ...]:
        """Padding rows of the table ``module``, found by its padding_idx, its stacked fields or its size."""
        if not isinstance(module, nn.Embedding):
            return ()
        if module.padding_idx is not None:
            return (module.padding_idx,)
        if is_no_token_table(name):
            return ()
        offsets = first_rows(parent)
        if offsets is not None:
            return offsets
        size = module.num_embeddings
        for fields in self.stacked_fields:
            if sum(fields) == size:
                return tuple(sum(fields[:i]) for i in range(len(fields)))
        # n + 1: tables with one more row at the end, for a mask token or the user-item relation
        return (0,) if size in self.field_sizes or size - 1 in self.field_sizes else ()


def padding_rule(model: nn.Module, dataset: Dataset) -> PaddingRule:
    """RecBole's [PAD] rows: row 0 of every table that is looked up by a token field.

    Args:
        model: a RecBole model.
        dataset: the RecBole dataset whose fields the tables stand for.
    """
    token_fields = [field for field, ids in dataset.field2id_token.items() if ids is not None and len(ids)]
    sizes = {dataset.num(field) for field in token_fields}
    return PaddingRule(frozenset(sizes), tuple(sorted(set(stacked_fields(model)))))
