"""Recommending as it is measured: one list over all items for every user, and no metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from recbole.data.dataloader import FullSortEvalDataLoader

from recbole_prune.data.random_streams import preserved_random_streams
from recbole_prune.scoring.probe import attributes_of, set_attributes
from recbole_prune.training.trainer import MaskAwareTrainer

if TYPE_CHECKING:
    from recbole.data.dataloader import AbstractDataLoader
    from recbole.trainer import Trainer


@contextmanager
def nothing_changed(trainer: Trainer, loader: AbstractDataLoader) -> Iterator[None]:
    """Put random streams, the loader's place and what the model keeps back as they were."""
    attributes = attributes_of(trainer.model)
    with preserved_random_streams([loader]), torch.no_grad():
        trainer.model.eval()
        try:
            yield
        finally:
            set_attributes(attributes)


def list_maker(trainer: Trainer, loader: AbstractDataLoader) -> Callable[[], int] | None:
    """What makes the list of every user: scores, leaving out what the user has had, the best items.

    A mask-aware trainer makes them as it evaluates, in blocks of users where it does that; RecBole's by its batches.
    Both must have evaluated before, so that what a model propagates once is there. Use it in :func:`nothing_changed`.

    Returns:
        a function that makes the lists and says how many; None where not all items are ranked.
    """
    if not isinstance(loader, FullSortEvalDataLoader):
        return None
    k = min(max(trainer.config["topk"]), loader._dataset.item_num)
    blocks = trainer._block_evaluation.blocks(loader) if isinstance(trainer, MaskAwareTrainer) else None
    if blocks is not None:
        ranker, users = blocks.ranker, len(blocks.ranker.rows)

        def by_blocks() -> int:
            for start in range(0, users, ranker.block_users):
                ranker.rank(start, min(start + ranker.block_users, users), k)
            return users

        return by_blocks

    def by_batches() -> int:
        return sum(_lists(trainer, batch, k) for batch in loader)

    return by_batches


def _lists(trainer: Trainer, batch: tuple[Any, ...], k: int) -> int:
    """Lists of a batch of RecBole's."""
    scores = trainer._full_sort_batch_eval(batch)[1]
    return len(torch.topk(scores, k, dim=-1).indices)


def latency(trainer: Trainer, loader: AbstractDataLoader, users: int) -> dict[str, Any] | None:
    """Seconds that the list of one user takes, one at a time, over evenly spread users.

    Returns:
        ``latency_median_s``, ``latency_p95_s``, ``users`` and ``threads``; None where not all items are ranked.
    """
    if not (users and isinstance(loader, FullSortEvalDataLoader)):
        return None
    k = min(max(trainer.config["topk"]), loader._dataset.item_num)
    count = len(loader._dataset) if loader.is_sequential else len(loader.uid_list)
    rows = torch.unique(torch.linspace(0, count - 1, users).long()).tolist()
    batches = [loader.collate_fn([row]) for row in rows]
    cuda = trainer.device.type == "cuda"
    _lists(trainer, batches[0], k)
    if cuda:
        torch.cuda.synchronize(trainer.device)
    seconds = []
    for batch in batches:
        start = perf_counter()
        _lists(trainer, batch, k)
        if cuda:
            torch.cuda.synchronize(trainer.device)
        seconds.append(perf_counter() - start)
    late = sorted(seconds)[max(0, -(-95 * len(seconds) // 100) - 1)]
    return {
        "latency_median_s": median(seconds),
        "latency_p95_s": late,
        "users": len(seconds),
        "threads": torch.get_num_threads(),
    }
