"""The student's training data as distillers read it: who is in a batch, who has consumed what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from recbole_prune.data.training_pairs import consumed_items, consumptions
from recbole_prune.data.used_ids import UsedIds
from recbole_prune.sparse.ascending import ascending

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset
    from recbole.data.interaction import Interaction

    from recbole_prune.anatomy.scorers import Rows

_FEW = 8


def nothing_used(keys: int, values: int) -> UsedIds:
    """Of so many keys none has used any of the values."""
    nothing = np.empty(0, np.int64)
    return UsedIds(nothing, nothing, keys, values)


def first_rows(dataset: Dataset) -> Interaction:
    """A few rows of a training dataset as a batch has them, without negatives."""
    rows = dataset.inter_feat
    found: Interaction = dataset.join(rows[np.arange(min(_FEW, len(rows)))])
    return found


@dataclass(frozen=True)
class Entities:
    """Distinct ids of a batch; padding is never among them.

    Attributes:
        users: ids of users; None where a row is a history of its own.
        positives, negatives: ids of items; no negatives where the loss is over all items.
    """

    users: torch.Tensor | None
    positives: torch.Tensor
    negatives: torch.Tensor

    @property
    def items(self) -> torch.Tensor:
        """Positive and negative items together, distinct."""
        both: torch.Tensor = torch.cat([self.positives, self.negatives]).unique()
        return both


def some_keys(used: UsedIds, keys: np.ndarray) -> UsedIds:
    """The values of some keys ``[n]``, in their order, as keys 0 to n - 1."""
    counts = used.offsets[keys + 1] - used.offsets[keys]
    places = np.repeat(np.arange(len(keys)), counts)
    codes = np.arange(len(places)) + (used.offsets[keys] - np.cumsum(counts) + counts)[places]
    return UsedIds(places, used.codes[codes] % used.value_count, len(keys), used.value_count)


class Pupils:
    """What the student trains on.

    Args:
        dataset: RecBole's training dataset.
        of_rows: whether a user is a row of a batch, as in sequential models.
        whole_rows: whether the student's loss compares all items of a row.
        rows_add_up: whether the student's loss is the sum over the rows of a batch, not their mean.
        batches: in an epoch.
        mask_observed: whether rankings leave out what a user has in training (``distill_mask_observed``).
        example: gives a training batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        of_rows: bool,
        whole_rows: bool = False,
        rows_add_up: bool = False,
        batches: int = 1,
        mask_observed: bool = True,
        example: Callable[[], Interaction] | None = None,
    ) -> None:
        self.dataset, self.of_rows, self.whole_rows, self.batches = dataset, of_rows, whole_rows, batches
        self.rows_add_up = rows_add_up
        self.mask_observed, self._example = mask_observed, example
        self.seed = int(dataset.config["seed"])
        self.user_field, self.item_field = dataset.uid_field, dataset.iid_field
        self.negative_field = dataset.config["NEG_PREFIX"] + dataset.iid_field
        self.user_count, self.item_count = dataset.user_num, dataset.item_num

    @cached_property
    def consumed(self) -> UsedIds:
        """The items of each user in the training data."""
        return consumed_items(self.dataset)

    @cached_property
    def consumers(self) -> UsedIds:
        """The users of each item in the training data."""
        users, items = np.divmod(self.consumed.codes, self.item_count)
        return UsedIds(items, users, self.item_count, self.user_count)

    @cached_property
    def unranked(self) -> UsedIds:
        """The items of each user that no ranking has."""
        return self.consumed if self.mask_observed else nothing_used(self.user_count, self.item_count)

    def unranked_in(self, batch: Interaction) -> UsedIds:
        """The items of each row of a batch that no ranking has."""
        return self.consumed_in(batch) if self.mask_observed else nothing_used(len(batch), self.item_count)

    @cached_property
    def consumptions(self) -> np.ndarray:
        """How many users have each item in the training data ``[N]``."""
        return consumptions(self.consumed)

    def consumed_by(self, rows: Rows) -> UsedIds:
        """The items of each of some users (ids ``[n]``) or of each row of a batch."""
        if not isinstance(rows, torch.Tensor):
            return self.consumed_in(rows)
        return some_keys(self.consumed, rows.cpu().numpy())

    def consumed_in(self, batch: Interaction) -> UsedIds:
        """The items of each row of a batch: its history and its next item."""
        histories = batch[self.item_field + self.dataset.config["LIST_SUFFIX"]].cpu().numpy()
        items = np.concatenate([histories, batch[self.item_field].cpu().numpy()[:, None]], axis=1)
        rows, places = np.nonzero(items)
        return UsedIds(rows, items[rows, places], len(items), self.item_count)

    def users_in(self, batch: Interaction) -> tuple[torch.Tensor, torch.Tensor]:
        """The distinct users of a batch, ascending, and how many rows each has."""
        users, counts = batch[self.user_field].unique(return_counts=True)
        return users, counts

    @cached_property
    def example(self) -> Interaction:
        """A training batch, with all that batches have."""
        assert self._example is not None, "nothing that trains asks without"
        return self._example()

    def first_rows(self) -> Interaction:
        """A few rows as a batch has them, without negatives."""
        return first_rows(self.dataset)

    def entities(self, batch: Interaction) -> Entities:
        """The distinct users and items of a training batch; of rows that are whole users, all that they consumed."""
        users = batch[self.user_field].unique()
        if self.item_field not in batch.interaction:
            consumed = [self.consumed.values_of(int(user)) for user in users.cpu()]
            items = torch.from_numpy(ascending(np.concatenate(consumed))).to(users.device)
            return Entities(users, items, items[:0])
        items = batch[self.item_field].unique()
        negatives = batch[self.negative_field].unique() if self.negative_field in batch.interaction else items[:0]
        return Entities(None if self.of_rows else users, items, negatives)
