"""Finds out whether a model's scores are dot products of user and item vectors, by its scores and not by its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from recbole_prune.scoring.probe import Array, Probe, Scores, disagreement

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset


@dataclass(frozen=True)
class DotProduct:
    """The scores are ``scale * user_vectors @ item_vectors.T``.

    Attributes:
        user: name of the user vectors, in the model's ``state_dict`` or among its attributes.
        item: name of the item vectors, likewise.
        scale: constant factor.
        stored: whether the names are those of weights; else they are propagated tables.
    """

    user: str
    item: str
    scale: float
    stored: bool


def to_numpy(tensor: torch.Tensor) -> Array:
    """The tensor in numpy, bit for bit; bfloat16, which numpy lacks, as float32, which holds it exactly."""
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return np.asarray(tensor.detach().cpu().numpy())


def find_dot_product(
    model: nn.Module, probe: Probe, scores: Scores, decoded: Mapping[str, Array], dataset: Dataset
) -> tuple[DotProduct | None, str | None]:
    """The pair of tables whose dot products are the model's scores; or None and why there is none.

    Nothing is known about the model: the stored tables are tried first, then those that it caches while scoring.

    Args:
        model: a RecBole model that has just scored the probe.
        probe: the rows and items that it scored.
        scores: the model's, as :meth:`Probe.scores` gives them.
        decoded: its weights in numpy, by name in ``state_dict``.
        dataset: the RecBole dataset, for its numbers of users and items.

    Returns:
        (the dot product, None), or (None, the reason in a sentence).
    """
    name = type(model).__name__
    if probe.users is None:
        return None, "the data has no users and items, so there is nothing to recommend: use load_ticket()"
    if not probe.ranks_all_items:
        return None, f"{name} scores pairs of a user and an item one by one: use load_ticket()"
    if not scores.any():
        return None, f"{name} scores 0 for every user of the probe, so nothing can be compared: use load_ticket()"
    for stored, tables in ((True, decoded), (False, vars(model))):
        found = match_tables(tables, probe.users, probe.items, scores, dataset.user_num, dataset.item_num)
        if found is not None:
            return DotProduct(*found, stored), None
    return None, f"the scores of {name} are not dot products of a user table and an item table: use load_ticket()"


def match_tables(
    tables: Mapping[str, Any], users: Array, items: Array, scores: Scores, user_count: int, item_count: int
) -> tuple[str, str, float] | None:
    """The two tables whose dot products are the scores of some users and items.

    Args:
        tables: numpy arrays and tensors by name; anything else is passed over.
        users: internal ids ``[rows]``.
        items: internal ids ``[columns]``.
        scores: the model's, ``[rows, columns]``.
        user_count: rows of a user table.
        item_count: least number of rows of an item table.

    Returns:
        (name of the user table, name of the item table, constant factor), or None.
    """
    for user, item in _pairs(tables, user_count, item_count):
        products = _rows(tables[user], users) @ _rows(tables[item], items).T
        scale = _scale(products, scores)
        if scale is not None and not disagreement(scale * products, scores):
            return user, item, scale
    return None


def _pairs(tables: Mapping[str, Any], users: int, items: int) -> Iterator[tuple[str, str]]:
    """Names of possible user and item tables; entity tables, whose first rows are the items, come last."""
    flat = [name for name, table in tables.items() if _is_table(table)]
    candidates = [name for name in flat if len(tables[name]) >= items]
    for item in sorted(candidates, key=lambda name: len(tables[name]) != items):
        for user in flat:
            if user != item and len(tables[user]) == users and tables[user].shape[1] == tables[item].shape[1]:
                yield user, item


def _is_table(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return value.ndim == 2 and value.layout == torch.strided and value.is_floating_point()
    return isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind == "f"


def _rows(table: torch.Tensor | Array, ids: Array) -> Scores:
    if isinstance(table, torch.Tensor):
        return np.asarray(table.detach()[torch.from_numpy(ids).to(table.device)].double().cpu().numpy())
    return np.asarray(table[ids].astype(np.float64))


def _scale(products: Scores, scores: Scores) -> float | None:
    """The constant that fits products to scores best; exactly 1.0 where that explains them."""
    square = float(np.square(products).sum())
    if not square or not np.isfinite(scores).all():
        return None
    scale = float((products * scores).sum()) / square
    return (1.0 if abs(scale - 1.0) < 1e-6 else scale) or None
