"""Training batches that draw users uniformly, as the LTH-MRS code does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from recbole.data.dataloader import TrainDataLoader
from torch.utils.data import WeightedRandomSampler

from recbole_prune.errors import ConfigError

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader


def sample_users_uniformly(train_data: AbstractDataLoader, config: Config) -> None:
    """Make an epoch consist of as many draws as there are interactions, each of a uniform user with replacement.

    A user's interaction is then uniform among his own (methods/lottery_ticket.md 3.3), which is the same as drawing
    interactions with weight 1 / (interactions of the user). RecBole visits every interaction once instead.

    Raises:
        ConfigError: the model's dataloader does not go through interactions (autoencoders, knowledge graphs), or the
            data has no users.
    """
    if not isinstance(train_data, TrainDataLoader):
        raise ConfigError(
            f"prune_user_uniform=True: {config['model']} uses RecBole's {type(train_data).__name__}; "
            "only models trained on single interactions can draw users uniformly"
        )
    if not train_data._dataset.uid_field:
        raise ConfigError("prune_user_uniform=True is not allowed: the data has no users (USER_ID_FIELD is empty)")
    users = train_data._dataset.inter_feat[config["USER_ID_FIELD"]]
    weights = 1.0 / torch.bincount(users)[users].double()
    sampler = WeightedRandomSampler(weights.tolist(), len(users), replacement=True, generator=train_data.generator)
    train_data.batch_sampler.sampler = sampler
