"""Recall of popular and of unpopular items: by hand, by sets from RecBole's own scores, and in a distilled run."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distilling import Classroom
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from recbole.evaluator import Collector
from recbole.utils import init_seed
from teachers import Trained, settings_of, student_config
from training_bench import Bench
from zoo_plain import reload

from recbole_prune.data.training_pairs import consumed_items, consumptions
from recbole_prune.distillers.teaching import Teaching
from recbole_prune.report.popularity import popularity_lesson
from recbole_prune.run.workshop import Workshop
from recbole_prune.scoring.evaluation import BlockEvaluation, UserBlock
from recbole_prune.scoring.popularity import Popularity, popular_items, record_of
from recbole_prune.teachers.popularity import popularity_of_teacher
from recbole_prune.training.trainer import MaskAwareTrainer

FIELD = "popularity"
# the users whose lists are looked at: the items ranked best, best first, and those to be found
Lists = list[tuple[list[int], set[int]]]


def slowly(
    lists: Lists, counts: Mapping[int, int], popular: set[int], topk: Sequence[int], items: int
) -> dict[str, Any]:
    """The field of the journal, user by user and item by item."""
    found: dict[str, Any] = {"share": 0.5, "popular_items": len(popular), "items": items, "k": max(topk), "at": {}}
    for k in topk:
        at: dict[str, Any] = {}
        for group, inside in (("popular", True), ("unpopular", False)):
            shares, hits, wanted_by_all = [], 0, 0
            for best, wanted in lists:
                of_group = {item for item in wanted if (item in popular) == inside}
                if of_group:
                    shares.append(len(set(best[:k]) & of_group) / len(of_group))
                    hits += len(set(best[:k]) & of_group)
                    wanted_by_all += len(of_group)
            at[group] = {
                "recall": sum(shares) / len(shares) if shares else None,
                "recall_all_users": sum(shares) / len(lists) if shares else None,
                "recall_micro": hits / wanted_by_all if shares else None,
            }
            found[f"{group}_users"], found[group] = len(shares), at[group]["recall"]
        listed = [item for best, _ in lists for item in best[:k]]
        often = sorted(listed.count(item) for item in range(1, items + 1))
        differences = sum(abs(one - other) for one in often for other in often)
        found["at"][str(k)] = {
            **at,
            "tail_share": sum(item not in popular for item in listed) / len(listed),
            "coverage": len(set(listed)) / items,
            "gini": differences / (2 * items * len(listed)),
            "average_popularity": sum(counts.get(item, 0) for item in listed) / len(listed),
        }
    return found


def popular_of(counts: Mapping[int, int]) -> set[int]:
    """The fewest items with half of the interactions."""
    popular: set[int] = set()
    for item, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        if 2 * sum(counts[known] for known in popular) < sum(counts.values()):
            popular.add(item)
    return popular


def counts_of(train_data: Any) -> Counter[int]:
    """How many users have each item in the training data, histories of sequences included."""
    rows, pairs = train_data._dataset.inter_feat, set()
    for place in range(len(rows)):
        user = int(rows["user_id"][place])
        pairs.add((user, int(rows["item_id"][place])))
        if "item_id_list" in rows:
            pairs |= {(user, int(item)) for item in rows["item_id_list"][place] if item > 0}
    return Counter(item for _, item in pairs)


def popularity_of(train_data: Any) -> Popularity:
    counts = counts_of(train_data)
    return Popularity.of(np.array([counts[item] for item in range(train_data._dataset.item_num)]))


class Listener(Collector):
    """RecBole's collector, which also keeps the best items and the positives of every row."""

    def eval_batch_collect(self, scores: Any, interaction: Any, positive_u: Any, positive_i: Any) -> None:
        self.lists = getattr(self, "lists", [])
        wanted = [set() for _ in scores]
        for row, item in zip(positive_u.tolist(), positive_i.tolist()):
            wanted[row].add(item)
        best = torch.topk(scores, max(self.topk), dim=-1).indices.tolist()
        self.lists += list(zip(best, wanted))
        super().eval_batch_collect(scores, interaction, positive_u, positive_i)


def heard(trainer: Any, train_data: Any, test_data: Any) -> tuple[Lists, dict[str, float]]:
    """What plain RecBole ranks in an evaluation, and its metrics."""
    trainer.eval_collector = Listener(trainer.config)
    trainer.eval_collector.data_collect(train_data)
    init_seed(7, True)
    result = trainer.evaluate(test_data, load_best_model=False)
    return trainer.eval_collector.lists, dict(result)


def at_random(model: Any) -> Any:
    """The model with weights that are not near zero, where all scores are alike, nor so large that a sigmoid is 1."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def require_equal(found: Any, expected: dict[str, Any]) -> None:
    """A field of the journal and what the slow way gives."""

    def near(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: near(each) for name, each in value.items()}
        return pytest.approx(value) if isinstance(value, float) else value

    assert found == near(expected)


# ---- the groups, and recall by hand ----------------------------------------------------------------------------------

COUNTS = np.array([0, 10, 8, 6, 4, 3, 2, 1, 0])
LISTS: Lists = [([1, 2, 3], {1, 6}), ([1, 2, 6], {2, 6, 7}), ([1, 4, 2], {4}), ([2, 1, 5], {3, 5})]


def recorded(lists: Lists, popularity: Popularity, topk: Sequence[int], ranks_all: bool = True) -> Any:
    """What the package makes of lists."""
    popular = set(torch.nonzero(popularity.popular)[:, 0].tolist())
    items = torch.tensor([best for best, _ in lists])
    hits = torch.tensor([[int(item in wanted) for item in best] for best, wanted in lists])
    positives = torch.tensor([[len(wanted & popular), len(wanted - popular)] for _, wanted in lists])
    return record_of(popularity, items, hits, positives, topk, ranks_all)


def test_the_example_of_the_method_file() -> None:
    assert np.flatnonzero(popular_items(COUNTS)).tolist() == [1, 2]
    assert np.flatnonzero(popular_items(COUNTS, 0.8)).tolist() == [1, 2, 3, 4]
    found = recorded(LISTS, Popularity.of(COUNTS), [3])
    assert (found["share"], found["popular_items"], found["items"], found["k"]) == (0.5, 2, 8, 3)
    assert (found["popular"], found["popular_users"]) == (1.0, 2)
    assert (found["unpopular"], found["unpopular_users"]) == (0.5, 4)
    [at] = found["at"].values()
    assert at["popular"] == {"recall": 1.0, "recall_all_users": 0.5, "recall_micro": 1.0}
    assert at["unpopular"] == {"recall": 0.5, "recall_all_users": 0.5, "recall_micro": 0.5}
    listed = [at[name] for name in ("tail_share", "coverage", "gini", "average_popularity")]
    assert listed == [pytest.approx(1 / 3), 0.75, pytest.approx(0.5), 7.25]
    counts = {item: int(count) for item, count in enumerate(COUNTS) if count}
    require_equal(found, slowly(LISTS, counts, {1, 2}, [3], 8))


def test_a_group_that_nobody_wants_has_no_recall() -> None:
    found = recorded([([3, 4], {3, 5})], Popularity.of(COUNTS), [2])
    assert (found["popular"], found["popular_users"], found["unpopular"]) == (None, 0, 0.5)
    assert found["at"]["2"]["popular"] == dict.fromkeys(("recall", "recall_all_users", "recall_micro"))


def test_places_where_nothing_is_left_to_rank_are_not_listed() -> None:
    found = recorded([([3, 0], {3})], Popularity.of(COUNTS), [2])["at"]["2"]
    assert (found["coverage"], found["tail_share"], found["average_popularity"]) == (1 / 8, 1.0, 6.0)
    drawn = recorded(LISTS, Popularity.of(COUNTS), [3], ranks_all=False)["at"]["3"]
    assert drawn["popular"]["recall"] == 1.0 and {drawn[n] for n in ("coverage", "gini", "tail_share")} == {None}


lists_of_items = st.lists(
    st.tuples(st.permutations(range(1, 9)), st.sets(st.integers(1, 8), min_size=1)), min_size=1, max_size=6
)


@given(lists_of_items, st.sets(st.integers(1, 8), min_size=1, max_size=3))
def test_it_is_the_slow_way(lists: Lists, topk: set[int]) -> None:
    counts = {item: int(count) for item, count in enumerate(COUNTS) if count}
    require_equal(recorded(lists, Popularity.of(COUNTS), sorted(topk)), slowly(lists, counts, {1, 2}, sorted(topk), 8))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_popular_items_are_the_fewest_with_half_of_the_interactions(numbers: list[int]) -> None:
    counts = np.array([0, *numbers])
    best_first = sorted(range(1, len(counts)), key=lambda item: (-counts[item], item))
    expected: list[int] = []
    while 2 * sum(counts[expected]) < counts.sum():
        expected.append(best_first[len(expected)])
    assert set(np.flatnonzero(popular_items(counts))) == set(expected)


def test_an_item_counts_once_for_a_user() -> None:
    codes = [(1, 3), (1, 3), (1, 3), (2, 1), (3, 1), (2, 2)]
    rows = {"u": torch.tensor([user for user, _ in codes]), "i": torch.tensor([item for _, item in codes])}

    class Data:
        inter_feat, uid_field, iid_field, user_num, item_num = rows, "u", "i", 4, 4
        config = {"seed": 1, "NEG_PREFIX": "neg_", "LIST_SUFFIX": "_list"}

    counts = consumptions(consumed_items(Data()))  # type: ignore[arg-type]
    assert counts.tolist() == [0, 2, 1, 1] and popular_items(counts).tolist() == [False, True, False, False]


# ---- from the ranking of an evaluation -------------------------------------------------------------------------------

LISTED = ("tail_share", "coverage", "gini", "average_popularity")
RANDOM = {"split": {"RS": [0.6, 0.2, 0.2]}, "mode": "full"}
ONE_OUT = {"split": {"LS": "valid_and_test"}, "order": "TO"}
PROTOCOLS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "blocks of users": ("BPR", {"eval_args": RANDOM, "topk": [5, 10]}, False),
    "RecBole's batches": ("BPR", {"eval_args": RANDOM, "metrics": ["Recall", "GAUC"], "topk": [10]}, False),
    "candidates": ("BPR", {"eval_args": {**ONE_OUT, "order": "RO", "mode": "uni20"}, "topk": [5]}, True),
    "pairs": ("NeuMF", {"eval_args": {**ONE_OUT, "order": "RO", "mode": "full"}, "topk": [5]}, True),
    "sequences": ("GRU4Rec", {"eval_args": {**ONE_OUT, "mode": "full"}, "topk": [10]}, True),
    "pop candidates of sequences": ("GRU4Rec", {"eval_args": {**ONE_OUT, "mode": "pop20"}, "topk": [5]}, True),
}


@pytest.mark.parametrize("protocol", slow_but(["RecBole's batches", "candidates"], PROTOCOLS))
def test_recall_is_that_of_recboles_own_lists(protocol: str, tiny_data: Path) -> None:
    name, changes, one_out = PROTOCOLS[protocol]
    chosen = {"metrics": ["Recall"], "valid_metric": f"Recall@{changes['topk'][-1]}", "metric_decimal_place": 10}
    base = Bench(name, tiny_data, **{**chosen, **changes})
    popularity = popularity_of(base.train)
    counts = consumptions(consumed_items(base.train._dataset))
    assert counts.tolist() == popularity.counts.tolist()
    model = at_random(base.model())
    trainer = base.trainer(model)
    init_seed(7, True)
    result, found = trainer.evaluate_by_popularity(base.test, popularity, load_best_model=False)
    blocks = trainer._block_evaluation.blocks(base.test) is not None
    assert blocks == (protocol == "blocks of users")

    plain = base.plain.build_model()
    plain.load_state_dict(model.state_dict())
    lists, metrics = heard(base.plain.build_trainer(plain), base.train, base.test)
    assert dict(result) == metrics
    k = changes["topk"][-1]
    of_items = counts_of(base.train)
    expected = slowly(lists, of_items, popular_of(of_items), changes["topk"], len(counts) - 1)
    if "full" not in changes["eval_args"]["mode"]:
        for at in expected["at"].values():
            at.update(dict.fromkeys(LISTED))
    require_equal(found, expected)
    assert found is not None and found["popular"] is not None and found["unpopular"]
    users = found["popular_users"], found["unpopular_users"]
    if one_out:  # one item to be found for each user: the groups' recalls are parts of the whole
        whole = (users[0] * found["popular"] + users[1] * found["unpopular"]) / sum(users)
        assert sum(users) == len(lists) and whole == pytest.approx(metrics[f"recall@{k}"])
    init_seed(7, True)
    assert trainer.evaluate_by_popularity(base.test, None, load_best_model=False) == (result, None)
    assert trainer.evaluate_by_popularity([], popularity, load_best_model=False) == (None, None)


@pytest.mark.slow
def test_values_are_not_ranked(tiny_data: Path) -> None:
    base = Bench("FM", tiny_data, metrics=["AUC"], valid_metric="AUC")
    popularity = Popularity.of(np.ones(base.train._dataset.item_num))
    result, found = base.trainer(base.model()).evaluate_by_popularity(base.test, popularity, load_best_model=False)
    assert result and found is None


# ---- of a teacher ----------------------------------------------------------------------------------------------------

TEACHERS = {
    "tables": ("BPR", "BPR", "full"),
    "propagated tables": ("LightGCN", "BPR", "full"),
    "pairs of users": ("NeuMF", "BPR", "full"),
    "candidates": ("LightGCN", "BPR", "uni20"),
    "without gradients": ("EASE", "BPR", "full"),
    "sequences": ("SASRec", "GRU4Rec", "full"),
    "candidates of sequences": ("SASRec", "GRU4Rec", "uni20"),
}


@pytest.mark.parametrize("kind", slow_but([], TEACHERS))
def test_a_teacher_is_tested_as_plain_recbole_tests_it(
    kind: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranked, rank = [], BlockEvaluation.rank

    def watched(evaluation: BlockEvaluation, block: UserBlock) -> Any:
        ranked.append(block)
        return rank(evaluation, block)

    monkeypatch.setattr(BlockEvaluation, "rank", watched)
    name, student, mode = TEACHERS[kind]
    changes = {"eval_args": {**ONE_OUT, "mode": mode}, "topk": [5], "metrics": ["Recall"], "valid_metric": "Recall@5"}
    trained = Trained(name, settings_of(name, tiny_data, **changes), tmp_path)
    at_random(trained.model)
    file = trained.save(tmp_path / "teacher.pth")
    workshop = Workshop(student_config(tiny_data, file, student, **changes))
    teacher = Teaching(workshop).teacher
    found = popularity_of_teacher(workshop, teacher)
    assert bool(ranked) == ("tables" in kind), "products of tables are ranked in blocks of users"
    assert popularity_of_teacher(workshop, teacher) is found, "measured once"

    lists, _ = heard(trained.trainer, trained.train_data, trained.test_data)
    assert workshop.popularity is not None
    of_items = {item: int(count) for item, count in enumerate(workshop.popularity.counts) if count}
    popular = set(torch.nonzero(workshop.popularity.popular)[:, 0].tolist())
    expected = slowly(lists, of_items, popular, [5], workshop.dataset.item_num - 1)
    assert found is not None and found["k"] == 5 and 0 < found["unpopular_users"] == expected["unpopular_users"]
    if mode == "full":  # else other candidates are drawn
        require_equal(found, expected)
    else:
        assert found["unpopular"] == pytest.approx(expected["unpopular"], abs=0.15)


# ---- in a run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def room(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Classroom:
    """BPR teaches BPR."""
    return Classroom("BPR", tiny_data, tmp_path_factory.mktemp("popularity"))


def columns_of(table: str) -> dict[str, tuple[str, str]]:
    """The two cells of each row."""
    header, _, *rows = table.strip("\n").splitlines()
    place = header.index(" popular ")
    rows = [row for row in rows if row.lstrip().startswith(("teacher ", "alone ", "taught "))]
    return {" ".join(row[:9].split()): tuple(row[place:].split()[:2]) for row in rows}  # type: ignore[misc]


@pytest.mark.slow
def test_a_distilled_run_has_both_groups_of_all_it_compares(room: Classroom, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"pruner": "imp", "prune_rate": 0.5, "prune_rounds": 1, "embedding_size": 8, "distill_weight": 1.0}
    taught = room.run(**room.lesson("rrd", distill_alone=True), **changes)
    summary, alone = taught.folder.read_summary(), room.run(embedding_size=8)
    assert alone.spy.trainings == 0
    files = {
        "teacher": Path(summary["teacher"]["path"]) / "checkpoints" / "ticket-000.pth",
        "alone": alone.folder.path / "checkpoints" / "ticket-000.pth",
        **{f"taught {r['ticket']}": taught.folder.path / r["checkpoint_file"] for r in taught.records},
    }
    fields = {
        "teacher": taught.records[-1]["teacher"][FIELD],
        "alone": summary["alone"][FIELD],
        **{f"taught {r['ticket']}": r[FIELD] for r in taught.records},
    }
    cells = {label.rstrip("*"): row for label, row in columns_of(taught.result["table"]).items()}
    assert list(cells) == list(files)
    for label, file in files.items():
        plain = reload(file)
        counts = counts_of(plain.train_data)
        lists, _ = heard(plain.trainer, plain.train_data, plain.test_data)
        items = plain.train_data._dataset.item_num - 1
        require_equal(fields[label], slowly(lists, counts, popular_of(counts), plain.config["topk"], items))
        assert cells[label] == tuple(f"{fields[label][group]:.4f}" for group in ("popular", "unpopular"))

    legend = " ".join(taught.result["table"].split())
    assert "popular, rare: test recall@10 of the most popular items" in legend
    assert max(len(line) for line in taught.result["table"].splitlines()[:6]) <= 80
    lesson = popularity_lesson(summary["alone"], taught.result["chosen"])
    assert all(" ".join(sentence.split()) in legend for sentence in lesson)
    again = room.run(**room.lesson("rrd", distill_alone=True), **changes, fresh=True)
    assert columns_of(again.result["table"]) == columns_of(taught.result["table"])

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("an evaluation")

    monkeypatch.setattr(MaskAwareTrainer, "evaluate", refuse)
    finished = room.run(**room.lesson("rrd", distill_alone=True), **changes)
    assert columns_of(finished.result["table"]) == columns_of(taught.result["table"])
    assert finished.folder.read_summary()["alone"] == summary["alone"]
    long = room.run(**room.lesson("rrd", distill_alone=True), **changes, verbose=True).result["table"]
    assert {"kept", "epochs", "best", "popular", "rare"} <= set(long.strip().splitlines()[0].split())


@pytest.mark.slow
def test_a_run_without_a_teacher_has_them_in_its_journal_only(room: Classroom) -> None:
    header = room.untaught.result["table"].strip().splitlines()[0].split()
    assert header == ["ticket", "sparsity", "kept", "valid", "test", "bytes", "epochs", "best", "wins"]
    record = room.untaught.records[0]
    assert record[FIELD]["share"] == 0.5 and not (room.untaught.folder.path / "distillation").exists()
    plain = reload(room.untaught.folder.path / record["checkpoint_file"])
    counts = counts_of(plain.train_data)
    lists, _ = heard(plain.trainer, plain.train_data, plain.test_data)
    items = plain.train_data._dataset.item_num - 1
    require_equal(record[FIELD], slowly(lists, counts, popular_of(counts), plain.config["topk"], items))


@pytest.mark.slow
def test_lists_teach_without_recall_of_their_own(room: Classroom, tmp_path: Path) -> None:
    lists, run = tmp_path / "lists.tsv", room.untaught
    dataset = reload(run.folder.path / run.records[0]["checkpoint_file"]).dataset
    users, items = (dataset.field2id_token[field][1:].tolist() for field in ("user_id", "item_id"))
    lists.write_text("".join("\t".join([user, *items]) + "\n" for user in users), encoding="utf-8")
    taught = room.run(**room.lesson("rrd", distill_teacher=str(lists)))
    assert taught.records[0]["teacher"][FIELD] is None and taught.records[0][FIELD]["popular_users"]
    cells = columns_of(taught.result["table"])
    assert cells["teacher"] == ("-", "-") and "-" not in cells["taught 0*"]


@pytest.mark.slow
def test_a_checkpoint_that_was_not_kept_leaves_the_run_whole(room: Classroom, tmp_path: Path) -> None:
    room = Classroom("BPR", room.data, tmp_path)
    shutil.rmtree(room.untaught.folder.path / "checkpoints")
    taught = room.run(**room.lesson("rrd", distill_alone=True))
    recall = room.untaught.records[0][FIELD]
    alone = columns_of(taught.result["table"])["alone"]
    assert alone == tuple(f"{recall[group]:.4f}" for group in ("popular", "unpopular")), "its journal has them"


# ---- in words --------------------------------------------------------------------------------------------------------


def recalled(popular: float | None, unpopular: float | None) -> dict[str, Any]:
    return {FIELD: {"k": 10, "popular": popular, "unpopular": unpopular, "popular_users": 9, "unpopular_users": 9}}


def test_it_is_said_where_teaching_moves_recall_away_from_unpopular_items() -> None:
    alone = recalled(0.0831, 0.0095)
    assert popularity_lesson(alone, recalled(0.0899, 0.0075)) == [
        "Teaching moved recall away from unpopular items: test recall@10 of unpopular items 0.0095 -> 0.0075; popular "
        "items 0.0831 -> 0.0899."
    ]
    [both] = popularity_lesson(alone, recalled(0.08, 0.0075))
    assert both.startswith("Taught, fewer unpopular items are found: ")
    for taught in (
        recalled(0.09, 0.0095),
        recalled(0.09, 0.009499),
        recalled(0.09, 0.01),
        recalled(0.09, None),
        recalled(None, 0.001),
        {},
    ):
        assert popularity_lesson(alone, taught) == []
    assert popularity_lesson({FIELD: None}, recalled(0.09, 0.001)) == []
    older = {"recall_by_popularity": alone[FIELD]}
    assert popularity_lesson(older, recalled(0.08, 0.0075)) == [both], "the name that version 0.1.0 gave them"
    [pruned] = popularity_lesson(alone, recalled(0.08, 0.0075), "Pruning")
    assert pruned.startswith("Pruned, fewer unpopular items are found: ")
