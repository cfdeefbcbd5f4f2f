"""Heads of different objectives on vectors of users and items that a model shares with them: those of ConCF.

Source: methods/distillation_ranking.md, section 6, steps 1 and 2. All losses are sums.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from recbole_prune.anatomy.shared_parts import BCE, BPR, CML, MSE, MULTINOMIAL
from recbole_prune.data.used_ids import UsedIds
from recbole_prune.distillers.losses.multinomial import multinomial_loss
from recbole_prune.sparse.pair_scores import pair_scores
from recbole_prune.teachers.pupils import some_keys

_DROPOUT = 0.1
_BOUND = 40.0  # of the authors' clamps


@dataclass(frozen=True)
class Sharing:
    """The vectors of some users and items, ids of which none comes twice, and what is known of them.

    Attributes:
        user_ids, item_ids: ``[b]`` and ``[n]``.
        user_vectors, item_vectors: ``[b, width]`` and ``[n, width]``, differentiable.
        users, positives, negatives: places in them of pairs of a user, an item that it has and one that it has not.
        consumed, consumers: the items of all users, and the users of all items.
    """

    user_ids: torch.Tensor
    item_ids: torch.Tensor
    user_vectors: torch.Tensor
    item_vectors: torch.Tensor
    users: torch.Tensor
    positives: torch.Tensor
    negatives: torch.Tensor
    consumed: UsedIds
    consumers: UsedIds

    @cached_property
    def items_of_users(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(Places of users, ids of items), all that these users have."""
        return _pairs(self.consumed, self.user_ids)

    @cached_property
    def paired_items(self) -> torch.Tensor:
        """Places of the items that occur in pairs."""
        places: torch.Tensor = torch.cat([self.positives, self.negatives]).unique()
        return places

    @cached_property
    def users_of_items(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(Places in :attr:`paired_items`, ids of users), all who have these items."""
        return _pairs(self.consumers, self.item_ids[self.paired_items])


def _pairs(used: UsedIds, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    found = some_keys(used, keys.cpu().numpy())
    rows, values = (torch.from_numpy(part) for part in divmod(found.codes, found.value_count))
    return rows.to(keys.device), values.to(keys.device)


class Side(NamedTuple):
    """What one side of a head contributes to scores: ``query . table + both offsets``.

    Attributes:
        vectors: ``[n, width]``.
        offset: ``[n]``, or one number.
    """

    vectors: torch.Tensor
    offset: torch.Tensor


class Scores(NamedTuple):
    """The scores of a head: those of users are queries, those of items a table."""

    users: Side
    items: Side

    def of_pairs(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Scores ``[m]`` of pairs of places."""
        products = (self.users.vectors[users] * self.items.vectors[items]).sum(1)
        return products + _at(self.users.offset, users) + _at(self.items.offset, items)

    def of_lists(self, items: torch.Tensor) -> torch.Tensor:
        """Scores of places of items ``[b, k]``, a row for each user in order."""
        products = pair_scores(self.users.vectors, self.items.vectors, items)
        return products + self.users.offset.reshape(-1, 1) + _at(self.items.offset, items)

    def of_all(self, users: slice | torch.Tensor) -> torch.Tensor:
        """Scores of all items for some users, ``[n, items]``."""
        offset = self.users.offset if self.users.offset.ndim == 0 else self.users.offset[users].unsqueeze(1)
        return self.users.vectors[users] @ self.items.vectors.t() + offset + self.items.offset


def _at(offset: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return offset if offset.ndim == 0 else offset[places]


class Head(nn.Module):
    """One objective, above a network of its own that reads the shared vectors.

    Args:
        widths: of the vectors of users and of items; where they are of one space one network reads both.
        one_space: whether they are.
        counts: how many users and items there are, padding included.

    Attributes:
        sides: how much its gradients at the shared tensors of users and of items count when heads are balanced.
        bounded: whether the authors clamp its scores in the consensus loss.
    """

    sides: ClassVar[tuple[float, float]] = (1.0, 0.5)
    bounded: ClassVar[bool] = False

    def __init__(self, widths: tuple[int, int], one_space: bool, counts: tuple[int, int]) -> None:
        super().__init__()
        users, items = widths
        self.width = max(1, min(widths) // 4)
        self.users = self._bottom(users)
        self.items = self.users if one_space and users == items else self._bottom(items)
        self.top = nn.Linear(self.width, self.outputs(counts))

    def _bottom(self, width: int) -> nn.Module:
        hidden = max(1, width // 2)
        return nn.Sequential(nn.Linear(width, hidden), nn.Dropout(_DROPOUT), nn.ReLU(), nn.Linear(hidden, self.width))

    def outputs(self, counts: tuple[int, int]) -> int:
        """Width of the layer at the top."""
        return self.width

    @abstractmethod
    def scores(
        self, user_ids: torch.Tensor, users: torch.Tensor, item_ids: torch.Tensor, items: torch.Tensor
    ) -> Scores:
        """The scores of users and items by their ids and shared vectors."""

    @abstractmethod
    def loss(self, scores: Scores, shared: Sharing) -> torch.Tensor:
        """The objective on a batch, a sum, given :meth:`scores` of what is shared."""


class PairHead(Head):
    """An objective on the scores of an item that a user has and of one that it has not."""

    def loss(self, scores: Scores, shared: Sharing) -> torch.Tensor:
        """The sum over all pairs."""
        both = (scores.of_pairs(shared.users, items) for items in (shared.positives, shared.negatives))
        return self.of_scores(*both).sum()

    @abstractmethod
    def of_scores(self, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        """Losses of scores."""


class PairwiseRanking(PairHead):
    """BPR: the item that a user has above the other (head A of ConCF)."""

    bounded = True

    def scores(
        self, user_ids: torch.Tensor, users: torch.Tensor, item_ids: torch.Tensor, items: torch.Tensor
    ) -> Scores:
        """Dot products."""
        zero = users.new_zeros(())
        return Scores(Side(self.top(self.users(users)), zero), Side(self.top(self.items(items)), zero))

    def of_scores(self, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        """``-log sigmoid`` of the difference."""
        return -logsigmoid(positive - negative)


class MetricLearning(PairHead):
    """CML: distances in the unit ball, the item that a user has nearer by 1 (head B)."""

    def scores(
        self, user_ids: torch.Tensor, users: torch.Tensor, item_ids: torch.Tensor, items: torch.Tensor
    ) -> Scores:
        """``-10 |u - i|^2``, multiplied out."""
        user, item = (in_unit_ball(self.top(net(x))) for net, x in ((self.users, users), (self.items, items)))
        return Scores(Side(20 * user, -10 * user.square().sum(1)), Side(item, -10 * item.square().sum(1)))

    def of_scores(self, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        """The hinge on squared distances."""
        return (1 + (negative - positive) / 10).clamp(min=0)


def in_unit_ball(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors ``[n, width]``, those that are longer than 1 shortened to it."""
    lengths: torch.Tensor = vectors.norm(dim=1, keepdim=True)
    return vectors / lengths.clamp(min=1)


class CrossEntropy(PairHead):
    """Binary cross-entropy on a weighted product (head C)."""

    def outputs(self, counts: tuple[int, int]) -> int:
        """A single weighted sum."""
        return 1

    def scores(
        self, user_ids: torch.Tensor, users: torch.Tensor, item_ids: torch.Tensor, items: torch.Tensor
    ) -> Scores:
        """``w . (u * i) + b``."""
        weighted = self.users(users) * self.top.weight
        return Scores(Side(weighted, self.top.bias.squeeze()), Side(self.items(items), users.new_zeros(())))

    def of_scores(self, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        """1 and 0 are to be told from the logits."""
        logits, labels = torch.cat([positive, negative]), torch.cat([positive, negative]).detach().zero_()
        labels[: len(positive)] = 1
        return binary_cross_entropy_with_logits(logits, labels, reduction="none")


class SquaredError(CrossEntropy):
    """Squared errors of a weighted product to 1 and 0 (head D)."""

    def of_scores(self, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        """1 and 0 are to be the scores."""
        return torch.cat([positive - 1, negative]).square()


class Multinomial(Head):
    """A multinomial likelihood of all items that a user has (head E)."""

    sides = (1.0, 0.0)
    bounded = True

    def __init__(self, widths: tuple[int, int], one_space: bool, counts: tuple[int, int]) -> None:
        super().__init__(widths, one_space, counts)
        del self.items  # an item is a class and no vector

    def outputs(self, counts: tuple[int, int]) -> int:
        """A class for every item; padding is none."""
        return counts[1] - 1

    def scores(
        self, user_ids: torch.Tensor, users: torch.Tensor, item_ids: torch.Tensor, items: torch.Tensor
    ) -> Scores:
        """Logits of the classes; those of padding mean nothing."""
        classes = self.top.weight[item_ids - 1], self.top.bias[item_ids - 1]
        return Scores(Side(self.users(users), users.new_zeros(())), Side(*classes))

    def loss(self, scores: Scores, shared: Sharing) -> torch.Tensor:
        """Over all items, by the users' side of the scores."""
        rows, items = shared.items_of_users
        return multinomial_loss(scores.users.vectors, self.top.weight, self.top.bias, rows, items - 1)


class ItemMultinomial(Head):
    """A multinomial likelihood of all users who have an item: the sub-head that gives the other one an item side."""

    sides = (0.0, 0.5)

    def __init__(self, widths: tuple[int, int], one_space: bool, counts: tuple[int, int]) -> None:
        super().__init__(widths, one_space, counts)
        del self.users  # likewise

    def outputs(self, counts: tuple[int, int]) -> int:
        """A class for every user; padding is none."""
        return counts[0] - 1

    def scores(
        self, user_ids: torch.Tensor, users: torch.Tensor, item_ids: torch.Tensor, items: torch.Tensor
    ) -> Scores:
        """Logits of the classes, which are users; those of padding mean nothing."""
        classes = self.top.weight[user_ids - 1], self.top.bias[user_ids - 1]
        return Scores(Side(*classes), Side(self.items(items), users.new_zeros(())))

    def loss(self, scores: Scores, shared: Sharing) -> torch.Tensor:
        """Over all users, for the items of the pairs."""
        vectors = scores.items.vectors[shared.paired_items]
        rows, users = shared.users_of_items
        return multinomial_loss(vectors, self.top.weight, self.top.bias, rows, users - 1)


ITEM_MULTINOMIAL = "item_multinomial"
HEADS: dict[str, type[Head]] = {
    BPR: PairwiseRanking,
    CML: MetricLearning,
    BCE: CrossEntropy,
    MSE: SquaredError,
    MULTINOMIAL: Multinomial,
    ITEM_MULTINOMIAL: ItemMultinomial,
}


def clamped(scores: torch.Tensor) -> torch.Tensor:
    """Between the authors' bounds; NaN stays."""
    return scores.clamp(-_BOUND, _BOUND)
