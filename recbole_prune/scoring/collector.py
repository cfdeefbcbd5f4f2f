"""RecBole's collector of ranking results without a dense matrix of positives and without growing tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from recbole.evaluator import Collector
from recbole.evaluator.collector import DataStruct

from recbole_prune.scoring.popularity import Popularity, PopularityRecord, record_of
from recbole_prune.scoring.value_metrics import LABEL_VALUES

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
    from recbole.data.interaction import Interaction


@dataclass(frozen=True)
class Ranked:
    """The best items of some users.

    Attributes:
        items: internal ids, best first, int64 ``[users, k]``.
        hits: 1 where the item is a positive, else 0, int64 ``[users, k]``.
        positives: number of positives, int64 ``[users, 1]``.
        popular: number of popular positives, int64 ``[users, 1]``; None where they are not told apart.
    """

    items: torch.Tensor
    hits: torch.Tensor
    positives: torch.Tensor
    popular: torch.Tensor | None = None


def find_hits(items: torch.Tensor, rows: torch.Tensor, codes: torch.Tensor, item_count: int) -> torch.Tensor:
    """Which ranked items are positives, by binary search.

    Args:
        items: internal ids ``[users, k]``.
        rows: the number of each user's row in ``codes`` ``[users]``.
        codes: ``row * item_count + item`` of every positive, ascending, not empty.
        item_count: number of items, padding included.

    Returns:
        1 for a positive, else 0, int64 ``[users, k]``.
    """
    wanted = rows[:, None] * item_count + items
    found = torch.searchsorted(codes, wanted).clamp_(max=len(codes) - 1)
    return (codes[found] == wanted).long()


class _Chunks(DataStruct):
    """What batches add is kept in lists, to be joined once."""

    def update_tensor(self, name: str, value: torch.Tensor) -> None:
        """Add what one batch has."""
        if name not in self:
            self.set(name, [])
        self.get(name).append(value.clone().detach())


class RankingCollector(Collector):
    """Collects what RecBole's collector collects, ``rec.items`` and ``rec.topk`` at a lower price.

    RecBole writes the positives of a batch into a zero matrix of the size of the scores, sums it over all items, and
    copies everything collected so far at every batch; and it moves plain numbers to the CPU as if they were tensors,
    which ends ItemCoverage, GiniIndex, AveragePopularity and TailPercentage with an AttributeError.

    Attributes:
        popularity: of the training data, to get :attr:`by_popularity` of the next evaluations.
        ranks_all: whether those rank all items, not drawn candidates.
        by_popularity: of the last evaluation; None where :attr:`popularity` was, and where nothing was ranked.
    """

    by_popularity: PopularityRecord | None = None
    ranks_all = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.popularity: Popularity | None = None
        self._lists: list[tuple[torch.Tensor, ...]] = []
        self.data_struct = _Chunks()
        self.wants_items = self.register.need("rec.items")
        self.wants_hits = self.register.need("rec.topk")
        # what is collected here is struck off, so that RecBole's code collects the rest
        for name in ("rec.items", "rec.topk"):
            setattr(self.register, name, False)

    def data_collect(self, train_data: AbstractDataLoader) -> None:
        """Collect what the metrics need of the training data, the values of its labels among it."""
        super().data_collect(train_data)
        rows, label = train_data._dataset.inter_feat, self.config["LABEL_FIELD"]
        read = {*self.config["eval_args"]["mode"].values()} == {
            "labeled"
        }  # sampled candidates have labels of their own
        if read and label in rows and self.register.need(LABEL_VALUES):
            self.data_struct.set(LABEL_VALUES, rows[label].unique())

    def only_top_items(self) -> bool:
        """Whether the best items of every user are all that the metrics need from the scores."""
        return not any(self.register.need(name) for name in ("rec.meanrank", "rec.score", "data.label"))

    def eval_batch_collect(
        self,
        scores_tensor: torch.Tensor | Ranked,
        interaction: Interaction | None,
        positive_u: torch.Tensor | None,
        positive_i: torch.Tensor | None,
    ) -> None:
        """Collect a batch.

        Args:
            scores_tensor: the scores as RecBole gives them, ``[users, items]``, or a :class:`Ranked`.
            interaction: the batch; not read for a :class:`Ranked`, like the two below, which may be None then.
            positive_u: row of each positive.
            positive_i: item of each positive.
        """
        if isinstance(scores_tensor, Ranked):
            self._keep(scores_tensor)
            return
        if self.wants_items or self.wants_hits:
            assert positive_u is not None and positive_i is not None, "scores come with their positives"
            self._keep(self._rank(scores_tensor, positive_u, positive_i))
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)

    def _rank(self, scores: torch.Tensor, positive_u: torch.Tensor, positive_i: torch.Tensor) -> Ranked:
        users, item_count = scores.shape
        items = torch.topk(scores, max(self.topk), dim=-1).indices
        # a pair that occurs twice is one positive
        codes = torch.unique(positive_u.to(items.device) * item_count + positive_i.to(items.device))
        counts = torch.bincount(torch.div(codes, item_count, rounding_mode="floor"), minlength=users)
        rows = torch.arange(users, device=items.device)
        popular = self.popular_positives(codes, users, item_count)
        return Ranked(items, find_hits(items, rows, codes, item_count), counts[:, None], popular)

    def popular_positives(self, codes: torch.Tensor, users: int, item_count: int) -> torch.Tensor | None:
        """How many positives of each user are popular, int64 ``[users, 1]``; None where they are not told apart.

        Args:
            codes: ``row * item_count + item`` of every positive.
            users: number of rows.
            item_count: number of items, padding included.
        """
        if self.popularity is None:
            return None
        of_popular = codes[self.popularity.popular[codes % item_count]]
        rows = torch.div(of_popular, item_count, rounding_mode="floor")
        return torch.bincount(rows, minlength=users)[:, None]

    def _keep(self, ranked: Ranked) -> None:
        if ranked.popular is not None:
            of_groups = torch.cat((ranked.popular, ranked.positives - ranked.popular), dim=1)
            self._lists.append((ranked.items, ranked.hits, of_groups))
        if self.wants_items:
            self.data_struct.update_tensor("rec.items", ranked.items)
        if self.wants_hits:
            self.data_struct.update_tensor("rec.topk", torch.cat((ranked.hits, ranked.positives), dim=1))

    def get_data_struct(self) -> DataStruct:
        """Everything collected, on the CPU; what batches added is forgotten."""
        self.by_popularity = None
        if self._lists and self.popularity is not None:
            items, hits, positives = (torch.cat(parts) for parts in zip(*self._lists))
            self.by_popularity = record_of(self.popularity, items, hits, positives, self.topk, self.ranks_all)
        self._lists = []
        collected = DataStruct()
        for name, value in list(self.data_struct._data_dict.items()):
            if isinstance(value, list):
                del self.data_struct[name]
                value = torch.cat(value).cpu()
            collected.set(name, value)
        return collected
