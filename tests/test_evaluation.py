"""Evaluation in blocks, and the collector, give RecBole's digits: every metric, ties and empty rows included."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import training_bench
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow_but
from recbole.evaluator import Collector
from recbole.evaluator.register import metric_information, metric_types
from recbole.trainer import Trainer
from recbole.utils import EvaluatorType, get_model, init_seed
from training_bench import Bench, scramble_random_streams

from recbole_prune.masking.masks import MaskSet
from recbole_prune.scoring import evaluation, ranking
from recbole_prune.scoring.collector import find_hits
from recbole_prune.scoring.evaluation import UserBlocks
from recbole_prune.scoring.ranking import DenseRanker, ScanRanker, SearchRanker, top_k
from recbole_prune.sparse import compiling, inverted_lists
from recbole_prune.training.trainer import Session, mask_aware_trainer

RANKING = sorted(name for name, kind in metric_types.items() if kind == EvaluatorType.RANKING)
# GAUC needs the rank of every positive, so RecBole's batches are taken for it
OF_TOP_ITEMS = [name for name in RANKING if name != "gauc"]
TOPK = [1, 5, 10, 20]
USERS, ITEMS = 60, 40  # without padding

WAYS = ["scan", "search", "dense", "groups", "torch"]


@pytest.fixture(scope="module")
def dense_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a data set whose users have had 3 to 39 of 40 items; the first ones all but one."""
    folder = tmp_path_factory.mktemp("dense")
    generator = np.random.default_rng(3)
    rows = []
    for user in range(USERS):
        count = ITEMS - 1 if user < 6 else int(generator.integers(3, ITEMS))
        for item in generator.choice(ITEMS, count, replace=False):
            rows.append((f"u{user}", f"i{item}", int(generator.integers(1, 6)), len(rows)))
    names = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    (folder / training_bench.DATASET).mkdir()
    pd.DataFrame(rows, columns=names).to_csv(
        folder / training_bench.DATASET / f"{training_bench.DATASET}.inter", sep="\t", index=False
    )
    return folder


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], type]:
    """Make evaluations rank in one of the ``WAYS``, in several blocks; the class that ranks then."""

    def choose(way: str) -> type:
        if way in ("scan", "search", "dense") and not compiling.available():
            pytest.skip("numba is not installed: there are no compiled loops to test")
        monkeypatch.setattr(evaluation, "DENSEST_SCAN", 1.0 if way == "scan" else -1.0)
        if way in ("groups", "torch"):
            monkeypatch.setattr(evaluation, "available", lambda: False)
            monkeypatch.setattr(ranking, "available", lambda: False)
        # 40 items are 64 columns: a row is one group, or enough of them to be looked at by groups
        monkeypatch.setattr(ranking, "_GROUP", 2 if way == "groups" else 64)
        monkeypatch.setattr(ranking, "_BLOCK_SCORES", {"cpu": 1, "cuda": 1})
        for module, name in ((ranking, "_LEAST_USERS"), (ranking, "_SCANNED_USERS")):
            monkeypatch.setattr(module, name, 7)
        monkeypatch.setattr(inverted_lists, "_USERS_AT_ONCE", 3)
        if way == "search":
            for name in ("_LEAST_PRODUCTS", "_LEAST_ROWS"):
                monkeypatch.setattr(ranking, name, 0)
            monkeypatch.setattr(ranking, "_SEARCHED_SHARE", np.inf)
        return {"scan": ScanRanker, "search": SearchRanker}.get(way, DenseRanker)

    return choose


def bench(model: str, data: Path, **changes: Any) -> Bench:
    chosen = {
        "metrics": OF_TOP_ITEMS,
        "valid_metric": "mrr@1",
        "topk": TOPK,
        "metric_decimal_place": 10,
        "eval_args": {"split": {"RS": [0.6, 0.2, 0.2]}, "mode": "full"},
        **changes,
    }
    return Bench(model, data, **{name: value for name, value in chosen.items() if value is not None})


def some_masks(base: Bench) -> MaskSet:
    """Of a third of the rows no entry lives, of the others a quarter."""
    scope = base.scope()
    generator = torch.Generator().manual_seed(5)
    masks = {}
    for target in scope:
        live = torch.rand(target.shape, generator=generator) < 0.25
        live[torch.rand(len(live), generator=generator) < 0.34] = False
        live[list(target.padding_rows)] = True
        masks[target.name] = live
    return MaskSet(scope, masks)


def weighted(base: Bench, kind: str, storage: str = "masked") -> Any:
    """A mask-aware model with random embeddings: ``dense``, ``pruned``, ``whole`` numbers, ``twins`` or ``near``."""
    model = base.model(some_masks(base) if kind == "pruned" else None, storage)
    generator = torch.Generator().manual_seed(6)
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith("embedding.weight"):
            values = torch.randn(tensor.shape, generator=generator)
            if kind == "whole":
                values = values.round()
            if kind in ("twins", "near"):  # items 2n and 2n + 1 score alike, or differ in the last bit
                factor = 1.0 if kind == "twins" else 1 + 1.2e-7
                values[1::2] = values[0::2][: len(values[1::2])] * factor
            state[name] = values
    model.load_state_dict(state)
    model.apply_masks()
    return model


class PlainCollector(Collector):
    """RecBole's collector, which ends metrics of coverage and popularity by moving plain numbers to the CPU."""

    def get_data_struct(self) -> Any:
        plain = {k: v for k, v in self.data_struct._data_dict.items() if not isinstance(v, torch.Tensor)}
        for name in plain:
            del self.data_struct[name]
        collected = super().get_data_struct()
        for name, value in plain.items():
            self.data_struct.set(name, value)
            collected.set(name, value)
        return collected


def keep_collected(trainer: Any) -> Any:
    """The trainer; what its metrics are computed from is put into ``trainer.collected``."""
    evaluate = trainer.evaluator.evaluate

    def spy(collected: Any) -> Any:
        trainer.collected = collected
        return evaluate(collected)

    trainer.evaluator.evaluate = spy
    return trainer


def plain_trainer(base: Bench, model: Any) -> Any:
    """RecBole's trainer and model with the same weights."""
    plain = base.plain.build_model()
    plain.load_state_dict(model.state_dict())
    trainer = base.plain.build_trainer(plain)
    trainer.eval_collector = PlainCollector(base.config)
    trainer.eval_collector.data_collect(base.train)
    return keep_collected(trainer)


def blocks_of(trainer: Any, loader: Any) -> UserBlocks | None:
    found: UserBlocks | None = trainer._block_evaluation.blocks(loader)
    return found


def assert_same(base: Bench, model: Any, ranker: type | None) -> None:
    """Validation and test: results digit by digit, lists item by item, in the way of ``ranker`` (None: RecBole's)."""
    ours, plain = keep_collected(base.trainer(model)), plain_trainer(base, model)
    for loader in (base.valid, base.test):
        blocks = blocks_of(ours, loader)
        assert (type(blocks.ranker) if blocks else None) is ranker
        results = []
        for trainer in (ours, plain):
            init_seed(7, True)
            results.append(trainer.evaluate(loader, load_best_model=False))
        assert list(results[0].items()) == list(results[1].items())
        assert any(0 < value < 1 for value in results[1].values())
        for name, value in plain.collected._data_dict.items():
            same = ours.collected.get(name)
            assert torch.equal(same, value) if isinstance(value, torch.Tensor) else same == value, name


@pytest.mark.parametrize("way", slow_but(["scan", "search", "torch"], WAYS))
@pytest.mark.parametrize("weights", ["dense", "pruned", "whole", "twins"])
@pytest.mark.parametrize("model", slow_but(["BPR"], ["BPR", "LightGCN", "NGCF"]))
def test_every_metric_of_the_best_items(
    model: str, weights: str, way: str, dense_data: Path, take: Callable[[str], type]
) -> None:
    ranker = take(way)
    base = bench(model, dense_data)
    assert_same(base, weighted(base, weights), ranker)


@pytest.mark.parametrize("way", slow_but(["scan", "search", "torch"], WAYS))
@pytest.mark.parametrize("weights", ["pruned", "near"])
@pytest.mark.parametrize("users", slow_but([13], [1, 2, 13]))
@pytest.mark.parametrize("width", [5, 64])
def test_whatever_the_size_of_recboles_batches(
    width: int, users: int, weights: str, way: str, dense_data: Path, take: Callable[[str], type]
) -> None:
    """Which of two equal items a matrix product puts first depends on its number of rows."""
    ranker = take(way)
    base = bench("BPR", dense_data, embedding_size=width, eval_batch_size=users * (ITEMS + 1))
    assert base.valid.step == users
    assert_same(base, weighted(base, weights), ranker)


@pytest.mark.parametrize("metrics", [OF_TOP_ITEMS, ["recall", "mrr", "ndcg", "map"]], ids=["lists", "hits"])
@pytest.mark.parametrize("way", slow_but(["scan", "search", "torch"], WAYS))
@pytest.mark.parametrize("users", slow_but([7], [1, 2, 7, 60]))
def test_rounding_that_differs_from_batch_to_batch(
    users: int,
    way: str,
    metrics: list[str],
    dense_data: Path,
    take: Callable[[str], type],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A product's last bits depend on its number of rows and on the place of a row: here much more often than so.

    Two neighbours that are no hits may then change places where only hits are counted.
    """
    ranker = take(way)
    base = bench("BPR", dense_data, eval_batch_size=users * (ITEMS + 1), metrics=metrics)
    predict = get_model("BPR").full_sort_predict

    def rounded_by_place(self: Any, interaction: Any) -> torch.Tensor:
        scores = predict(self, interaction).view(-1, ITEMS + 1)
        rows, items = torch.meshgrid(torch.arange(len(scores)), torch.arange(ITEMS + 1), indexing="ij")
        return (scores * (1 + 1.2e-7 * ((rows * 3 + items * 5 + len(scores)) % 4))).view(-1)

    monkeypatch.setattr(get_model("BPR"), "full_sort_predict", rounded_by_place)
    assert_same(base, weighted(base, "near"), ranker)


@pytest.mark.parametrize("weights", ["dense", "pruned"])
def test_metrics_that_need_all_scores(weights: str, dense_data: Path) -> None:
    base = bench("BPR", dense_data, metrics=RANKING)
    assert_same(base, weighted(base, weights), None)


@pytest.mark.parametrize("way", slow_but(["scan", "search", "torch"], WAYS))
@pytest.mark.parametrize("topk", [[1], [3, 40], [7, 41]])
def test_as_many_as_there_are_items(topk: list[int], way: str, dense_data: Path, take: Callable[[str], type]) -> None:
    """Some users have one item left; RecBole then ranks what they have had, in the order of its own sort."""
    ranker = take(way)
    base = bench("BPR", dense_data, topk=topk)
    left = base.test._dataset.item_num - 1 - np.array([len(base.test.uid2history_item[u]) for u in base.test.uid_list])
    assert base.test._dataset.item_num == ITEMS + 1 and left.min() < 10
    assert_same(base, weighted(base, "pruned"), ranker)


@pytest.mark.parametrize("way", slow_but(["scan", "search", "torch"], WAYS))
@pytest.mark.parametrize("model", slow_but(["BPR"], ["BPR", "LightGCN"]))
def test_compact_tables(model: str, way: str, dense_data: Path, take: Callable[[str], type]) -> None:
    ranker = take(way)
    base = bench(model, dense_data)
    compact_model = weighted(base, "pruned", "compact")
    assert evaluation.compact_modules(compact_model)
    assert_same(base, compact_model, ranker)


@pytest.mark.parametrize("way", slow_but(["scan", "search", "torch"], WAYS))
def test_an_entity_table_whose_first_rows_are_the_items(way: str, tiny_data: Path, take: Callable[[str], type]) -> None:
    ranker = take(way)
    # RecBole cannot count the items of a training loader with a knowledge graph
    counts = [name for name in OF_TOP_ITEMS if any(need.startswith("data.") for need in metric_information[name])]
    base = bench("KGAT", tiny_data, metrics=[name for name in OF_TOP_ITEMS if name not in counts])
    assert_same(base, weighted(base, "dense"), ranker)


@pytest.mark.parametrize("way", slow_but(["scan", "search", "torch"], WAYS))
@pytest.mark.parametrize("factor", [2.5, -0.125])
def test_scores_with_a_constant_factor(
    factor: float, way: str, dense_data: Path, take: Callable[[str], type], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = take(way)
    base = bench("BPR", dense_data)
    predict = get_model("BPR").full_sort_predict
    monkeypatch.setattr(get_model("BPR"), "full_sort_predict", lambda self, data: factor * predict(self, data))
    assert_same(base, weighted(base, "pruned"), ranker)


@pytest.mark.parametrize("way", ["scan", "search", "torch"])
def test_leave_one_out(way: str, dense_data: Path, take: Callable[[str], type]) -> None:
    ranker = take(way)
    split = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"}
    columns = {"inter": ["user_id", "item_id", "timestamp"]}
    base = bench("LightGCN", dense_data, eval_args=split, load_col=columns)
    assert int(base.valid.uid2items_num.max()) == 1
    assert_same(base, weighted(base, "pruned"), ranker)


@pytest.mark.parametrize("model", ["BPR", "NeuMF"])
def test_sampled_candidates(model: str, dense_data: Path) -> None:
    base = bench(model, dense_data, metrics=RANKING, eval_args={"split": {"RS": [0.6, 0.2, 0.2]}, "mode": "uni100"})
    assert_same(base, weighted(base, "dense"), None)


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec"])
def test_sequences(model: str, tiny_data: Path) -> None:
    split = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"}
    base = bench(model, tiny_data, metrics=RANKING, eval_args=split)
    assert_same(base, weighted(base, "pruned"), None)


@pytest.mark.parametrize("model", ["DeepFM", "LR"])
def test_metrics_of_values(model: str, tiny_data: Path) -> None:
    metrics = {"metrics": sorted(set(metric_types) - set(RANKING)), "valid_metric": "AUC", "topk": None}
    base = bench(model, tiny_data, **metrics, eval_args={"split": {"RS": [0.6, 0.2, 0.2]}, "mode": "labeled"})
    assert_same(base, base.model(some_masks(base)), None)


# ---- where RecBole's way is taken ------------------------------------------------------------------------------------


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The reasons that were logged."""
    caplog.set_level(logging.INFO)
    return lambda: [
        record.getMessage().partition("RecBole's batches: ")[2]
        for record in caplog.records
        if "RecBole's batches: " in record.getMessage()
    ]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("NeuMF", "NeuMF scores pairs of a user and an item one by one"),
        ("MultiDAE", "the scores of MultiDAE are not dot products of a user table and an item table"),
        ("DiffRec", "the scores of DiffRec are not dot products of a user table and an item table"),
        ("SASRec", "SASRec ranks for sequences, not for users"),
    ],
)
def test_other_models_say_once_why(model: str, reason: str, tiny_data: Path, said: Callable[[], list[str]]) -> None:
    """The digits are RecBole's and the random streams end where RecBole leaves them; DiffRec draws while it scores."""
    split = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"}
    noise = {"sampling_noise": True, "sampling_steps": 5} if model == "DiffRec" else {}
    base = bench(model, tiny_data, eval_args=split if model == "SASRec" else {"mode": "full"}, **noise)
    weights = base.model(None)
    ours, plain = keep_collected(base.trainer(weights)), plain_trainer(base, weights)
    ends = []
    for trainer in (ours, plain):
        init_seed(3, True)
        results = [trainer.evaluate(loader, load_best_model=False) for loader in (base.valid, base.test, base.valid)]
        ends.append((results, random.random(), np.random.random(), torch.rand(1).item()))
    assert ends[0] == ends[1]
    base.trainer(weights).evaluate(base.valid, load_best_model=False)  # the next ticket
    assert said() == [reason]


@pytest.mark.parametrize("every_batch", [False, True])
def test_random_numbers_of_scoring_are_drawn_as_recbole_draws_them(
    every_batch: bool, tiny_data: Path, said: Callable[[], list[str]]
) -> None:
    """KGIN draws edges for a table that it keeps: blocks leave table and streams as RecBole's first batch does."""
    base = bench("KGIN", tiny_data, eval_args={"mode": "full"}, metrics=["NDCG"], valid_metric="ndcg@1")
    ours, plain = keep_collected(base.trainer(base.model())), plain_trainer(base, base.model())
    ends = []
    for trainer in (ours, plain):
        score = trainer.model.full_sort_predict
        if every_batch:
            trainer.model.full_sort_predict = lambda batch, score=score: (torch.rand(1), score(batch))[1]
        init_seed(3, True)
        results = [trainer.evaluate(loader, load_best_model=False) for loader in (base.valid, base.test)]
        ends.append((results, random.random(), np.random.random(), torch.rand(1).item()))
        assert trainer.model.restore_user_e is not None
    assert ends[0] == ends[1]
    torch.testing.assert_close(ours.model.restore_user_e, plain.model.restore_user_e)
    assert said() == (["KGIN draws random numbers for every batch it scores"] if every_batch else [])


def test_a_table_of_zeros_says_so(dense_data: Path, said: Callable[[], list[str]]) -> None:
    base = bench("BPR", dense_data)
    model = base.model(None)
    model.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()})
    ours, plain = base.trainer(model), plain_trainer(base, model)
    assert ours.evaluate(base.valid, load_best_model=False) == plain.evaluate(base.valid, load_best_model=False)
    assert said() == ["BPR scored 0 for all users of a probe"]


def test_a_trainer_that_evaluates_in_its_own_way(dense_data: Path, said: Callable[[], list[str]]) -> None:
    class Own(Trainer):
        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            return "its own"

    base = bench("BPR", dense_data)
    model = base.model(None)
    trainer = mask_aware_trainer(Own)(base.config, model, Session("ticket 1", base.loaders))
    assert trainer.evaluate(base.valid, load_best_model=False) == "its own"
    assert said() == ["Own evaluates in a way of its own"]


def test_a_collector_of_ones_own(dense_data: Path, said: Callable[[], list[str]]) -> None:
    base = bench("BPR", dense_data)
    model = weighted(base, "dense")
    ours, plain = base.trainer(model), plain_trainer(base, model)
    ours.eval_collector = PlainCollector(base.config)
    ours.eval_collector.data_collect(base.train)
    assert ours.evaluate(base.valid, load_best_model=False) == plain.evaluate(base.valid, load_best_model=False)
    assert said() == ["the trainer has a collector of its own"]


# ---- what an evaluation leaves behind --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", slow_but(["scan", "search", "torch"], WAYS))
@pytest.mark.parametrize("model", ["BPR", "LightGCN"])
def test_random_streams_and_weights_stay(model: str, way: str, dense_data: Path, take: Callable[[str], type]) -> None:
    take(way)
    base = bench(model, dense_data)
    pruned = weighted(base, "pruned")
    trainer = base.trainer(pruned)
    weights = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    scramble_random_streams()
    expected = random.random(), np.random.random(), torch.rand(1).item()
    scramble_random_streams()
    for loader in (base.valid, base.test):
        assert blocks_of(trainer, loader) is not None
        trainer.evaluate(loader, load_best_model=False)
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected
    assert all(torch.equal(tensor, weights[name]) for name, tensor in pruned.state_dict().items())


def test_changed_weights_change_the_next_evaluation(dense_data: Path) -> None:
    """Nothing of the tables, lists or scores of one evaluation is used in the next."""
    base = bench("BPR", dense_data)
    model = weighted(base, "twins")
    trainer = base.trainer(model)
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            model.item_embedding.weight.copy_(torch.randn_like(model.item_embedding.weight).round())
        assert trainer.evaluate(base.valid, load_best_model=False) == plain_trainer(base, model).evaluate(
            base.valid, load_best_model=False
        )


# ---- top-k and hits --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["numba", "torch"])
def loops(request: pytest.FixtureRequest) -> Iterator[None]:
    """With compiled loops, and with torch's operations."""
    if request.param == "numba" and not compiling.available():
        pytest.skip("numba is not installed: there are no compiled loops to test")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(ranking, "available", lambda: False)
        yield


@pytest.mark.usefixtures("loops")
@settings(max_examples=60)
@given(
    seed=st.integers(0, 100_000),
    rows=st.integers(1, 6),
    groups=st.integers(1, 12),
    odd=st.integers(0, 1),
    whole=st.booleans(),
    k=st.integers(1, 64),
    share=st.sampled_from([0.0, 0.2, 0.97]),
)
def test_top_k_is_torchs(seed: int, rows: int, groups: int, odd: int, whole: bool, k: int, share: float) -> None:
    """Groups of 64 and widths between them; equal scores; rows of which less than k is left."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, groups * 64 + odd, generator=generator)
    scores = scores.round() if whole else scores
    scores[torch.rand(scores.shape, generator=generator) < share] = -torch.inf
    values, positions = top_k(scores, k)
    assert torch.equal(values, torch.topk(scores, k, dim=1).values)
    assert positions.dtype == torch.int64
    assert torch.equal(scores.gather(1, positions)[values > -torch.inf], values[values > -torch.inf])
    for row in range(rows):
        found = positions[row][values[row] > -torch.inf]
        assert len(found.unique()) == len(found)


@given(seed=st.integers(0, 100_000), users=st.integers(1, 8), items=st.integers(2, 30), k=st.integers(1, 10))
def test_hits_are_the_positives(seed: int, users: int, items: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    positives = generator.random((users, items)) < 0.3
    positives[0, items - 1] = True
    chosen = np.sort(generator.choice(users, generator.integers(1, users + 1), replace=False))
    ranked = generator.integers(0, items, (len(chosen), k))
    found = find_hits(
        torch.from_numpy(ranked), torch.from_numpy(chosen), torch.from_numpy(np.flatnonzero(positives)), items
    )
    assert np.array_equal(found.numpy(), positives[chosen[:, None], ranked])
