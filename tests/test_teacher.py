"""Teachers: what they are found in, what they say, in the student's ids, and what is refused before any training."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import own_models
import pytest
import torch
from teachers import (
    Checkpoints,
    Trained,
    first_rows,
    no_gradient,
    open_for,
    pupils_of,
    refusal,
    settings_of,
    student_config,
)
from test_popularity import heard, require_equal, slowly
from zoo import DATASET

from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.data.random_streams import have_moved, random_state
from recbole_prune.distillers import ranked_lists
from recbole_prune.distillers.model_teacher import ModelTeacher
from recbole_prune.distillers.popularity import recall_of_teacher
from recbole_prune.distillers.teacher import Teacher
from recbole_prune.distillers.teacher_sources import open_teacher
from recbole_prune.distillers.teacher_training import teacher_configs
from recbole_prune.distillers.teaching import Teaching
from recbole_prune.errors import StoreError
from recbole_prune.quick_start import run
from recbole_prune.run.files import write_atomic
from recbole_prune.run.store import RunFolder
from recbole_prune.run.workshop import Workshop

LENGTH = 25


# ---- settings --------------------------------------------------------------------------------------------------------


def test_a_distiller_has_one_teacher(timed_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "lists.tsv"
    file.write_text("1\t2\n")
    neither = refusal(lambda: student_config(timed_data, None))
    assert "distill_teacher" in neither and "distill_teacher_model" in neither
    both = refusal(lambda: student_config(timed_data, file, distill_teacher_model="BPR"))
    assert f"distill_teacher={file}" in both and "distill_teacher_model=BPR" in both
    assert "cannot go together" in refusal(
        lambda: student_config(timed_data, file, distill_teacher_settings={"seed": 1})
    )
    assert "did you mean LightGCN" in refusal(
        lambda: student_config(timed_data, None, distill_teacher_model="LightGCM")
    )
    for name in ("pruner", "model", "distill_teacher", "output_dir"):
        call = {"distill_teacher_model": "BPR", "distill_teacher_settings": {name: "x"}}
        assert f"{name} is none of" in refusal(lambda call=call: student_config(timed_data, None, **call))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"distill_teacher_models": ["BPR", "BPR"]}, ["distill_teacher_models=BPR,BPR", "names BPR twice"]),
        ({"distill_teacher_models": ["BPR", "LightGCM"]}, ["distill_teacher_models=LightGCM", "did you mean LightGCN"]),
        ({"distill_teacher_models": ["BPR"], "distill_teacher_model": "BPR"}, ["cannot go together"]),
        (
            {"distill_teacher_models": ["BPR"], "distill_teacher": "a.pth"},
            ["distill_teacher=a.pth", "cannot go together"],
        ),
        (
            {"distill_teacher_models": ["BPR", "NeuMF"], "distill_teacher_settings": {"embedding_size": 8}},
            ["embedding_size is none of distill_teacher_models=BPR,NeuMF", "go by their names"],
        ),
        (
            {"distill_teacher_models": ["BPR", "NeuMF"], "distill_teacher_settings": {"BPR": 8}},
            ["that of BPR must be a dict"],
        ),
        (
            {"distill_teacher_models": ["BPR", "NeuMF"], "distill_teacher_settings": {"BPR": {"pruner": "imp"}}},
            ["pruner is none of the teacher's own settings"],
        ),
        ({"distill_teacher_models": "[1]"}, ["distill_teacher_models=[1] is not allowed", "a list of words"]),
    ],
)
def test_settings_of_several_teachers(timed_data: Path, given: dict[str, Any], said: list[str]) -> None:
    text = refusal(lambda: student_config(timed_data, None, **given))
    assert all(part in text for part in said), text


def test_paths_that_are_no_teacher(timed_data: Path, tmp_path: Path) -> None:
    (tmp_path / "teacher.pth").write_bytes(b"")
    (tmp_path / "teacher.txt").write_bytes(b"")
    (tmp_path / "run").mkdir()
    near = refusal(lambda: student_config(timed_data, tmp_path / "teachr.pth"))
    assert "no such file" in near and f"did you mean {tmp_path / 'teacher.pth'}" in near
    for name in ("teacher.txt", "run"):
        assert "is no teacher: it must be" in refusal(lambda name=name: student_config(timed_data, tmp_path / name))
    (tmp_path / "run" / "tickets.jsonl").write_text("")
    assert "exported no ticket yet" in refusal(lambda: student_config(timed_data, tmp_path / "run"))
    assert "is no teacher" in refusal(lambda: student_config(timed_data, tmp_path / "run" / "tickets.jsonl"))


def test_a_run_is_known_by_what_its_teacher_holds(
    timed_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, other = (tmp_path / name for name in ("one.tsv", "two.tsv", "other.tsv"))
    for file, text in ((one, "1\t2\n"), (two, "1\t2\n"), (other, "1\t3\n")):
        file.write_text(text)
    first, second, third = (student_config(timed_data, file) for file in (one, two, other))
    assert first.run_hash == second.run_hash != third.run_hash
    assert first.base_hash == second.base_hash != third.base_hash, "no dense model is shared between them"
    plain = student_config(timed_data, None, distill_teacher_model="BPR")
    wider = {"distill_teacher_model": "BPR", "distill_teacher_settings": {"embedding_size": 200}}
    assert len({plain.run_hash, student_config(timed_data, None, **wider).run_hash, first.run_hash}) == 3
    monkeypatch.chdir(tmp_path)
    relative = student_config(timed_data, Path("one.tsv"))
    assert relative.plain_settings()["distill_teacher"] == [str(one)] and relative.run_hash == first.run_hash
    one.write_text("1\t4\n")
    assert student_config(timed_data, one).run_hash != first.run_hash
    one.unlink()
    assert PruneConfig.from_plain_settings(first.plain_settings()).settings.distill_teacher == [str(one)]


def teacher_config(student: PruneConfig) -> PruneConfig:
    [found] = teacher_configs(student)
    return found


def test_the_settings_of_a_teacher_that_is_trained_first(timed_data: Path) -> None:
    given = {"distill_teacher_model": "LightGCN", "distill_teacher_settings": {"n_layers": 1}}
    student = student_config(
        timed_data, None, embedding_size=4, learning_rate=0.5, seed=7, prune_select="test", **given
    )
    teacher = teacher_config(student)
    assert (teacher["model"], teacher.settings.pruner, teacher.settings.distiller) == ("LightGCN", "none", None)
    assert (teacher["embedding_size"], teacher["learning_rate"], teacher["n_layers"]) == (64, 0.001, 1)
    assert teacher.settings.prune_select == "test" and teacher.settings.output_dir == student.settings.output_dir
    for name in ("seed", "eval_args", "load_col", "user_inter_num_interval", "data_path", "topk", "metrics", "dataset"):
        assert teacher[name] == student[name], name
    twin = teacher_config(student_config(timed_data, None, embedding_size=8, seed=7, prune_select="test", **given))
    assert twin.run_hash == teacher.run_hash, "students of one teacher share it"
    own = {**settings_of("BPR", timed_data), "seed": 7, "prune_select": "test", "n_layers": 1}
    alone = {name: value for name, value in own.items() if name not in ("embedding_size", "epochs", "train_batch_size")}
    assert PruneConfig("LightGCN", DATASET, config_dict=alone).run_hash == teacher.run_hash, "as does a run of its own"
    wrong = {**given, "distill_teacher_settings": {"n_layer": 1}}
    text = refusal(lambda: teacher_config(student_config(timed_data, None, **wrong)))
    assert "distill_teacher_settings={'n_layer': 1}" in text and "did you mean --n_layers" in text
    sequential = student_config(timed_data, None, "SASRec", **given)
    assert teacher_config(sequential)["eval_args"] == sequential["eval_args"]
    ce = {"distill_teacher_model": "SASRec", "distill_teacher_settings": {"n_layers": 1}}
    assert teacher_config(student_config(timed_data, None, **ce))["train_neg_sample_args"]["distribution"] == "none"
    graph = teacher_config(student_config(timed_data, None, distill_teacher_model="KGAT"))["load_col"]
    assert set(graph) == {"inter", "kg", "link"} and graph["inter"] == student["load_col"]["inter"]
    fitted = refusal(lambda: teacher_config(student_config(timed_data, None, distill_teacher_model="EASE")))
    assert "not trained by gradient" in fitted


# ---- what a teacher says ---------------------------------------------------------------------------------------------


def token_of(dataset: Any, field: str, number: int) -> str:
    return str(dataset.field2id_token[field][number])


@pytest.mark.parametrize("same_order", [True, False])
def test_vectors_are_those_of_the_tokens(
    timed_data: Path, reordered_data: Path, checkpoint_of: Checkpoints, same_order: bool
) -> None:
    trained, file = checkpoint_of("BPR", timed_data if same_order else reordered_data)
    teacher = open_for(timed_data, file, embedding_size=4)
    assert isinstance(teacher, ModelTeacher) and (teacher.matching.items is None) == same_order
    users, items = teacher.tables or ()
    student = teacher.pupils.dataset
    for field, table, weight in (
        ("user_id", users, trained.model.user_embedding.weight),
        ("item_id", items, trained.model.item_embedding.weight),
    ):
        ids = trained.dataset.field2token_id[field]
        for number in range(1, len(table)):
            assert torch.equal(table[number], weight[ids[token_of(student, field, number)]]), number
    ids = torch.tensor([[3, 1], [2, 9]])
    assert teacher.widths == (16, 16) and torch.equal(teacher.item_vectors(ids), items[ids])
    assert torch.equal(teacher.user_vectors(ids[0]), users[ids[0]])
    assert no_gradient(users, items) and users.dtype == torch.float32


@pytest.mark.slow
def test_a_teacher_is_in_no_module_and_stays_as_it_is(timed_data: Path, checkpoint_of: Checkpoints) -> None:
    teacher = open_for(timed_data, checkpoint_of("NeuMF", timed_data)[1])
    holder = torch.nn.Module()
    holder.teacher = teacher
    assert not list(holder.modules())[1:] and not holder.state_dict()
    holder.train()
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def obvious_lists(teacher: Teacher, score: Any) -> list[list[int]]:
    """By a loop over everything: all unobserved items by score, those with lower ids first among equal ones."""
    consumed, items = teacher.pupils.consumed, range(1, teacher.pupils.item_count)
    lists = [[]]
    for user in range(1, teacher.pupils.user_count):
        left = [item for item in items if item not in consumed[user]]
        lists.append(sorted(left, key=lambda item: (-score(user, item), item)))
    return lists


@pytest.mark.parametrize(
    ("model", "same_order"),
    [
        ("BPR", True),
        ("BPR", False),
        pytest.param("EASE", False, marks=pytest.mark.slow),
        pytest.param("NeuMF", False, marks=pytest.mark.slow),
        pytest.param("SASRec", False, marks=pytest.mark.slow),
    ],
)
def test_rankings_are_those_of_the_obvious_way(
    timed_data: Path,
    reordered_data: Path,
    checkpoint_of: Checkpoints,
    model: str,
    same_order: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained, file = checkpoint_of(model, timed_data if same_order else reordered_data)
    monkeypatch.setattr(ranked_lists, "_SCORES_AT_ONCE", 1)
    monkeypatch.setattr(ranked_lists, "_FEWEST_ROWS", 7)
    teacher = open_for(timed_data, file, distill_list_length=LENGTH)
    all_scores = own_scores(trained)
    maps = [
        [
            0,
            *(
                trained.dataset.field2token_id[field][token]
                for token in teacher.pupils.dataset.field2id_token[field][1:]
            ),
        ]
        for field in ("user_id", "item_id")
    ]
    scores = all_scores[maps[0]][:, maps[1]]
    lists, found, users = teacher.items_of_users, teacher.scores, teacher.users_of_items
    assert lists.dtype == users.dtype == np.int32 and found.dtype == np.float32
    assert lists.shape == found.shape == (len(maps[0]), LENGTH) and users.shape == (len(maps[1]), LENGTH)
    assert (lists[0] == -1).all() and (users[0] == -1).all() and not (lists == 0).any() and not (users == 0).any()
    consumed, consumers = teacher.pupils.consumed, teacher.pupils.consumers
    for user, expected in enumerate(obvious_lists(teacher, lambda user, item: scores[user, item])):
        check_list(lists[user], [scores[user, item] for item in expected], scores[user], consumed[user])
        np.testing.assert_allclose(found[user], scores[user, lists[user]] * (lists[user] >= 0), rtol=1e-4, atol=1e-6)
    for item in range(1, teacher.pupils.item_count):
        left = [user for user in range(1, teacher.pupils.user_count) if user not in consumers[item]]
        check_list(users[item], sorted((scores[user, item] for user in left), reverse=True), scores[:, item],
                   consumers[item])  # fmt: skip


def own_scores(trained: Trained) -> np.ndarray:
    """Scores of all users and items in the ids of a model, by its own methods."""
    model, config = trained.model, trained.config
    users = torch.arange(trained.dataset.user_num)
    with torch.no_grad():
        if trained.config["model"] == "NeuMF":
            pairs = torch.cartesian_prod(users, torch.arange(trained.dataset.item_num))
            return model.forward(pairs[:, 0], pairs[:, 1]).view(len(users), -1).double().numpy()
        if trained.config["model"] != "SASRec":
            scores = model.full_sort_predict({"user_id": users})
            return torch.as_tensor(np.asarray(scores)).reshape(len(users), -1).double().numpy()
        rows = trained.train_data._dataset.inter_feat
        found = np.zeros((len(users), trained.dataset.item_num))
        for user in range(1, len(users)):
            mine = rows[rows["user_id"] == user]
            last = int(mine["item_length"].argmax()) if mine["item_length"].max() < 6 else len(mine["user_id"]) - 1
            history = [*mine["item_id_list"][last].tolist()[: mine["item_length"][last]], int(mine["item_id"][last])]
            history = history[-config["MAX_ITEM_LIST_LENGTH"] :]
            padded = torch.tensor([history + [0] * (6 - len(history))])
            vector = model.forward(padded, torch.tensor([len(history)]))
            found[user] = (vector @ model.item_embedding.weight[: trained.dataset.item_num].t()).double().numpy()
    return found


def check_list(listed: np.ndarray, best_first: list[float], scores: np.ndarray, excluded: set[int]) -> None:
    """A list has the best scores in order; which of nearly equal ones come first is open."""
    count = min(LENGTH, len(best_first))
    assert (listed[count:] == -1).all() and len(set(listed[:count].tolist())) == count
    assert not set(listed[:count].tolist()) & excluded
    np.testing.assert_allclose(scores[listed[:count]], best_first[:count], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_equal_scores_are_ranked_by_id(timed_data: Path, checkpoint_of: Checkpoints) -> None:
    teacher = open_for(timed_data, checkpoint_of("Pop", timed_data)[1], distill_list_length=300)
    lists, scores = teacher.items_of_users, teacher.scores
    for row, values in zip(lists[1:], scores[1:]):
        count = int((row >= 0).sum())
        pairs = [(-value, item) for value, item in zip(values[:count], row[:count])]
        assert pairs == sorted(pairs)


@pytest.mark.slow
def test_recall_of_popular_items_goes_by_token(
    timed_data: Path, reordered_data: Path, checkpoint_of: Checkpoints
) -> None:
    trained, file = checkpoint_of("BPR", reordered_data, topk=[5])
    workshop = Workshop(student_config(timed_data, file, topk=[5]))
    teacher = Teaching(workshop).teacher
    student, theirs = teacher.pupils.dataset, trained.dataset.field2token_id["item_id"]
    popular = {theirs[token_of(student, "item_id", item)] for item in torch.nonzero(teacher.pupils.popular)[:, 0]}
    lists, _ = heard(trained.trainer, trained.train_data, trained.test_data)
    found = recall_of_teacher(workshop, teacher)
    require_equal(found, slowly(lists, popular), 5)
    assert found is not None and found["popular"], "some are found"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "student"), [("BPR", "GRU4Rec"), ("SASRec", "BPR")])
def test_recall_of_a_teacher_that_is_asked_in_another_way(
    name: str, student: str, timed_data: Path, checkpoint_of: Checkpoints
) -> None:
    _, file = checkpoint_of(name, timed_data)
    workshop = Workshop(student_config(timed_data, file, student))
    found = recall_of_teacher(workshop, Teaching(workshop).teacher)
    assert found is not None and found["popular_users"] + found["unpopular_users"] == len(workshop.test_data._dataset)


@pytest.mark.parametrize("same_order", [True, False])
@pytest.mark.slow
def test_rows_of_a_sequential_teacher(
    timed_data: Path, reordered_data: Path, checkpoint_of: Checkpoints, same_order: bool
) -> None:
    trained, file = checkpoint_of("SASRec", timed_data if same_order else reordered_data)
    teacher = open_for(timed_data, file, "GRU4Rec", of_rows=True)
    assert teacher.tables is None and teacher.widths == (16, 16)
    batch = first_rows(teacher.pupils)
    student, theirs = teacher.pupils.dataset, trained.dataset.field2token_id["item_id"]
    histories = [[theirs[token_of(student, "item_id", item)] for item in row] for row in batch["item_id_list"].tolist()]
    with torch.no_grad():
        expected = trained.model.forward(torch.tensor(histories), batch["item_length"])
    assert torch.allclose(teacher.user_vectors(batch), expected, atol=1e-6)
    items = torch.tensor([theirs[token_of(student, "item_id", item)] for item in batch["item_id"].tolist()])
    assert torch.equal(teacher.item_vectors(batch["item_id"]), trained.model.item_embedding.weight[items])
    logits = (expected * trained.model.item_embedding.weight[items]).sum(1)
    assert torch.allclose(teacher.batch_logits(batch), logits, atol=1e-6)


@pytest.mark.slow
def test_histories_are_as_wide_as_the_teachers(timed_data: Path, checkpoint_of: Checkpoints) -> None:
    trained, file = checkpoint_of("SASRec", timed_data, MAX_ITEM_LIST_LENGTH=4)
    teacher = open_for(timed_data, file, "GRU4Rec", of_rows=True)
    batch = first_rows(teacher.pupils)
    rows = [row[:length][-4:] for row, length in zip(batch["item_id_list"].tolist(), batch["item_length"].tolist())]
    found = teacher.matching.rows(batch)["item_id_list"]
    assert found.tolist() == [row + [0] * (4 - len(row)) for row in rows]


@pytest.mark.slow
def test_a_teacher_with_features_of_items_that_nobody_has(timed_data: Path, checkpoint_of: Checkpoints) -> None:
    trained, file = checkpoint_of("FDSA", timed_data)
    teacher = open_for(timed_data, file)
    assert trained.dataset.item_num > teacher.pupils.item_count
    assert len(teacher.tables[1]) == teacher.pupils.item_count


def click_settings() -> dict[str, Any]:
    args = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user", "mode": "labeled"}
    return {"eval_args": args, "user_inter_num_interval": None}


@pytest.mark.parametrize("same_order", [True, False])
@pytest.mark.slow
def test_logits_of_clicks(timed_data: Path, reordered_data: Path, checkpoint_of: Checkpoints, same_order: bool) -> None:
    trained, file = checkpoint_of("DeepFM", timed_data if same_order else reordered_data, **click_settings())
    teacher = open_for(timed_data, file, "FM", **click_settings())
    batch = teacher.pupils.dataset.inter_feat[np.arange(8)]
    batch = teacher.pupils.dataset.join(batch)
    theirs = trained.dataset
    keys = {"user_id": "user_id", "item_id": "item_id"}
    ids = {
        name: torch.tensor(
            [theirs.field2token_id[name][token_of(teacher.pupils.dataset, name, i)] for i in batch[name]]
        )
        for name in keys
    }
    whole = theirs.join(type(batch)({**ids}))
    with torch.no_grad():
        expected = trained.model.forward(whole)
    assert torch.allclose(teacher.batch_logits(batch), expected.view(-1), atol=1e-6)
    assert "DeepFM reads bundles of fields" in refusal(lambda: teacher.items_of_users)
    assert "DeepFM reads bundles of fields" in refusal(lambda: teacher.tables)
    del batch.interaction["age"]
    assert "reads the field 'age'" in refusal(lambda: teacher.batch_logits(batch))


@pytest.mark.slow
def test_models_without_gradients_teach_rankings_only(timed_data: Path, checkpoint_of: Checkpoints) -> None:
    _, file = checkpoint_of("ItemKNN", timed_data)
    teacher = open_for(timed_data, file)
    assert (teacher.items_of_users[1:, 0] > 0).all()
    for ask in (lambda: teacher.widths, teacher.require_logits):
        text = refusal(ask)
        assert str(file) in text and "learns from rankings: ItemKNN is no model" in text and "by gradient" in text


@pytest.mark.slow
def test_a_teacher_that_draws_when_it_scores(timed_data: Path, checkpoint_of: Checkpoints) -> None:
    _, file = checkpoint_of("DiffRec", timed_data)
    first, second = open_for(timed_data, file), open_for(timed_data, file)
    before = random_state()
    lists = first.items_of_users
    torch.rand(5)
    assert np.array_equal(lists, second.items_of_users)
    torch.set_rng_state(before["torch"])
    assert first.users_of_items.any() and not have_moved(before)


@pytest.mark.slow
def test_a_teacher_of_users_for_a_student_of_rows(timed_data: Path, checkpoint_of: Checkpoints) -> None:
    trained, file = checkpoint_of("BPR", timed_data)
    teacher = open_for(timed_data, file, "GRU4Rec", of_rows=True)
    batch = first_rows(teacher.pupils)
    assert torch.equal(teacher.user_vectors(batch), trained.model.user_embedding.weight[batch["user_id"]])
    expected = trained.model.predict(batch)
    assert torch.allclose(teacher.batch_logits(batch), expected, atol=1e-6)


@pytest.mark.slow
def test_a_large_model_of_the_users_own_class(timed_data: Path, tmp_path: Path) -> None:
    settings = settings_of("BPR", timed_data, embedding_size=24)
    file = Trained(own_models.Biased, settings, tmp_path).save(tmp_path / "own.pth")
    distilled = {**settings, "embedding_size": 4, "distiller": "rrd", "distill_teacher": str(file)}
    config = PruneConfig(own_models.Biased, DATASET, config_dict=distilled)
    teacher = open_teacher(config, pupils_of(config))
    assert (teacher.items_of_users[1:, 0] > 0).all()
    assert "model Biased is unknown" in refusal(lambda: open_for(timed_data, file))


# ---- where a teacher comes from --------------------------------------------------------------------------------------


def test_what_the_journal_says_of_a_checkpoint(
    timed_data: Path, checkpoint_of: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, _ = checkpoint_of("BPR", timed_data)
    monkeypatch.setattr(trained.trainer, "best_valid_score", 0.25)
    again = trained.save(tmp_path / "scored.pth")
    identity = open_for(timed_data, again).identity
    assert [identity.pop("sha256")] == student_config(timed_data, again).teacher_digests
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    assert identity == {
        "kind": "checkpoint", "path": str(again), "model": "BPR", "parameters": parameters,
        "metrics": {"valid": {"ndcg@10": 0.25}},
    }  # fmt: skip


def test_nothing_in_a_checkpoint_is_run(timed_data: Path, tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "run"),)

    class Later(Harmful):
        def __reduce__(self) -> Any:
            return print, (Harmful(),)

    trained, _ = checkpoint_of("BPR", timed_data)
    state = {"config": Harmful(), "state_dict": {}, "more": Later()}
    torch.save(state, tmp_path / "harmful.pth")
    assert "is no checkpoint of RecBole" in refusal(lambda: open_for(timed_data, tmp_path / "harmful.pth"))
    whole = {"config": trained.config, "state_dict": trained.model.state_dict(), "more": Later()}
    torch.save({**whole, "other_parameter": {"kept": Harmful()}}, tmp_path / "more.pth", pickle_protocol=4)
    assert open_for(timed_data, tmp_path / "more.pth").widths == (16, 16)
    assert not (tmp_path / "run").exists()
    for content in (b"", b"text", (tmp_path / "more.pth").read_bytes()[:-2000]):
        (tmp_path / "broken.pth").write_bytes(content)
        assert "is no checkpoint of RecBole" in refusal(lambda: open_for(timed_data, tmp_path / "broken.pth"))


@pytest.mark.slow
def test_a_moved_data_folder_and_an_unknown_model(timed_data: Path, tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    trained, _ = checkpoint_of("BPR", timed_data)
    trained.config.external_config_dict["data_path"] = str(tmp_path / "gone")
    try:
        assert open_for(timed_data, trained.save(tmp_path / "moved.pth")).widths == (16, 16)
    finally:
        trained.config.external_config_dict["data_path"] = str(timed_data)
    name, trained.config.model = trained.config.model, "Elsewhere"
    try:
        file = trained.save(tmp_path / "elsewhere.pth")
    finally:
        trained.config.model = name
    assert "model Elsewhere is unknown" in refusal(lambda: open_for(timed_data, file))


@pytest.fixture(scope="module")
def finished(timed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("runs")
    here = os.getcwd()
    os.chdir(folder)
    try:
        config = PruneConfig("BPR", DATASET, config_dict={**settings_of("BPR", timed_data), "output_dir": str(folder)})
        return run(config)
    finally:
        os.chdir(here)


@pytest.mark.slow
def test_runs_their_checkpoints_and_artifacts(timed_data: Path, finished: Any) -> None:
    folder, ticket = finished.experiment.folder.path, finished.tickets[0]
    weights = finished.experiment.weights_of(ticket)
    paths = {"run": folder, "artifact": folder / "artifact"}
    found = {kind: open_for(timed_data, path) for kind, path in paths.items()}
    found["ticket"] = open_for(timed_data, folder / ticket.checkpoint_file)
    for name, teacher in found.items():
        assert torch.equal(teacher.tables[1], weights["item_embedding.weight"]), name
        identity = teacher.identity
        assert identity["kind"] == {"ticket": "run"}.get(name, name) and identity["ticket"] == 0
        assert identity["model"] == "BPR" and identity["metrics"] == {"valid": ticket.valid, "test": ticket.test}
    assert student_config(timed_data, folder).run_hash == student_config(timed_data, folder / "artifact").run_hash
    changed = folder.with_name("changed")
    shutil.copytree(folder, changed)
    with open(changed / ticket.checkpoint_file, "ab") as file:
        file.write(b"\0")
    assert "not the checkpoint of which the journal" in refusal(
        lambda: open_for(timed_data, changed / ticket.checkpoint_file)
    )
    shutil.copy(folder / ticket.checkpoint_file, changed / "checkpoints" / "ticket-009.pth")
    assert "no such ticket" in refusal(lambda: open_for(timed_data, changed / "checkpoints" / "ticket-009.pth"))
    with open(changed / "artifact" / "ticket.safetensors", "ab") as file:
        file.write(b"\0")
    assert "is too long" in refusal(lambda: open_for(timed_data, changed))


@pytest.mark.slow
def test_a_teacher_that_was_trained_first(timed_data: Path, finished: Any) -> None:
    config = student_config(timed_data, None, distill_teacher_model="BPR")
    teacher = open_teacher(config, pupils_of(config), trained=[finished.experiment.folder.path])
    assert teacher.identity["kind"] == "run" and teacher.tables is not None


# ---- other data, broken numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"user_inter_num_interval": "[0,30]"}, ["only the student has", "users, first"]),
        ({"eval_args": {"split": {"LS": "valid_only"}, "order": "TO", "mode": "full"}}, ["only the teacher trains on"]),
        ({"eval_args": {"split": {"LS": "valid_and_test"}, "order": "RO", "mode": "full"}},
         ["only the student trains on", "only the teacher trains on"]),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_other_data_are_refused_in_one_message(
    timed_data: Path, checkpoint_of: Checkpoints, changes: dict[str, Any], parts: list[str]
) -> None:
    _, file = checkpoint_of("BPR", timed_data, **changes)
    text = refusal(lambda: open_for(timed_data, file))
    assert text.startswith(f"distill_teacher={file}: it was trained on other data")
    assert all(part in text for part in parts), text


@pytest.mark.slow
def test_interactions_that_differ_are_counted(timed_data: Path, checkpoint_of: Checkpoints) -> None:
    args = {"split": {"LS": "valid_only"}, "order": "TO", "mode": "full"}
    trained, file = checkpoint_of("BPR", timed_data, eval_args=args)
    users = trained.dataset.user_num - 1
    assert f"only the teacher trains on {users} interactions" in refusal(lambda: open_for(timed_data, file))


def broken(trained: Trained, name: str, value: float, file: Path) -> Path:
    weight = getattr(trained.model, name).weight
    kept = weight[3, 2].item()
    with torch.no_grad():
        weight[3, 2] = value
        trained.save(file)
        weight[3, 2] = kept
    return file


@pytest.mark.slow
def test_numbers_that_are_none(timed_data: Path, tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    trained, _ = checkpoint_of("BPR", timed_data)
    nan = broken(trained, "item_embedding", float("nan"), tmp_path / "nan.pth")
    assert "1 of the 3568 weights in item_embedding.weight are NaN" in refusal(lambda: open_for(timed_data, nan))
    infinite = broken(trained, "user_embedding", float("inf"), tmp_path / "inf.pth")
    teacher = open_for(timed_data, infinite)
    assert "NaN or infinite numbers in 1 of its user vectors" in refusal(lambda: teacher.tables)
    trained, _ = checkpoint_of("NeuMF", timed_data)
    infinite = broken(trained, "user_mf_embedding", float("inf"), tmp_path / "inf2.pth")
    teacher = open_for(timed_data, infinite)
    assert "scores are NaN or infinite, the first of internal id 3" in refusal(lambda: teacher.items_of_users)
    batch = teacher.pupils.dataset.inter_feat
    mine = batch[batch["user_id"] == 3]
    assert "logits that are NaN" in refusal(lambda: teacher.batch_logits(mine))


# ---- rankings on disk ------------------------------------------------------------------------------------------------


def folder_at(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.open()
    return folder


def test_rankings_are_computed_once(
    timed_data: Path, tmp_path: Path, checkpoint_of: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, file = checkpoint_of("BPR", timed_data)
    folder = folder_at(tmp_path / "run")
    first = open_for(timed_data, file, folder=folder)
    expected = [first.items_of_users, first.scores, first.users_of_items]
    content = {path.name: path.read_bytes() for path in (folder.path / "distillation").iterdir()}
    assert set(content) == {"teacher.json", "items_of_users.safetensors", "users_of_items.safetensors"}
    assert len(content["users_of_items.safetensors"]) < 4 * expected[2].size + 200
    monkeypatch.setattr(ModelTeacher, "rank_items", lambda self: pytest.fail("ranked again"))
    monkeypatch.setattr(ModelTeacher, "rank_users", lambda self: pytest.fail("ranked again"))
    second = open_for(timed_data, file, folder=folder)
    for one, other in zip(expected, [second.items_of_users, second.scores, second.users_of_items]):
        assert np.array_equal(one, other) and one.dtype == other.dtype
    monkeypatch.undo()
    again = folder_at(tmp_path / "again")
    third = open_for(timed_data, file, folder=again)
    assert third.items_of_users is not None and third.users_of_items is not None
    assert {path.name: path.read_bytes() for path in (again.path / "distillation").iterdir()} == content
    write_atomic(folder.path / "distillation" / "items_of_users.safetensors", b"other")
    assert "is corrupt" in refusal(lambda: open_for(timed_data, file, folder=folder).items_of_users, StoreError)
    folder.close()
    again.close()


@pytest.mark.slow
def test_a_teacher_that_changed_since_the_run_began(
    timed_data: Path, tmp_path: Path, checkpoint_of: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, file = checkpoint_of("BPR", timed_data)
    copy = tmp_path / "copy.pth"
    shutil.copy(file, copy)
    folder = folder_at(tmp_path / "run")
    config = student_config(timed_data, copy)
    open_teacher(config, pupils_of(config), folder)
    other = shutil.copy(checkpoint_of("BPR", timed_data, embedding_size=8)[1], copy)
    assert "it changed while this run began" in refusal(
        lambda: open_teacher(config, pupils_of(config), folder), StoreError
    )
    open_for(timed_data, other, folder=folder)  # nothing is trained yet
    monkeypatch.setattr(RunFolder, "is_trained", lambda self: True)
    text = refusal(lambda: open_for(timed_data, file, folder=folder), StoreError)
    assert "the teacher changed since" in text and "--fresh=True" in text
    folder.close()
