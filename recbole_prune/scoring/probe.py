"""Scores of a few users, to tell whether two forms of a model are the same model."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.interaction import Interaction
from recbole.data.transform import construct_transform
from torch import nn

from recbole_prune.anatomy.caches import forget_caches, refresh
from recbole_prune.data.random_streams import preserved_random_streams
from recbole_prune.errors import ArtifactError

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset
    from recbole.model.abstract_recommender import AbstractRecommender

Array = NDArray[Any]
Scores = NDArray[np.float64]
Attributes = list[tuple[nn.Module, dict[str, Any]]]

PROBE_ROWS = 64
# a model that scores only pairs is asked for fewer users and a part of the items
PAIR_ROWS = 16
PAIR_ITEMS = 256
_SCORES_PER_CALL = 1 << 18
_SEED = 2020


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put weights, plain attributes (caches), modes and random streams back as they were."""
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    attributes = attributes_of(model)
    with preserved_random_streams():
        try:
            yield
        finally:
            model.load_state_dict(weights)
            set_attributes(attributes)


def attributes_of(model: nn.Module) -> Attributes:
    """The plain attributes (caches) and modes of all modules, for :func:`set_attributes`; no tensor is copied."""
    return [(module, dict(vars(module))) for module in model.modules()]


def set_attributes(attributes: Attributes) -> None:
    """Put plain attributes and modes back as they were."""
    for module, before in attributes:
        vars(module).clear()
        vars(module).update(before)


def tensors_of(state: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """A ``state_dict`` from decoded weights."""
    return {name: torch.from_numpy(np.array(array)) for name, array in state.items()}


@torch.no_grad()
def load_state(model: nn.Module, state: Mapping[str, Array]) -> None:
    """Load decoded weights, and compute anew what the model derives from them.

    Raises:
        RuntimeError: names or shapes are not the model's.
    """
    model.load_state_dict(tensors_of(state))
    refresh(model)


class Probe:
    """A few rows of a dataset, evenly spread over its users, that models are asked to score.

    Every row is scored with many items; of data without items (clicks described by features alone) as it stands.
    Models are put into eval mode and keep the caches of the last scoring: use it inside :func:`undisturbed`.

    Attributes:
        rows: what is scored, an Interaction.
        items: internal ids of the scored items, shape ``[columns]``; empty where the dataset has no items.
        users: internal ids of the scored users, shape ``[rows]``; None where the dataset has no users.
        ranks_all_items: whether the model scores all items at once.
    """

    def __init__(self, model: AbstractRecommender, config: Config, dataset: Dataset) -> None:
        if not isinstance(dataset.inter_feat, Interaction):
            # not built yet: the rows of sequential models come into being here
            dataset = copy.copy(dataset)
            dataset._change_feat_format()
        with preserved_random_streams():
            _seed()
            rows = dataset[_spread_rows(dataset)]
            self.rows = construct_transform(config)(dataset, rows)
        self._device = config["device"]
        self.items = np.arange(dataset.item_num if dataset.iid_field else 0)
        self.ranks_all_items = self.has_items and _ranks_all_items(model, self.rows[np.array([0])].to(self._device))
        self._pair_items: Interaction | None = None
        if self.has_items and not self.ranks_all_items:
            self.rows = self.rows[np.arange(min(PAIR_ROWS, len(self.rows)))]
            wanted = min(PAIR_ITEMS, dataset.item_num - 1)
            self.items = np.unique(np.linspace(1, dataset.item_num - 1, wanted).astype(np.int64))
            self._pair_items = dataset.get_item_feature()[self.items]
        uid = dataset.uid_field
        self.users = self.rows[uid].numpy() if uid and uid in self.rows else None

    @property
    def has_items(self) -> bool:
        """Whether the dataset has items."""
        return self.items.size > 0

    @property
    def columns(self) -> int:
        """Scores of a row."""
        return self.items.size if self.has_items else 1

    @torch.no_grad()
    def scores(self, model: AbstractRecommender) -> Scores:
        """Score the probe; models that draw random numbers draw the same ones at every call.

        Returns:
            float64, shape ``[rows, columns]``.

        Raises:
            ArtifactError: a score is NaN.
        """
        model.eval()
        forget_caches(model)
        with preserved_random_streams():
            _seed()
            blocks = [self.score(model, block) for block in self.blocks()]
        scores = np.concatenate(blocks)
        broken = int(np.isnan(scores).sum())
        if broken:
            raise ArtifactError(
                f"{type(model).__name__} scores NaN for {broken} of {scores.size} rows of a probe, so an "
                "artifact cannot be compared with it: export another ticket with --export_ticket=N"
            )
        return scores

    def blocks(self) -> Iterator[Interaction]:
        """The rows, few enough at a time for a batch."""
        step = max(1, _SCORES_PER_CALL // self.columns)
        for start in range(0, len(self.rows), step):
            yield self.rows[np.arange(start, min(start + step, len(self.rows)))]

    def score(self, model: AbstractRecommender, rows: Interaction) -> Scores:
        """Scores of some of the rows, shape ``[len(rows), columns]``."""
        if self.ranks_all_items:
            scores = model.full_sort_predict(rows.to(self._device))
        else:
            pairs = rows
            if self._pair_items is not None:
                pairs = rows.repeat_interleave(self.columns)
                pairs.update(self._pair_items.repeat(len(rows)))
            scores = model.predict(pairs.to(self._device))
        return np.asarray(scores.detach().cpu().double().numpy().reshape(len(rows), self.columns))


@torch.no_grad()
def _ranks_all_items(model: AbstractRecommender, row: Interaction) -> bool:
    """Whether the model has a ``full_sort_predict``; RecBole asks it the same way."""
    model.eval()
    with preserved_random_streams():
        try:
            model.full_sort_predict(row)
        except NotImplementedError:
            return False
    return True


def _spread_rows(dataset: Dataset) -> NDArray[np.int64]:
    """Row numbers of the last interaction of evenly spread users, or of evenly spread interactions."""
    candidates = np.arange(len(dataset.inter_feat))
    if dataset.uid_field and dataset.uid_field in dataset.inter_feat:
        users = dataset.inter_feat[dataset.uid_field].numpy()
        candidates = len(users) - 1 - np.unique(users[::-1], return_index=True)[1]
    if not candidates.size:
        raise ArtifactError("the dataset has no interactions, so the artifact cannot be compared with the model")
    return candidates[np.unique(np.linspace(0, candidates.size - 1, PROBE_ROWS).astype(np.int64))]


def _seed() -> None:
    random.seed(_SEED)
    np.random.seed(_SEED)
    torch.manual_seed(_SEED)


def disagreement(found: Scores, expected: Scores, extra: Array | float = 0.0) -> float:
    """How far two forms' scores are apart: largest excess over what float32 arithmetic explains; 0.0 if they agree.

    Args:
        found: scores of the one form, ``[rows, columns]``.
        expected: scores of the other.
        extra: difference that is allowed beside 1e-5 of a row's largest score (rounded vectors), broadcastable.
    """
    with np.errstate(invalid="ignore"):
        distance = np.where(found == expected, 0.0, np.abs(found - expected))
    largest = np.abs(np.where(np.isfinite(expected), expected, 0.0)).max(axis=1, keepdims=True, initial=0.0)
    return float(np.max(np.where(distance <= 1e-5 * largest + extra, 0.0, distance), initial=0.0))


def effect(found: Scores, expected: Scores) -> dict[str, Any]:
    """What rounding did to the probe: ``max_score_difference`` and ``mean_top10_overlap`` (share, 1.0 = same items).

    The latter is None where a row has a single score, so that nothing is ranked.
    """
    with np.errstate(invalid="ignore"):
        distance = np.where(found == expected, 0.0, np.abs(found - expected))
    size = min(10, found.shape[1])
    tops = [np.argsort(-scores, axis=1, kind="stable")[:, :size] for scores in (found, expected)]
    shared = [np.intersect1d(a, b).size / size for a, b in zip(*tops)]
    return {
        "users": int(found.shape[0]),
        "items": int(found.shape[1]),
        "max_score_difference": float(distance.max(initial=0.0)),
        "mean_top10_overlap": float(np.mean(shared)) if found.shape[1] > 1 else None,
    }
