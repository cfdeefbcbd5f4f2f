"""Full-sort evaluation in large blocks of users, for models whose scores are dot products.

RecBole ranks ``eval_batch_size // item_count`` users at a time, with the default of 4096 a single one of any large
catalogue. Here its own evaluation loop is given :class:`UserBlocks` in the place of its dataloader, and its own metrics
the same ``rec.items`` and ``rec.topk``: a user whose order could depend on how scores are summed or on how equal scores
are sorted is ranked again in RecBole's way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.evaluator import Collector
from recbole.trainer import Trainer

from recbole_prune.data.random_streams import have_moved, random_state, set_random_state
from recbole_prune.scoring.collector import Ranked, RankingCollector, find_hits
from recbole_prune.scoring.dot_product import match_tables
from recbole_prune.scoring.probe import attributes_of, disagreement, set_attributes
from recbole_prune.scoring.ranking import DenseRanker, EvaluationRows, Ranker, ScanRanker, SearchRanker
from recbole_prune.sparse.compact import compact_modules
from recbole_prune.sparse.compiling import available
from recbole_prune.sparse.inverted_lists import DENSEST_SCAN, Rows

if TYPE_CHECKING:
    from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader

_PROBE_USERS = 32
_PROBE_ITEMS = 512

_rows_of: WeakKeyDictionary[Any, EvaluationRows] = WeakKeyDictionary()
_said_of: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class UserBlock:
    """Rows ``start`` to ``stop`` of an evaluation, in the place of a batch of RecBole's dataloader."""

    blocks: UserBlocks
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class UserBlocks(FullSortEvalDataLoader):
    """What RecBole's evaluation loop iterates over instead of ``loader``.

    Only that loop sees it, so nothing of a torch dataloader is set up.

    Args:
        loader: RecBole's.
        ranker: ranks its users.
        popular: number of popular positives of each user ``[rows, 1]``; None where they are not told apart.
    """

    def __init__(self, loader: FullSortEvalDataLoader, ranker: Ranker, popular: torch.Tensor | None = None) -> None:
        self.loader = loader
        self.ranker = ranker
        self.popular = popular
        self._dataset = loader._dataset
        self._scored: tuple[int, torch.Tensor | None] = -1, None

    def __len__(self) -> int:
        return -(-len(self.ranker.rows) // self.ranker.block_users)

    def __iter__(self) -> Iterator[UserBlock]:
        if self.loader.generator is None:
            # every iteration of a dataloader of torch draws a seed for its workers, here from the global stream
            torch.empty((), dtype=torch.int64).random_()
        rows, step = len(self.ranker.rows), self.ranker.block_users
        for start in range(0, rows, step):
            yield UserBlock(self, start, min(start + step, rows))

    def recbole_scores(self, start: int, score: Callable[[Any], torch.Tensor]) -> torch.Tensor:
        """The scores of the loader's batch that begins at row ``start``: a part of it may round differently.

        Blocks are ranked in order, so the batch asked for last is often asked for again.
        """
        scores = self._scored[1] if self._scored[0] == start else None
        if scores is None:
            self._scored = -1, None  # frees the scores before
            batch = range(start, min(start + self.loader.step, len(self.ranker.rows)))
            scores = score(self.loader.collate_fn(list(batch)))
            self._scored = start, scores
        return scores


class BlockEvaluation:
    """Ranks in blocks for one trainer where that gives what RecBole's own way gives.

    Args:
        trainer: a RecBole trainer; its collector is replaced by a :class:`RankingCollector`.
        batch_scores: RecBole's ``_full_sort_batch_eval`` of that trainer.
        evaluate: RecBole's ``evaluate`` of that trainer.
        train_data: the run's training data; a reason is logged once for it.

    Attributes:
        way: how the last evaluation ranked, in words; with the reason where RecBole's way was taken.
    """

    way: str | None = None

    def __init__(
        self, trainer: Trainer, batch_scores: MethodType, evaluate: MethodType, train_data: AbstractDataLoader
    ) -> None:
        self._trainer = trainer
        self._batch_scores = batch_scores
        self._train_data = train_data
        if type(trainer.eval_collector) is Collector:
            trainer.eval_collector = RankingCollector(trainer.config)
            # RecBole does this in fit only, but weights may come from elsewhere
            trainer.eval_collector.data_collect(train_data)
        self._own_loop = any(
            method.__func__ is not original
            for method, original in (
                (batch_scores, Trainer._full_sort_batch_eval),
                (evaluate, Trainer.evaluate),
            )
        )
        self._no_dot_product: str | None = None

    @property
    def collector(self) -> RankingCollector | None:
        """The trainer's, None where it has one of its own."""
        collector = self._trainer.eval_collector
        return collector if isinstance(collector, RankingCollector) else None

    @torch.no_grad()
    def blocks(self, loader: AbstractDataLoader) -> UserBlocks | None:
        """What to evaluate instead of ``loader``; None, and why in the log, where RecBole's way is taken."""
        reason = self._reason(loader) or self._no_dot_product
        if reason is None:
            self._trainer.model.eval()
            ranker, reason = self._find_ranker(loader)
            if ranker is not None:
                self.way = ranker.way
                rows, collector = ranker.rows, self._trainer.eval_collector
                popular = collector.popular_positives(rows.positive_codes, len(rows), rows.item_count)
                return UserBlocks(loader, ranker, popular)
        self.way = f"RecBole's batches: {reason}"
        said = _said_of.setdefault(self._train_data, set())
        if reason not in said:
            said.add(str(reason))
            self._trainer.logger.info(f"evaluation in {self.way}")
        return None

    def _reason(self, loader: AbstractDataLoader) -> str | None:
        config = self._trainer.config
        if not isinstance(loader, FullSortEvalDataLoader):
            return "not all items are ranked"
        if loader.is_sequential:
            return f"{config['model']} ranks for sequences, not for users"
        if not config["single_spec"]:
            return "several processes evaluate together"
        if self._own_loop:
            return f"{type(self._trainer).__name__} evaluates in a way of its own"
        if self.collector is None:
            return "the trainer has a collector of its own"
        if not self.collector.only_top_items():
            return f"one of metrics={config['metrics']} needs more than the best items"
        return None

    def _find_ranker(self, loader: FullSortEvalDataLoader) -> tuple[Ranker | None, str | None]:
        """A ranker that has just been compared with the model's own scores; or None and why there is none.

        With a ranker, random streams and propagated tables are left as by RecBole's first batch (KGIN propagates
        along edges that it draws); without one, as they were.
        """
        model = self._trainer.model
        rows = _rows_of.get(loader)
        device = torch.empty(0, device=self._trainer.device).device  # with its number, as tensors say it: cuda:0
        if rows is None or rows.positive_codes.device != device:
            rows = _rows_of[loader] = EvaluationRows.of(loader, device)
        probe = torch.unique(torch.linspace(0, len(rows) - 1, _PROBE_USERS).long())
        streams, attributes = random_state(), attributes_of(model)
        ranker, reason = self._match(loader, rows, probe)
        if ranker is not None and have_moved(streams):
            drawn = random_state()
            self._probe_scores(loader, probe[:1], rows.item_count)
            if have_moved(drawn):
                ranker = None
                reason = self._no_dot_product = f"{type(model).__name__} draws random numbers for every batch it scores"
        if ranker is None:
            set_random_state(streams)
            set_attributes(attributes)
        return ranker, reason

    def _match(
        self, loader: FullSortEvalDataLoader, rows: EvaluationRows, probe: torch.Tensor
    ) -> tuple[Ranker | None, str | None]:
        """A ranker that agrees with the model's scores for the rows ``probe``; or None and why there is none."""
        model, dataset = self._trainer.model, loader._dataset
        name = type(model).__name__
        try:
            scores = self._probe_scores(loader, probe, rows.item_count)
        except NotImplementedError:
            self._no_dot_product = f"{name} scores pairs of a user and an item one by one"
            return None, self._no_dot_product
        if not scores.any():
            return None, f"{name} scored 0 for all users of a probe"
        items = np.unique(np.linspace(1, rows.item_count - 1, _PROBE_ITEMS).astype(np.int64))
        tables = {**model.state_dict(), **vars(model)}
        part = scores[:, torch.from_numpy(items).to(scores.device)].double().cpu().numpy()
        found = match_tables(tables, rows.users[probe].numpy(), items, part, dataset.user_num, dataset.item_num)
        if found is None:
            self._no_dot_product = f"the scores of {name} are not dot products of a user table and an item table"
            return None, self._no_dot_product
        user, item, scale = found
        ranker = self._ranker(rows, (user, item), tables, scale)
        if not bool(ranker.rounding.isfinite().all()):
            return None, f"{name} scores with infinite or missing numbers"
        own = ranker.scores(probe)
        expected = torch.where(own == -torch.inf, own, scores)
        if disagreement(own.double().cpu().numpy(), expected.double().cpu().numpy()):
            return None, f"the dot products of {user} and {item} are not the scores of {name}"
        return ranker, None

    def _ranker(self, rows: EvaluationRows, names: tuple[str, str], tables: dict[str, Any], scale: float) -> Ranker:
        """A scan of inverted lists or a search by bounds where that is faster, else matrix products."""
        users, items = (tables[name].detach() for name in names)

        def dense() -> DenseRanker:
            return DenseRanker(rows, users, items, scale)

        live = int(torch.count_nonzero(items))
        if not available() or items.device.type != "cpu" or live > DENSEST_SCAN * items.numel():
            products = dense()
            return SearchRanker.of(rows, users, items, products, scale) or products
        user_rows, item_rows = (self._rows(name, tables) for name in names)
        return ScanRanker(rows, user_rows, item_rows, items.shape[1], dense, scale)

    def _rows(self, name: str, tables: dict[str, Any]) -> Rows:
        """The live entries of a table; a compact one has them."""
        module = dict(compact_modules(self._trainer.model)).get(name)
        if module is None or module.values.dtype != torch.float32:
            return Rows.of(tables[name].detach().numpy())
        pointers, columns = module.rows.pointers.numpy(), module.rows.columns.numpy()
        return Rows(pointers.astype(np.int64), columns.astype(np.int32), module.values.detach().numpy())

    def _probe_scores(self, loader: FullSortEvalDataLoader, probe: torch.Tensor, item_count: int) -> torch.Tensor:
        """The model's scores of all items ``[probe, item_count]``, in batches no larger than RecBole's."""
        batches = [loader.collate_fn(part.tolist())[0].to(self._trainer.device) for part in probe.split(loader.step)]
        return torch.cat([self._trainer.model.full_sort_predict(batch).view(-1, item_count) for batch in batches])

    def rank(self, block: UserBlock) -> Ranked:
        """The best items of a block as RecBole would have ranked them."""
        ranker, k = block.blocks.ranker, max(self._trainer.eval_collector.topk)
        items, scores = ranker.rank(block.start, block.stop, k + 1)
        items = items[:, :k].contiguous()
        rows = torch.arange(block.start, block.stop, device=items.device)
        known, collector = ranker.rows, self._trainer.eval_collector
        hits = None
        if not collector.wants_items:
            hits = find_hits(items, rows, known.positive_codes, known.item_count)
        unclear, tied = _ties(scores, ranker.rounding[block.start : block.stop], hits)
        for part in _parts(tied, ranker.block_users):
            items[part] = torch.topk(ranker.scores(part + block.start), k, dim=1).indices
        for batch, part in _by_batch(unclear, block.start, block.blocks.loader.step):
            of_batch = block.blocks.recbole_scores(batch, lambda data: self._batch_scores(data)[1])
            items[part] = torch.topk(of_batch[part + block.start - batch], k, dim=1).indices
        hits = find_hits(items, rows, known.positive_codes, known.item_count)
        popular = block.blocks.popular
        popular = None if popular is None else popular[block.start : block.stop]
        return Ranked(items, hits, known.positive_counts[block.start : block.stop, None], popular)


def _ties(scores: torch.Tensor, rounding: torch.Tensor, hits: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows of ranked scores ``[rows, k + 1]`` leave their order open.

    Args:
        scores: of the best items and the next one.
        rounding: how far the scores of a row can be off, ``[rows]``.
        hits: which of the best are positives, ``[rows, k]``, where nothing else matters: two positives, or two others,
            may then change places. None: the order of the items matters.

    Returns:
        (rows with scores that lie closer than rounding, rows whose only such scores are equal in any arithmetic: empty
        sums, nothing left to rank), each bool ``[rows]``.
    """
    upper, lower = scores[:, :-1], scores[:, 1:]
    close = ~(upper - lower > rounding[:, None])
    certain = (upper == lower) & ((lower == 0) | lower.isinf())
    open_order = close & ~certain
    if hits is not None:
        open_order[:, :-1] &= hits[:, :-1] != hits[:, 1:]
    unclear = open_order.any(1)
    return unclear, certain.any(1) & ~unclear


def _parts(chosen: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """The numbers of the True entries of ``[rows]``, no more than ``size`` at a time."""
    numbers = torch.nonzero(chosen)[:, 0]
    return numbers.split(size) if len(numbers) else ()


def _by_batch(chosen: torch.Tensor, start: int, step: int) -> Iterator[tuple[int, torch.Tensor]]:
    """RecBole's batches of ``step`` rows that have True entries of ``[rows]``, whose first is row ``start`` of all.

    Yields:
        (first row of the batch among all, numbers of the entries that lie in it).
    """
    numbers = torch.nonzero(chosen)[:, 0]
    batches, counts = torch.unique_consecutive((numbers + start) // step, return_counts=True)
    for batch, rows in zip(batches.tolist(), numbers.split(counts.tolist())):
        yield batch * step, rows
