"""Pairs of an item that a user has and of one that it has not, from a training batch of any kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from recbole_prune.data.used_ids import UsedIds
from recbole_prune.teachers.pupils import some_keys

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction

    from recbole_prune.teachers.pupils import Pupils

Pairs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def pairs_of(pupils: Pupils, batch: Interaction, stream: np.random.Generator) -> Pairs:
    """Users, items that they have, and items that they have not, ``[m]`` each.

    A batch of pairs has all three. Beside rows with labels (the positive ones) and rows that are whole users (all that
    they have) the third are drawn, uniformly; users who have every item are left out.

    Args:
        pupils: the data.
        batch: of users that are ids.
        stream: random numbers.
    """
    users = batch[pupils.user_field]
    if pupils.negative_field in batch:
        return users, batch[pupils.item_field], batch[pupils.negative_field]
    if pupils.item_field in batch:
        label = pupils.dataset.config["LABEL_FIELD"]
        liked = batch[label] > 0 if label in batch else torch.ones_like(users, dtype=torch.bool)
        owners, items = users[liked].cpu().numpy(), batch[pupils.item_field][liked].cpu().numpy()
    else:
        ids = users.cpu().numpy()
        rows, items = divmod(some_keys(pupils.consumed, ids).codes, pupils.item_count)
        owners = ids[rows]
    kept = np.diff(pupils.consumed.offsets)[owners] < pupils.item_count - 1
    owners, items = owners[kept], items[kept]
    drawn = draw_others(pupils.consumed, owners, stream)
    first, second, third = (torch.from_numpy(part).to(users.device) for part in (owners, items, drawn))
    return first, second, third


def draw_others(used: UsedIds, keys: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """A value for each key ``[m]`` that it has not used, uniformly; 0 is padding and no value.

    Every key must have one left.
    """
    drawn = np.empty(len(keys), dtype=np.int64)
    pending = np.arange(len(keys))
    while len(pending):
        drawn[pending] = stream.integers(1, used.value_count, len(pending))
        pending = pending[used.contains(keys[pending], drawn[pending])]
    return drawn
