"""How RecBole's models look up several token fields in one table, and which tables hold no tokens."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def stacked_fields(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Sizes of the token fields that a context-aware model stacks in one table, for each such table."""
    for module in model.modules():
        sizes = getattr(module, "token_field_dims", None)
        for fields in sizes.values() if isinstance(sizes, dict) else [sizes]:
            if fields:
                yield tuple(fields)


def first_rows(parent: nn.Module | None) -> tuple[int, ...] | None:
    """The first row of each field in the table of an ``FMEmbedding``; None for any other module."""
    if type(parent).__name__ != "FMEmbedding":
        return None
    return tuple(int(offset) for offset in parent.offsets)  # type: ignore[union-attr]


def is_no_token_table(name: str) -> bool:
    """Whether the rows of a table stand for places or numbers (positions of a sequence, float fields)."""
    return "position" in name or "float" in name
