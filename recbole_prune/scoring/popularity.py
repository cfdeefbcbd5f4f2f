"""Popular items and the long tail: who finds which, and what is recommended at all (methods/more_methods.md, C4).

Popular (the head) are the fewest most popular items that together have a share of the training interactions
(``report_tail_share``); unpopular (the tail) are all others, also those that nobody trains on. UnKD (WSDM 2023, two
groups) leaves out the item that reaches the share. A teacher, or a narrower table, may move recall from the tail to the
head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import torch

GROUPS = ("popular", "unpopular")


class GroupRecall(TypedDict):
    """Recall of a group of items at one length of the lists; None where no user has a test item in the group.

    Attributes:
        recall: the mean over the users who have one of hits / test items in the group.
        recall_all_users: the same sum divided by all users, as UnKD reports it.
        recall_micro: all hits / all test items in the group.
    """

    recall: float | None
    recall_all_users: float | None
    recall_micro: float | None


class ListPopularity(TypedDict):
    """What lists of one length hold; the last four are None where not all items were ranked.

    Attributes:
        popular, unpopular: recall of either group.
        tail_share: share of the listed items that are unpopular.
        coverage: share of all items that are in some list.
        gini: Gini index of how often each of all items is listed, 0 where all are alike.
        average_popularity: mean number of training interactions of the listed items.
    """

    popular: GroupRecall
    unpopular: GroupRecall
    tail_share: float | None
    coverage: float | None
    gini: float | None
    average_popularity: float | None


class PopularityRecord(TypedDict):
    """A field of the journal: ``popularity`` of a test. A group in which no user has a test item has no recall.

    Attributes:
        share: of the training interactions that popular items have at least.
        popular_items, items: how many items are popular, and how many there are.
        popular_users, unpopular_users: how many users have a test item in either group.
        k: length of the longest lists, the largest of ``topk``.
        popular, unpopular: recall at k of either group.
        at: by length of the lists (``topk``) what they hold.
    """

    share: float
    popular_items: int
    items: int
    popular_users: int
    unpopular_users: int
    k: int
    popular: float | None
    unpopular: float | None
    at: dict[str, ListPopularity]


@dataclass(frozen=True)
class Popularity:
    """How popular items are in the training data.

    Attributes:
        counts: users of each item, by internal id, int64 ``[N]``; padding, item 0, has none.
        popular: which are popular, bool ``[N]``.
        share: of the interactions that those have at least.
    """

    counts: torch.Tensor
    popular: torch.Tensor
    share: float

    @classmethod
    def of(cls, counts: np.ndarray, share: float = 0.5) -> Popularity:
        """From the number of interactions of each item, by internal id ``[N]``."""
        return cls(torch.from_numpy(counts.astype(np.int64)), torch.from_numpy(popular_items(counts, share)), share)

    def to(self, device: torch.device) -> Popularity:
        """The same on a device."""
        return replace(self, counts=self.counts.to(device), popular=self.popular.to(device))


def popular_items(counts: np.ndarray, share: float = 0.5) -> np.ndarray:
    """The fewest items that together have at least a share of the interactions, of equally popular ones lower ids.

    Args:
        counts: interactions of each item, by internal id ``[N]``; padding has none.
        share: above 0, below 1.

    Returns:
        bool ``[N]``.
    """
    order = np.argsort(-counts, kind="stable")
    reached = np.cumsum(counts[order])
    popular = np.zeros(len(counts), bool)
    if reached[-1] > 0:
        popular[order[: 1 + int(np.argmax(reached >= share * reached[-1]))]] = True
    return popular


def record_of(
    popularity: Popularity,
    items: torch.Tensor,
    hits: torch.Tensor,
    positives: torch.Tensor,
    topk: Sequence[int],
    ranks_all: bool = True,
) -> PopularityRecord:
    """What the journal says of the lists of a test.

    Args:
        popularity: of the training data.
        items: ranked best, internal ids, best first ``[users, largest k]``; 0 where nothing is left to rank.
        hits: 1 where the item is to be found, else 0 ``[users, largest k]``.
        positives: popular and unpopular test items of each user ``[users, 2]``.
        topk: lengths of the lists.
        ranks_all: whether all items were ranked, not drawn candidates.
    """
    popular = popularity.popular[items]
    users, longest = (positives > 0).sum(0).tolist(), max(topk)
    at = {}
    for k in sorted(topk):
        of_groups = [(hits[:, :k] * group[:, :k]).sum(1) for group in (popular, ~popular)]
        recalls = [_recall(of_group, positives[:, place]) for place, of_group in enumerate(of_groups)]
        at[str(k)] = ListPopularity(
            popular=recalls[0], unpopular=recalls[1], **_listed(popularity, items[:, :k], ranks_all)
        )
    return PopularityRecord(
        share=popularity.share,
        popular_items=int(popularity.popular.sum()),
        items=len(popularity.counts) - 1,
        popular_users=users[0],
        unpopular_users=users[1],
        k=longest,
        popular=at[str(longest)]["popular"]["recall"],
        unpopular=at[str(longest)]["unpopular"]["recall"],
        at=at,
    )


def _recall(hits: torch.Tensor, positives: torch.Tensor) -> GroupRecall:
    """Of one group, from the hits and the test items of each user ``[users]``."""
    users, wanted = int((positives > 0).sum()), int(positives.sum())
    if not users:
        return GroupRecall(recall=None, recall_all_users=None, recall_micro=None)
    total = float((hits.double() / positives.clamp(min=1)).sum())
    return GroupRecall(
        recall=total / users, recall_all_users=total / len(positives), recall_micro=int(hits.sum()) / wanted
    )


class _Listed(TypedDict):
    tail_share: float | None
    coverage: float | None
    gini: float | None
    average_popularity: float | None


def _listed(popularity: Popularity, items: torch.Tensor, ranks_all: bool) -> _Listed:
    """What lists hold, whoever wants it; places where nothing was left to rank are left out."""
    count = len(popularity.counts)
    exposures = torch.bincount(items.reshape(-1), minlength=count)[1:].cpu().double().numpy()
    total = exposures.sum()
    if not ranks_all or not total:
        return _Listed(tail_share=None, coverage=None, gini=None, average_popularity=None)
    ascending, places = np.sort(exposures), np.arange(1, count)
    of_tail = exposures[~popularity.popular[1:].cpu().numpy()].sum()
    return _Listed(
        tail_share=float(of_tail / total),
        coverage=float((exposures > 0).mean()),
        gini=float(((2 * places - count) * ascending).sum() / ((count - 1) * total)),
        average_popularity=float((exposures * popularity.counts[1:].cpu().numpy()).sum() / total),
    )
