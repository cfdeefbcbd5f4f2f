"""RecBole's negative samplers over arrays: the same draws from the same random stream, without Python sets.

RecBole keeps one Python set per user and phase and asks each drawn item ``item in set`` in a Python loop. Here the used
pairs of a phase are one sorted array of codes, and a batch is asked at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Callable

import numpy as np
import recbole.data.utils as data_utils
import torch
from numpy.typing import ArrayLike
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.sampler import KGSampler, RepeatableSampler, Sampler

from recbole_prune.data.full_sort import ArrayFullSortEvalDataLoader
from recbole_prune.data.used_ids import UsedIds
from recbole_prune.errors import ConfigError

if TYPE_CHECKING:  # whichever of RecBole's samplers the arrays are mixed into
    from recbole.sampler.sampler import AbstractSampler
else:
    AbstractSampler = object


class RefusedData(ConfigError, ValueError):
    """Data that RecBole's samplers refuse; its own exception is a ValueError."""


class _ArraySampling(AbstractSampler):
    """What replaces Python loops in ``AbstractSampler``; the draws are RecBole's, in number, order and size."""

    used_ids: UsedIds

    def _build_alias_table(self) -> None:
        """RecBole's alias table, operation by operation (in lists, where RecBole has dicts keyed by id)."""
        candidates = np.asarray(self._get_candidates_list())
        keys, first, counts = np.unique(candidates, return_index=True, return_counts=True)
        order = np.argsort(first)  # RecBole's keys stand in the order of their first appearance
        powers = [pow(count / len(candidates), self.alpha) for count in counts[order].tolist()]
        total = sum(powers)
        prob = [power / total * len(powers) for power in powers]
        alias = [-1] * len(prob)
        large = deque(i for i, p in enumerate(prob) if p > 1)
        small = deque(i for i, p in enumerate(prob) if p < 1)
        while large and small:
            giver, taker = large.popleft(), small.popleft()
            alias[taker] = giver
            prob[giver] = prob[giver] - (1 - prob[taker])
            if prob[giver] < 1:
                small.append(giver)
            elif prob[giver] > 1:
                large.append(giver)
        keys = keys[order].astype(np.int64)
        self._set_alias_table(keys, np.array(prob), np.where(np.array(alias) < 0, -1, keys[alias]))

    def _set_alias_table(self, keys: np.ndarray, prob: np.ndarray, alias: np.ndarray) -> None:
        self._alias_keys, self._alias_prob, self._alias = keys, prob, alias

    def _pop_sampling(self, sample_num: int) -> np.ndarray:
        places = np.random.randint(0, len(self._alias_keys), sample_num)
        chances = np.random.random(sample_num)
        return np.where(self._alias_prob[places] > chances, self._alias_keys[places], self._alias[places])

    def sample_by_key_ids(self, key_ids: ArrayLike, num: int) -> torch.Tensor:
        """``num`` unused values for every key, in RecBole's order: shape ``(num * keys,)``.

        Raises:
            IndexError: a key is out of range (RecBole turns it into a ValueError that names the key).
        """
        keys = np.tile(np.asarray(key_ids, dtype=np.int64), num)
        return self._draw_unused(len(keys), lambda places, drawn: self.used_ids.contains(keys[places], drawn))

    def _draw_unused(self, count: int, is_used: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> torch.Tensor:
        values = np.empty(count, dtype=np.int64)
        pending = np.arange(count)
        while len(pending):
            drawn = self.sampling(len(pending))
            values[pending] = drawn
            pending = pending[is_used(pending, drawn)]
        return torch.from_numpy(values)


class ArraySampler(_ArraySampling, Sampler):
    """RecBole's ``Sampler``; each phase has used what it and the phases before it contain."""

    def get_used_ids(self) -> dict[str, UsedIds]:
        """What users have used up to each phase, by its name.

        Raises:
            RefusedData: a user has used every item (as in RecBole).
        """
        used: dict[str, UsedIds] = {}
        keys = values = np.empty(0, dtype=np.int64)
        for phase, dataset in zip(self.phases, self.datasets):
            keys = np.concatenate([keys, dataset.inter_feat[self.uid_field].numpy()])
            values = np.concatenate([values, dataset.inter_feat[self.iid_field].numpy()])
            used[phase] = UsedIds(keys, values, self.user_num, self.item_num)
        if (np.diff(used[self.phases[-1]].offsets) + 1 == self.item_num).any():
            raise RefusedData(
                "Some users have interacted with all items, "
                "which we can not sample negative items for them. "
                "Please set `user_inter_num_interval` to filter those users."
            )
        return used


class ArrayKGSampler(_ArraySampling, KGSampler):
    """RecBole's ``KGSampler``; a head entity has used its tails."""

    def get_used_ids(self) -> UsedIds:
        """The tails of every head.

        Raises:
            RefusedData: a head has every entity as its tail (as in RecBole).
        """
        used = UsedIds(np.asarray(self.hid_list), np.asarray(self.tid_list), self.entity_num, self.entity_num)
        if (np.diff(used.offsets) + 1 == self.entity_num).any():
            raise RefusedData(
                "Some head entities have relation with all entities, "
                "which we can not sample negative entities for them."
            )
        return used


class ArrayRepeatableSampler(_ArraySampling, RepeatableSampler):
    """RecBole's ``RepeatableSampler``; a row has used its own positive item only."""

    def get_used_ids(self) -> UsedIds:
        """Nothing: what a row has used is known when it is drawn for."""
        nothing = np.empty(0, dtype=np.int64)
        return UsedIds(nothing, nothing, self.user_num, self.item_num)

    def sample_by_user_ids(self, user_ids: ArrayLike, item_ids: ArrayLike, num: int) -> torch.Tensor:
        """``num`` items other than a row's own item for every row, in RecBole's order: shape ``(num * rows,)``.

        Args:
            user_ids: not looked at.
            item_ids: each row's own item.
        """
        positives = np.tile(np.asarray(item_ids), num)
        return self._draw_unused(len(positives), lambda places, drawn: drawn == positives[places])


_ARRAY_CLASSES: dict[type, type] = {
    Sampler: ArraySampler,
    KGSampler: ArrayKGSampler,
    RepeatableSampler: ArrayRepeatableSampler,
}


@contextmanager
def samplers_over_arrays() -> Iterator[None]:
    """Let ``data_preparation`` build samplers, and evaluations with them, over arrays: no set is made for a user."""
    classes = {**_ARRAY_CLASSES, FullSortEvalDataLoader: ArrayFullSortEvalDataLoader}
    for plain, array in classes.items():
        setattr(data_utils, plain.__name__, array)
    try:
        yield
    finally:
        for plain in classes:
            setattr(data_utils, plain.__name__, plain)


def convert_sampler(sampler: AbstractSampler) -> bool:
    """Turn a sampler that RecBole built (for one phase) into one over arrays, in place.

    Returns:
        Whether it is one over arrays now; a sampler of a class that is not RecBole's stays what it is.
    """
    if isinstance(sampler, _ArraySampling):
        return True
    array_class = _ARRAY_CLASSES.get(type(sampler))
    if array_class is None:
        return False
    value_count = sampler.entity_num if isinstance(sampler, KGSampler) else sampler.item_num
    sampler.used_ids = UsedIds.from_sets(sampler.used_ids, value_count)
    if sampler.distribution == "popularity":
        keys = list(sampler.prob)
        prob, alias = ([table[key] for key in keys] for table in (sampler.prob, sampler.alias))
        sampler.__class__ = array_class
        sampler._set_alias_table(np.array(keys, dtype=np.int64), np.array(prob), np.array(alias, dtype=np.int64))
    sampler.__class__ = array_class
    return True
