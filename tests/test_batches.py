"""Fast batches and negatives equal RecBole's own, bit for bit, and leave every random stream where RecBole does."""

from __future__ import annotations

import copy
import pickle
import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader, TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.sampler import Sampler
from recbole.sampler.sampler import AbstractSampler
from recbole.utils import KGDataLoaderState, get_model, init_seed
from zoo import DATASET, config_for

from recbole_prune.bench.plain import PlainData
from recbole_prune.data import used_ids
from recbole_prune.data.batches import ArrayBatchSampler, assemble_batches_fast
from recbole_prune.data.samplers import ArraySampler, convert_sampler, samplers_over_arrays
from recbole_prune.data.used_ids import UsedIds
from recbole_prune.data.user_uniform import sample_users_uniformly
from recbole_prune.errors import PruneError

FEATURES = {"user": ["user_id", "age", "gender"], "item": ["item_id", "release_year", "class"]}
INTERACTIONS = {"inter": ["user_id", "item_id", "rating", "timestamp"]}


def negatives(**changes: Any) -> dict[str, Any]:
    arguments = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0}
    return {"train_neg_sample_args": {**arguments, **changes}}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "pairwise": ("BPR", {}),
    "pairwise, three negatives": ("BPR", negatives(sample_num=3)),
    "pairwise, features": ("BPR", {"load_col": {**INTERACTIONS, **FEATURES}}),
    "pairwise, popularity": ("BPR", negatives(distribution="popularity")),
    "pairwise, popularity damped": ("BPR", negatives(distribution="popularity", alpha=0.7, sample_num=2)),
    "pairwise, repeatable": ("BPR", {"repeatable": True, **negatives(sample_num=2)}),
    "pairwise, dynamic": ("BPR", negatives(dynamic=True, candidate_num=3)),
    "one row per batch": ("BPR", {"train_batch_size": 1, "user_inter_num_interval": "[0,27]"}),
    "rows fill the batches": ("BPR", {"train_batch_size": 7}),
    "not shuffled": ("BPR", {"shuffle": False}),
    "pointwise": ("NeuMF", {}),
    "pointwise, four negatives, features": (
        "NeuMF",
        {"load_col": {**INTERACTIONS, **FEATURES}, **negatives(sample_num=4)},
    ),
    "pointwise, dynamic": ("NeuMF", negatives(dynamic=True, candidate_num=2)),
    "context, labels": ("FM", {}),
    "users": ("MultiVAE", {}),
    "sequences": ("SASRec", {}),
    "sequences, pairwise": ("GRU4Rec", {"loss_type": "BPR", **negatives()}),
    "sequences, transform": ("BERT4Rec", {}),
    "sequences, features": ("FDSA", {}),
}


def loaders_of(model: str, data: Path, settings: dict[str, Any], arrays: bool) -> list[Any]:
    """The three loaders, RecBole's own or ours."""
    config = Config(model, DATASET, config_dict={**config_for(model, data), **settings})
    with samplers_over_arrays() if arrays else nullcontext():
        loaders = PlainData(config).loaders
    if arrays:
        assemble_batches_fast(loaders[0])
    return loaders


def streams(loader: Any) -> list[Any]:
    return [random.random(), np.random.random(), torch.rand(1), loader.generator.get_state()]


def assert_equal(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(theirs, Interaction):
        assert ours.columns == theirs.columns and len(ours) == len(theirs)
        for name in theirs.columns:
            assert ours[name].dtype == theirs[name].dtype, name
            assert torch.equal(ours[name], theirs[name]), name
    elif isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs):
            assert_equal(one, other)
    else:
        assert ours == theirs


def batches(loader: Any, epochs: int = 2) -> list[Any]:
    init_seed(5, True)
    return [copy.deepcopy(batch) for _ in range(epochs) for batch in loader]


QUICK = (
    "pairwise",
    "pairwise, dynamic",
    "pointwise, four negatives, features",
    "context, labels",
    "users",
    "sequences",
)


@pytest.mark.parametrize("case", slow_but(QUICK, CASES))
def test_batches_and_streams_equal_recboles(case: str, tiny_data: Path) -> None:
    model, settings = CASES[case]
    ours, theirs = (loaders_of(model, tiny_data, settings, arrays)[0] for arrays in (True, False))
    if "dynamic" in case:
        for loader in (ours, theirs):
            init_seed(1, True)
            loader.get_model(get_model(model)(loader.config, loader._dataset))
    assert isinstance(ours.batch_sampler, ArrayBatchSampler) and not isinstance(theirs.batch_sampler, ArrayBatchSampler)
    assert len(ours) == len(theirs)
    for _ in range(2):  # the second time from where the first left the loaders' generators
        drawn = [(batches(loader), streams(loader)) for loader in (ours, theirs)]
        assert_equal(*drawn)


@pytest.mark.parametrize("state", list(KGDataLoaderState))
def test_knowledge_graph_batches_equal_recboles(state: KGDataLoaderState, tiny_data: Path) -> None:
    settings = negatives(distribution="popularity") if state is KGDataLoaderState.RSKG else {}
    ours, theirs = (loaders_of("CKE", tiny_data, settings, arrays)[0] for arrays in (True, False))
    for loader in (ours, theirs):
        loader.set_mode(state)
    assert_equal(batches(ours), batches(theirs))
    for name in ("general_dataloader", "kg_dataloader"):
        assert isinstance(getattr(ours, name).batch_sampler, ArrayBatchSampler)
        assert_equal(streams(getattr(ours, name))[3], streams(getattr(theirs, name))[3])


@pytest.mark.multiprocess
def test_worker_processes_yield_the_same_batches(tiny_data: Path) -> None:
    ours, theirs = (loaders_of("BPR", tiny_data, {"worker": 1}, arrays)[0] for arrays in (True, False))
    assert_equal(batches(ours, epochs=1), batches(theirs, epochs=1))


@pytest.mark.parametrize(
    "settings",
    [{}, {"eval_args": {"split": {"RS": [8, 1, 1]}, "mode": "uni10"}, "metrics": ["AUC"], "valid_metric": "AUC"}],
)
def test_evaluation_loaders_stay_equal(settings: dict[str, Any], tiny_data: Path) -> None:
    ours, theirs = (loaders_of("BPR", tiny_data, settings, arrays)[1:] for arrays in (True, False))
    for mine, recboles in zip(ours, theirs):
        for one, other in zip(batches(mine, epochs=1), batches(recboles, epochs=1)):
            if settings:
                # RecBole concatenates its columns in the order of a set of strings
                assert {name: one[0][name].tolist() for name in one[0]} == {
                    name: other[0][name].tolist() for name in other[0]
                }
                assert_equal(one[1:], other[1:])
            else:
                assert_equal(one[0], other[0])
                for (rows, items), (other_rows, other_items) in ((one[1], other[1]), (one[2:], other[2:])):
                    pairs = set(zip(rows.tolist(), items.tolist()))
                    assert pairs == set(zip(other_rows.tolist(), other_items.tolist())) and len(pairs) == len(rows)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("BPR", {}),
        ("BPR", {"repeatable": True}),
        ("BPR", {"eval_args": {"split": {"RS": [9, 1, 0]}, "mode": "full"}}),
        ("CKE", {}),
        ("SASRec", {}),
    ],
)
def test_full_sort_loaders_hold_what_recboles_do(model: str, settings: dict[str, Any], tiny_data: Path) -> None:
    ours, theirs = (loaders_of(model, tiny_data, settings, arrays)[1:] for arrays in (True, False))
    for mine, recboles in zip(ours, theirs):
        assert type(mine) is type(recboles) is FullSortEvalDataLoader and vars(mine).keys() == vars(recboles).keys()
        assert (len(mine), mine.step, mine.sample_size) == (len(recboles), recboles.step, recboles.sample_size)
        if mine.is_sequential:
            continue
        assert_equal(mine.user_df, recboles.user_df)
        assert_equal(mine.uid_list, recboles.uid_list)
        assert mine.uid2items_num.tolist() == recboles.uid2items_num.tolist()
        for name in ("uid2positive_item", "uid2history_item"):
            one, other = (
                [None if ids is None else (sorted(ids.tolist()), ids.dtype) for ids in getattr(loader, name)]
                for loader in (mine, recboles)
            )
            assert one == other
        # tensors that share memory are pickled with all of it
        assert len(pickle.dumps(mine.uid2history_item)) <= len(pickle.dumps(recboles.uid2history_item)) + 100


def test_samplers_that_recbole_built_are_converted(tiny_data: Path) -> None:
    for settings in ({}, negatives(distribution="popularity"), {"repeatable": True}):
        ours, theirs = (loaders_of("BPR", tiny_data, settings, arrays=False)[0] for _ in range(2))
        assert convert_sampler(ours._sampler)
        for loader in (ours, theirs):
            np.random.seed(3)
            users, items = (loader._dataset.inter_feat[f].numpy()[:300] for f in ("user_id", "item_id"))
            loader.drawn = loader._sampler.sample_by_user_ids(users, items, 4)
        assert torch.equal(ours.drawn, theirs.drawn)


def test_plain_recbole_stays_plain(tiny_data: Path) -> None:
    loaders_of("BPR", tiny_data, {}, arrays=True)
    theirs = loaders_of("BPR", tiny_data, {}, arrays=False)[0]
    assert type(theirs) is TrainDataLoader and type(theirs._sampler) is Sampler
    assert isinstance(theirs._sampler.used_ids[1], set)


def test_used_ids_read_like_recboles(tiny_data: Path) -> None:
    ours, theirs = (loaders_of("BPR", tiny_data, {}, arrays) for arrays in (True, False))
    for mine, recboles in zip(ours, theirs):
        used, sets = mine._sampler.used_ids, recboles._sampler.used_ids
        assert isinstance(used, UsedIds) and len(used) == len(sets)
        assert [used[user] for user in range(len(sets))] == list(sets)
        assert list(used[np.array([5, 3, 3])]) == list(sets[np.array([5, 3, 3])])
    # a user's test history holds his earlier phases
    assert ours[0]._sampler.used_ids[1] < ours[2]._sampler.used_ids[1]


def answers(used: UsedIds, keys: np.ndarray, values: np.ndarray) -> list[bool]:
    """In numpy and, where numba is installed, by its loop, which must agree."""
    found = []
    for loop in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(used_ids, "pays", lambda seconds, loop=loop: loop)
            found.append(used.contains(keys, values).tolist())
    assert found[0] == found[1]
    return found[0]


@given(
    pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8)), max_size=40),
    questions=st.lists(st.tuples(st.integers(0, 6), st.integers(-1, 8)), max_size=40),
)
def test_membership_is_that_of_sets(pairs: list[tuple[int, int]], questions: list[tuple[int, int]]) -> None:
    columns = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    used = UsedIds(columns[:, 0], columns[:, 1], 7, 9)
    asked = np.array(questions, dtype=np.int64).reshape(-1, 2)
    assert answers(used, asked[:, 0], asked[:, 1]) == [question in set(pairs) for question in questions]
    sets = [{value for key, value in pairs if key == user} for user in range(7)]
    assert [used[user] for user in range(7)] == sets
    assert (UsedIds.from_sets(np.array(sets), 9).codes == used.codes).all()


def test_membership_over_two_million_users() -> None:
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 2_000_000, (2, 100_000))
    used = UsedIds(users, items, 2_000_000, 2_000_000)
    assert all(answers(used, users, items))
    others = generator.integers(0, 2_000_000, 100_000)
    pairs = set(zip(users.tolist(), items.tolist()))
    expected = [pair in pairs for pair in zip(users.tolist(), others.tolist())]
    assert answers(used, users, others) == expected
    assert used.codes.nbytes + used._bits.nbytes <= 11 * len(users)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize(("key", "value"), [(-1, 2), (7, 2), (1, 9), (6, 10**15)])
def test_a_pair_out_of_range_is_refused(key: int, value: int, loop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(used_ids, "pays", lambda seconds: loop)
    used = UsedIds(np.array([1]), np.array([2]), 7, 9)
    with pytest.raises(IndexError, match="out of range for 7 keys"):
        used.contains(np.array([1, key]), np.array([2, value]))


def test_unknown_user_is_refused_like_in_recbole(tiny_data: Path) -> None:
    ours, theirs = (loaders_of("BPR", tiny_data, {}, arrays)[0]._sampler for arrays in (True, False))
    users = np.array([1, 100_000])
    for sampler in (ours, theirs):
        with pytest.raises(ValueError, match=r"user_id \[100000\] not exist"):
            sampler.sample_by_user_ids(users, users, 1)


def test_user_of_every_item_is_refused_like_in_recbole() -> None:
    class Everything:
        uid_field, iid_field, user_num, item_num = "u", "i", 3, 4
        inter_feat = Interaction({"u": torch.tensor([1, 1, 1, 2]), "i": torch.tensor([1, 2, 3, 3])})

    for sampler in (Sampler, ArraySampler):
        with pytest.raises(ValueError, match="interacted with all items") as caught:
            sampler(["train"], [Everything()])
        assert isinstance(caught.value, PruneError) == (sampler is ArraySampler), "no fault of this package"


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@given(seed=st.integers(0, 1000))
def test_alias_table_is_recboles(alpha: float, seed: int) -> None:
    class Drawn(AbstractSampler):
        def __init__(self) -> None:
            generator = np.random.default_rng(seed)
            self.items = list(generator.zipf(1.5, 60) % 30 + 1)
            super().__init__("popularity", alpha)

        def _get_candidates_list(self) -> list[Any]:
            return self.items

        def get_used_ids(self) -> Any:
            return None

    class Ours(Drawn):
        _build_alias_table = ArraySampler._build_alias_table
        _set_alias_table = ArraySampler._set_alias_table

    theirs, ours = Drawn(), Ours()
    assert ours._alias_keys.tolist() == list(theirs.prob)
    assert ours._alias_prob.tolist() == list(theirs.prob.values())
    assert ours._alias.tolist() == list(theirs.alias.values())


def test_uniform_users_on_top(tiny_data: Path) -> None:
    ours, theirs = (loaders_of("BPR", tiny_data, {}, arrays)[0] for arrays in (True, False))
    for loader in (ours, theirs):
        sample_users_uniformly(loader, loader.config)
    assert_equal(batches(ours), batches(theirs))


@pytest.mark.parametrize("model", ["BPR", "MultiVAE"])
def test_copies_yield_the_same_batches(model: str, tiny_data: Path) -> None:
    loader = loaders_of(model, tiny_data, {}, arrays=True)[0]
    expected = batches(loader, epochs=1)
    state = loader.generator.get_state()
    loader.generator = loader.sampler.generator = None  # as RecBole does before it pickles a loader
    again = pickle.loads(pickle.dumps(loader))
    again.generator = again.sampler.generator = torch.Generator()
    again.generator.manual_seed(loader.config["seed"])
    assert_equal(batches(again, epochs=1), expected)
    assert torch.equal(again.generator.get_state(), state)


def test_unknown_loaders_are_left_alone(tiny_data: Path) -> None:
    loader = loaders_of("BPR", tiny_data, {}, arrays=False)[0]

    class Own(TrainDataLoader):
        pass

    loader.__class__ = Own
    before = dict(vars(loader))
    assemble_batches_fast(loader)
    assert type(loader) is Own and vars(loader) == before
