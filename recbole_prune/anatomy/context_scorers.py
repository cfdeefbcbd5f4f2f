"""How RecBole's context-aware models score: one entry per class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from recbole_prune.anatomy.scorers import Scorer
from recbole_prune.anatomy.shared_calls import call, watched

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender


@dataclass(frozen=True)
class _Context(Scorer):
    """``forward`` gives logits of rows, ``predict`` adds a sigmoid."""

    no_vectors: str = "reads bundles of fields, so no vector stands for a user or an item alone"
    no_lists: str = "reads bundles of fields, so its rows have no lists of items"
    no_fields: str = ""
    methods: tuple[str, ...] = ("forward", "concat_embed_input_fields")

    def batch_logits(self, model: AbstractRecommender, batch: Interaction) -> torch.Tensor:
        logits: torch.Tensor = call(model, "forward", batch)
        return logits.reshape(len(batch))

    def ranked(self, model: AbstractRecommender, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid()


class _DCNV2(_Context):
    """Here ``forward`` ends in the sigmoid."""

    def batch_logits(self, model: AbstractRecommender, batch: Interaction) -> torch.Tensor:
        with watched(model.predict_layer) as seen:
            model.forward(batch)
        return seen[-1][1].reshape(len(batch))


class _DAGFM(_Context):
    """Here too; the network of the phase keeps its logits."""

    def batch_logits(self, model: AbstractRecommender, batch: Interaction) -> torch.Tensor:
        model.forward(batch)
        network = model.teacher_network if model.phase == "teacher_training" else model.student_network
        logits: torch.Tensor = network.logits
        return logits.reshape(len(batch))


_CONTEXT = "AFM AutoInt DCN DSSM DeepFM EulerNet FM FNN FiGNN FwFM NFM PNN WideDeep xDeepFM".split()

CONTEXT: dict[str, Scorer] = {
    **{name: _Context() for name in _CONTEXT},
    "FFM": _Context(no_fields="keeps a vector of every field for each other field, so a field has none of its own"),
    "LR": _Context(no_fields="scores by weights of fields, without vectors"),
    "DCNV2": _DCNV2(),
    "KD_DAGFM": _DAGFM(),
}
