"""Recall of popular and of unpopular items apart: a teacher may move it from these to those.

Popular are the fewest most popular items that together have half of the training interactions; unpopular are all
others, also those that nobody trains on. UnKD (WSDM 2023, two groups) leaves out the item that reaches the half. A
group's recall is the mean over the users who have a test item in it; UnKD divides by all test users
(methods/more_methods.md, C4, forms M and P).
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import torch


class RecallByPopularity(TypedDict):
    """A field of the journal. A group in which no user has a test item has no recall.

    Attributes:
        k: length of the lists, the largest of ``topk``.
        popular, unpopular: recall at k of either group.
        popular_users, unpopular_users: how many users have a test item in it.
    """

    k: int
    popular: float | None
    unpopular: float | None
    popular_users: int
    unpopular_users: int


def popular_items(counts: np.ndarray) -> np.ndarray:
    """The fewest items that together have at least half of the interactions, of equally popular ones lower ids first.

    Args:
        counts: interactions of each item, by internal id ``[N]``; padding has none.

    Returns:
        bool ``[N]``.
    """
    order = np.argsort(-counts, kind="stable")
    reached = np.cumsum(counts[order])
    popular = np.zeros(len(counts), bool)
    if reached[-1] > 0:
        popular[order[: 1 + int(np.argmax(2 * reached >= reached[-1]))]] = True
    return popular


def recall_by_popularity(hits: torch.Tensor, positives: torch.Tensor, k: int) -> RecallByPopularity:
    """The recall of either group.

    Args:
        hits: popular and unpopular test items among the best k of each user ``[users, 2]``.
        positives: all popular and unpopular test items of each user ``[users, 2]``.
        k: length of the lists.
    """
    users = (positives > 0).sum(0).tolist()
    totals = (hits.double() / positives.clamp(min=1)).sum(0).tolist()
    popular, unpopular = (total / count if count else None for total, count in zip(totals, users))
    return RecallByPopularity(
        k=k, popular=popular, unpopular=unpopular, popular_users=users[0], unpopular_users=users[1]
    )
