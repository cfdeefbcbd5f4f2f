"""Recall of popular and of unpopular items: by hand, by sets from RecBole's own scores, and in a distilled run."""

from __future__ import annotations

import shutil
from collections import Counter
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

from recbole_prune.distillers.teaching import Teaching
from recbole_prune.report.popularity import popularity_lesson
from recbole_prune.run.workshop import Workshop
from recbole_prune.scoring.evaluation import BlockEvaluation, UserBlock
from recbole_prune.scoring.popularity import popular_items, recall_by_popularity
from recbole_prune.teachers.popularity import recall_of_teacher
from recbole_prune.teachers.pupils import Pupils
from recbole_prune.training.trainer import MaskAwareTrainer

FIELD = "recall_by_popularity"
# the users whose lists are looked at: the items ranked best, and those to be found
Lists = list[tuple[set[int], set[int]]]


def slowly(lists: Lists, popular: set[int]) -> dict[str, Any]:
    """Recall of either group, user by user."""
    found: dict[str, Any] = {}
    for group, inside in (("popular", True), ("unpopular", False)):
        shares = []
        for best, wanted in lists:
            of_group = {item for item in wanted if (item in popular) == inside}
            if of_group:
                shares.append(len(best & of_group) / len(of_group))
        found[group] = sum(shares) / len(shares) if shares else None
        found[f"{group}_users"] = len(shares)
    return found


class Listener(Collector):
    """RecBole's collector, which also keeps the best items and the positives of every row."""

    def eval_batch_collect(self, scores: Any, interaction: Any, positive_u: Any, positive_i: Any) -> None:
        self.lists = getattr(self, "lists", [])
        wanted = [set() for _ in scores]
        for row, item in zip(positive_u.tolist(), positive_i.tolist()):
            wanted[row].add(item)
        best = torch.topk(scores, max(self.topk), dim=-1).indices.tolist()
        self.lists += [(set(items), positives) for items, positives in zip(best, wanted)]
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


def require_equal(found: Any, expected: dict[str, Any], k: int) -> None:
    """A field of the journal and what the slow way gives."""
    assert found == {"k": k, **{name: pytest.approx(value) for name, value in expected.items()}}


# ---- the groups, and recall by hand ----------------------------------------------------------------------------------


def test_the_example_of_the_method_file() -> None:
    counts = np.array([0, 10, 8, 6, 4, 3, 2, 1, 0])
    popular = popular_items(counts)
    assert np.flatnonzero(popular).tolist() == [1, 2]
    lists = [({1, 2, 3}, {1, 6}), ({1, 2, 6}, {2, 6, 7}), ({1, 4, 2}, {4}), ({2, 1, 5}, {3, 5})]
    expected = {"popular": 1.0, "popular_users": 2, "unpopular": 0.5, "unpopular_users": 4}
    assert slowly(lists, {1, 2}) == expected
    hits, wanted = (
        torch.tensor([[len(found & {1, 2}), len(found - {1, 2})] for found in sets])
        for sets in ([best & want for best, want in lists], [want for _, want in lists])
    )
    assert recall_by_popularity(hits, wanted, 3) == {"k": 3, **expected}


def test_a_group_that_nobody_wants_has_no_recall() -> None:
    found = recall_by_popularity(torch.tensor([[0, 1]]), torch.tensor([[0, 2]]), 5)
    assert (found["popular"], found["popular_users"], found["unpopular"]) == (None, 0, 0.5)


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

    assert Pupils(Data(), False).popular.tolist() == [False, True, False, False]  # type: ignore[arg-type]


# ---- from the ranking of an evaluation -------------------------------------------------------------------------------

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
    popular = Pupils(base.train._dataset, name == "GRU4Rec").popular
    model = at_random(base.model())
    trainer = base.trainer(model)
    init_seed(7, True)
    result, found = trainer.evaluate_by_popularity(base.test, popular, load_best_model=False)
    blocks = trainer._block_evaluation.blocks(base.test) is not None
    assert blocks == (protocol == "blocks of users")

    plain = base.plain.build_model()
    plain.load_state_dict(model.state_dict())
    lists, metrics = heard(base.plain.build_trainer(plain), base.train, base.test)
    assert dict(result) == metrics
    k = changes["topk"][-1]
    require_equal(found, slowly(lists, set(torch.nonzero(popular)[:, 0].tolist())), k)
    assert found is not None and found["popular"] is not None and found["unpopular"]
    users = found["popular_users"], found["unpopular_users"]
    if one_out:  # one item to be found for each user: the groups' recalls are parts of the whole
        whole = (users[0] * found["popular"] + users[1] * found["unpopular"]) / sum(users)
        assert sum(users) == len(lists) and whole == pytest.approx(metrics[f"recall@{k}"])
    init_seed(7, True)
    assert trainer.evaluate_by_popularity(base.test, None, load_best_model=False) == (result, None)
    assert trainer.evaluate_by_popularity([], popular, load_best_model=False) == (None, None)


@pytest.mark.slow
def test_values_are_not_ranked(tiny_data: Path) -> None:
    base = Bench("FM", tiny_data, metrics=["AUC"], valid_metric="AUC")
    popular = torch.ones(base.train._dataset.item_num, dtype=torch.bool)
    result, found = base.trainer(base.model()).evaluate_by_popularity(base.test, popular, load_best_model=False)
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
    found = recall_of_teacher(workshop, teacher)
    assert bool(ranked) == ("tables" in kind), "products of tables are ranked in blocks of users"
    assert recall_of_teacher(workshop, teacher) is found, "measured once"

    lists, _ = heard(trained.trainer, trained.train_data, trained.test_data)
    expected = slowly(lists, set(torch.nonzero(teacher.pupils.popular)[:, 0].tolist()))
    assert found is not None and found["k"] == 5 and 0 < found["unpopular_users"] == expected["unpopular_users"]
    if mode == "full":  # else other candidates are drawn
        require_equal(found, expected, 5)
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
        items = plain.train_data._dataset.inter_feat["item_id"].tolist()
        users = plain.train_data._dataset.inter_feat["user_id"].tolist()
        counts = Counter(item for _, item in set(zip(users, items)))
        popular, half = set(), sum(counts.values()) / 2
        for item, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
            if sum(counts[known] for known in popular) < half:
                popular.add(item)
        lists, _ = heard(plain.trainer, plain.train_data, plain.test_data)
        require_equal(fields[label], slowly(lists, popular), max(plain.config["topk"]))
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
def test_a_run_without_a_teacher_is_as_before(room: Classroom) -> None:
    header = room.untaught.result["table"].strip().splitlines()[0].split()
    assert header == ["ticket", "sparsity", "kept", "valid", "test", "bytes", "epochs", "best", "wins"]
    assert FIELD not in room.untaught.records[0] and not (room.untaught.folder.path / "distillation").exists()


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
    assert columns_of(taught.result["table"])["alone"] == ("-", "-")
    assert "recall of popular and unpopular items is not known: " in taught.log


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
