"""RecBole's training batches, bit for bit and from the same random streams, without its Python loops per row.

RecBole lets torch pick single numbers out of a list, turns tensors of row numbers into Python lists to index with them,
and tests every negative in a Python set. The loaders below are RecBole's, with rows gathered by ``index_select``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import islice
from logging import getLogger
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from recbole.data.dataloader import KnowledgeBasedDataLoader, TrainDataLoader, UserDataLoader
from recbole.data.dataloader.knowledge_dataloader import KGDataLoader
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.data.transform import Equal
from recbole.utils import KGDataLoaderState
from torch import nn
from torch.utils.data import BatchSampler, RandomSampler

from recbole_prune.data.samplers import convert_sampler

if TYPE_CHECKING:
    from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
    from typing_extensions import TypeGuard

_Index = TypeVar("_Index")


def assemble_batches_fast(train_data: AbstractDataLoader) -> None:
    """Make a training loader of RecBole yield the same batches in less time, in place.

    Covers ``TrainDataLoader`` (pairwise, pointwise and no negatives, dynamic sampling, transforms, user and item
    features), ``UserDataLoader`` and both loaders inside ``KnowledgeBasedDataLoader``, with any number of workers.
    Anything else, a dataset with its own way of indexing included, is left as it is.

    Args:
        train_data: the first of the loaders that ``data_preparation`` returns, before it is iterated.
    """
    if type(train_data) is KnowledgeBasedDataLoader:
        assemble_batches_fast(train_data.general_dataloader)
        assemble_batches_fast(train_data.kg_dataloader)
        return
    fast_class = _FAST_CLASSES.get(type(train_data))
    dataset_class = type(train_data._dataset)
    own_indexing = (dataset_class.__getitem__, dataset_class.join) != (Dataset.__getitem__, Dataset.join)
    if fast_class is None or own_indexing:
        getLogger().debug(f"batches of {type(train_data).__name__} over {dataset_class.__name__}: RecBole's own way")
        return
    sampler = train_data._sampler
    if sampler is not None and not convert_sampler(sampler):
        getLogger().debug(f"negatives of {type(sampler).__name__}: its own way")
    _use_arrays(train_data)
    train_data.__class__ = fast_class
    if hasattr(train_data, "sampling_func"):
        train_data.sampling_func = getattr(train_data, train_data.sampling_func.__name__)


def first_batch(train_data: AbstractDataLoader, model: nn.Module) -> Interaction:
    """The first training batch; arguments as for :func:`first_batches`."""
    return first_batches(train_data, model, 1)[0]


def first_batches(train_data: AbstractDataLoader, model: nn.Module, count: int) -> list[Interaction]:
    """The first training batches; of a knowledge graph such with interactions and triples.

    Args:
        train_data: a training loader; its position in random streams moves.
        model: scores the candidates of dynamic negative sampling.
        count: how many, or as many as there are.
    """
    if hasattr(train_data, "set_mode"):
        train_data.set_mode(KGDataLoaderState.RSKG)
    if not hasattr(train_data, "get_model"):
        return list(islice(train_data, count))
    train_data.get_model(model)
    try:
        return list(islice(train_data, count))
    finally:
        train_data.get_model(None)  # a loader that keeps the model would keep its tables in memory


def _use_arrays(loader: AbstractDataLoader) -> None:
    """Let torch's DataLoader handle one array of row numbers per batch instead of thousands of integers."""
    sampler, stock = loader.sampler, loader.batch_sampler
    if type(sampler) is RandomSampler:
        sampler.data_source = range(len(sampler.data_source))  # RecBole's is a list of that many integers
    # torch refuses to set these after construction, since they must fit each other: they do
    vars(loader)["batch_sampler"] = ArrayBatchSampler(sampler, stock.batch_size, stock.drop_last)
    vars(loader)["dataset"] = _Echo(len(sampler))
    del vars(loader)["collate_fn"]  # the class's own, then, not RecBole's bound at construction


class _Echo:
    """A dataset whose entry at an index is the index; the loader's ``collate_fn`` knows the rows."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: _Index) -> _Index:
        return index


class ArrayBatchSampler(BatchSampler):
    """torch's ``BatchSampler`` whose batch is a list of one tensor of row numbers, shape ``(rows,)``.

    The order, the batches and the draws from the sampler's generator are torch's.
    """

    def __iter__(self) -> Iterator[list[Any]]:
        if _is_plain_shuffle(self.sampler) and not self.drop_last and _permutations_per_epoch():
            return self._shuffled(self.sampler)
        return ([torch.tensor(batch)] for batch in super().__iter__())

    def _shuffled(self, sampler: RandomSampler) -> Iterator[list[Any]]:
        """What a ``RandomSampler`` without replacement yields, not through Python integers."""
        rows = len(sampler.data_source)
        order = torch.randperm(rows, generator=sampler.generator)
        for start in range(0, rows, self.batch_size):
            if start + self.batch_size > rows:  # torch looks for more rows before it hands out a short batch
                _draw_rest(sampler)
            yield [order[start : start + self.batch_size]]
        if rows % self.batch_size == 0:
            _draw_rest(sampler)


def _is_plain_shuffle(sampler: object) -> TypeGuard[RandomSampler]:
    return (
        type(sampler) is RandomSampler
        and sampler.generator is not None
        and not sampler.replacement
        and sampler.num_samples == len(sampler.data_source)
    )


def _draw_rest(sampler: RandomSampler) -> None:
    for _ in range(_permutations_per_epoch() - 1):
        torch.randperm(len(sampler.data_source), generator=sampler.generator)


@cache
def _permutations_per_epoch() -> int:
    """How many permutations torch's ``RandomSampler`` draws for one pass (2 since torch 1.9, all but the first unused).

    0 if this torch does it in another way.
    """
    generator = torch.Generator().manual_seed(0)
    order = list(RandomSampler(range(5), generator=generator))
    own = torch.Generator().manual_seed(0)
    if torch.randperm(5, generator=own).tolist() != order:
        return 0
    for drawn in (1, 2, 3):
        if torch.equal(own.get_state(), generator.get_state()):
            return drawn
        torch.randperm(5, generator=own)
    return 0


def _rows(index: list[Any]) -> torch.Tensor:
    """Row numbers of a batch as the loader gets them: one tensor, or the integers of another batch sampler."""
    return index[0] if len(index) == 1 and isinstance(index[0], torch.Tensor) else torch.tensor(index)


def _gather(table: Interaction, rows: torch.Tensor) -> Interaction:
    """``table[rows]`` of an Interaction, new tensors."""
    return Interaction({name: column.index_select(0, rows) for name, column in table.interaction.items()})


def _join(dataset: Dataset, batch: Interaction) -> Interaction:
    """``dataset.join(batch)``: add the features of the batch's users and items."""
    if dataset.user_feat is not None and dataset.uid_field in batch:
        batch.update(_gather(dataset.user_feat, batch[dataset.uid_field]))
    if dataset.item_feat is not None and dataset.iid_field in batch:
        batch.update(_gather(dataset.item_feat, batch[dataset.iid_field]))
    return batch


class FastTrainDataLoader(TrainDataLoader):
    """RecBole's ``TrainDataLoader``."""

    def collate_fn(self, index: list[Any]) -> Interaction:
        """The batch of some row numbers, with features and negatives; ``index`` as in :func:`_rows`."""
        batch = _gather(self._dataset.inter_feat, _rows(index))
        if not self._joins_later():
            batch = _join(self._dataset, batch)
        return self._neg_sampling(self.transform(self._dataset, batch))

    def _joins_later(self) -> bool:
        """Whether negatives are appended as rows and nobody looks at features before they are joined to all rows."""
        func = getattr(self, "sampling_func", None)
        pointwise = func is not None and func.__name__ == "_neg_sample_by_point_wise_sampling"
        return pointwise and type(self.transform) is Equal and not self.neg_sample_args.get("dynamic", False)

    def _neg_sample_by_pair_wise_sampling(self, inter_feat: Interaction, neg_item_ids: torch.Tensor) -> Interaction:
        if self.times > 1:
            inter_feat = inter_feat.repeat(self.times)
        negatives = _join(self._dataset, Interaction({self.iid_field: neg_item_ids}))
        negatives.add_prefix(self.neg_prefix)
        inter_feat.update(negatives)
        return inter_feat

    def _neg_sample_by_point_wise_sampling(self, inter_feat: Interaction, neg_item_ids: torch.Tensor) -> Interaction:
        positives = len(inter_feat)
        batch = inter_feat.repeat(self.times)
        batch[self.iid_field][positives:] = neg_item_ids
        batch = _join(self._dataset, batch)
        labels = torch.zeros(positives * self.times)
        labels[:positives] = 1.0
        batch.update(Interaction({self.label_field: labels}))
        return batch


class FastUserDataLoader(UserDataLoader):
    """RecBole's ``UserDataLoader``."""

    def collate_fn(self, index: list[Any]) -> Interaction:
        """The batch of some users."""
        return _gather(self.user_list, _rows(index))


class FastKGDataLoader(KGDataLoader):
    """RecBole's ``KGDataLoader``."""

    def collate_fn(self, index: list[Any]) -> Interaction:
        """The batch of some triples, with a drawn tail for each."""
        batch = _gather(self._dataset.kg_feat, _rows(index))
        heads = batch[self.hid_field].numpy()
        tails = self._sampler.sample_by_entity_ids(heads, self.neg_sample_num)
        batch.update(Interaction({self.neg_tid_field: tails}))
        return batch


_FAST_CLASSES: dict[type, type] = {
    TrainDataLoader: FastTrainDataLoader,
    UserDataLoader: FastUserDataLoader,
    KGDataLoader: FastKGDataLoader,
}
