"""What RecBole's ``run_recbole`` does to the random streams between making a model and training it."""

from __future__ import annotations

from logging import getLogger
from typing import TYPE_CHECKING

import torch
from recbole.data.transform import construct_transform

from recbole_prune.data.random_streams import random_state, set_random_state
from recbole_prune.scoring.probe import attributes_of, set_attributes

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset
    from recbole.model.abstract_recommender import AbstractRecommender


@torch.no_grad()
def draw_like_flops_counter(model: AbstractRecommender, config: Config, dataset: Dataset) -> None:
    """Move the random streams as RecBole's ``get_flops`` does; the model stays as it is.

    It scores one interaction with a copy of the model, which it then puts back into training mode. Some models draw
    random numbers in that: BERT4Rec masks the interaction, KGIN leaves out edges, SGL makes the graphs of an epoch.
    Where a model cannot do it, ``run_recbole`` ends there, and here the streams stay.

    Args:
        model: a newly built one.
        config: its settings.
        dataset: all of the data, after it was split.
    """
    streams, attributes = random_state(), attributes_of(model)
    try:
        model.eval()
        interaction = dataset[torch.tensor([1])].to(config["device"])
        model.predict(construct_transform(config)(dataset, interaction))
        model.train()
    except Exception:
        getLogger().debug("RecBole cannot count the FLOPs of %s", type(model).__name__, exc_info=True)
        set_random_state(streams)
    finally:
        set_attributes(attributes)
