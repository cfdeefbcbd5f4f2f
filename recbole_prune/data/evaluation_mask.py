"""Which items an evaluation does not rank: RecBole's, or the training items only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader

from recbole_prune.data.used_ids import UsedIds
from recbole_prune.errors import ConfigError

if TYPE_CHECKING:
    from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader


def mask_training_items_only(loader: AbstractDataLoader, training: UsedIds) -> None:
    """Let users of an evaluation be ranked among all items but those that they have in training.

    RecBole leaves out the items of all earlier parts of the split, so a test does not rank those of the validation.

    Args:
        loader: of the validation or the test, before its first evaluation.
        training: the items of each user in training.

    Raises:
        ConfigError: it does not rank all items of a user.
    """
    if not isinstance(loader, FullSortEvalDataLoader) or loader.is_sequential:
        raise ConfigError(
            "prune_eval_mask=train is not allowed: it is for general models that are evaluated on all items "
            "(eval_args: mode: full)"
        )
    for user in loader.uid_list.tolist():
        positives = loader.uid2positive_item[user].numpy()
        kept = np.setdiff1d(training.values_of(user), positives, assume_unique=True)
        loader.uid2history_item[user] = torch.from_numpy(kept.astype(np.int64))
