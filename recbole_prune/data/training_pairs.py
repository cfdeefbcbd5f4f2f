"""Who has what in the training data, whatever its rows look like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recbole_prune.data.used_ids import UsedIds

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset


def training_pairs(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Users and items of all interactions in a training dataset, some more than once.

    The rows of a sequential dataset are histories with a next item: the first item of a user is in histories only.
    """
    rows = dataset.inter_feat
    users, items = (rows[name].numpy() for name in (dataset.uid_field, dataset.iid_field))
    histories = dataset.iid_field + dataset.config["LIST_SUFFIX"]
    if histories not in rows:
        return users, items
    listed = rows[histories].numpy()
    places = np.nonzero(listed)
    return np.concatenate([users, users[places[0]]]), np.concatenate([items, listed[places]])


def consumed_items(dataset: Dataset) -> UsedIds:
    """The items of each user in a training dataset."""
    return UsedIds(*training_pairs(dataset), dataset.user_num, dataset.item_num)


def consumptions(consumed: UsedIds) -> np.ndarray:
    """How many users have each item ``[N]``, by internal id; an item counts once for a user."""
    return np.bincount(consumed.codes % consumed.value_count, minlength=consumed.value_count)
