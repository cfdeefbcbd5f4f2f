"""Models as teachers: what they say, in the student's ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teachers import Checkpoints, Trained, first_rows, no_gradient, open_for, refusal, student_config
from test_popularity import heard, require_equal, slowly

from recbole_prune.data.random_streams import have_moved, random_state
from recbole_prune.distillers.teaching import Teaching
from recbole_prune.run.workshop import Workshop
from recbole_prune.teachers import ranked_lists
from recbole_prune.teachers.base import Teacher
from recbole_prune.teachers.model import ModelTeacher
from recbole_prune.teachers.popularity import popularity_of_teacher

LENGTH = 25


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
    monkeypatch.setattr(ranked_lists, "scores_at_once", lambda device: 1)
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
    popularity = workshop.popularity
    assert popularity is not None
    known = {item: theirs[token_of(student, "item_id", item)] for item in range(1, len(popularity.counts))}
    popular = {known[int(item)] for item in torch.nonzero(popularity.popular)[:, 0]}
    counts = {other: int(popularity.counts[item]) for item, other in known.items()}
    lists, _ = heard(trained.trainer, trained.train_data, trained.test_data)
    found = popularity_of_teacher(workshop, teacher)
    require_equal(found, slowly(lists, counts, popular, [5], len(known)))
    assert found is not None and found["popular"], "some are found"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "student"), [("BPR", "GRU4Rec"), ("SASRec", "BPR")])
def test_recall_of_a_teacher_that_is_asked_in_another_way(
    name: str, student: str, timed_data: Path, checkpoint_of: Checkpoints
) -> None:
    _, file = checkpoint_of(name, timed_data)
    workshop = Workshop(student_config(timed_data, file, student))
    found = popularity_of_teacher(workshop, Teaching(workshop).teacher)
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
