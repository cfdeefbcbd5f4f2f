"""Distillers where a row is what is taught: whole rows of logits, lists of histories, vectors of fields."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import own_models
import pytest
import torch
from recbole.data.interaction import Interaction
from teachers import Trained, first_rows, open_for, refusal, settings_of, student_config
from zoo import DATASET, config_for
from zoo_data import make_dataset

from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.data.random_streams import have_moved, random_state
from recbole_prune.data.used_ids import UsedIds
from recbole_prune.distillers import get_distiller
from recbole_prune.distillers.base import Distiller
from recbole_prune.distillers.batch_lists import Drawn, list_source, take_ranks
from recbole_prune.distillers.latent import FieldHints
from recbole_prune.distillers.losses.soft_labels import soft_row_cross_entropy
from recbole_prune.distillers.ranking import draw_lists, outside_of
from recbole_prune.distillers.teaching import Teaching, require_student
from recbole_prune.run.workshop import Workshop
from recbole_prune.scoring.known_scores import contradiction_of_subclass
from recbole_prune.teachers.model import ModelTeacher
from recbole_prune.teachers.pupils import Pupils
from recbole_prune.teachers.sources import open_teacher

NAN = float("nan")
ITEMS = 40


# ---- the loss over whole rows ----------------------------------------------------------------------------------------


def test_soft_rows_by_hand() -> None:
    """Temperature 2, logits with known softmax: teacher (1/4, 3/4), student (1/2, 1/2)."""
    teacher = 2 * torch.tensor([[0.25, 0.75]], dtype=torch.double).log()
    student = torch.full((1, 2), 5.0, dtype=torch.double)
    assert soft_row_cross_entropy(student, teacher, 2.0).item() == pytest.approx(4 * np.log(2))


def test_gradient_of_soft_rows_is_the_difference_of_probabilities() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(3, 7), torch.randn(3, 7, requires_grad=True)
    soft_row_cross_entropy(student, teacher, 3.0).sum().backward()
    expected = 3.0 * ((student / 3).softmax(1) - (teacher / 3).softmax(1))
    assert student.grad is not None
    assert torch.allclose(student.grad, expected.detach(), atol=1e-6)


def test_soft_rows_at_extremes_and_unknown_rows() -> None:
    teacher = torch.tensor([[3e4, -3e4, 0.0], [NAN, NAN, NAN]])
    student = torch.tensor([[-3e4, 3e4, 0.0], [1.0, 2.0, 3.0]], requires_grad=True)
    losses = soft_row_cross_entropy(student, teacher, 1.0)
    losses.sum().backward()
    assert losses.tolist() == [pytest.approx(6e4), 0.0]
    assert student.grad is not None
    assert student.grad.isfinite().all() and not student.grad[1].any()


# ---- lists of histories ----------------------------------------------------------------------------------------------


class Ranks:
    """A teacher that ranks rows by made-up scores, 15 items long."""

    def __init__(self, seed: int = 7) -> None:
        config = {"seed": seed, "NEG_PREFIX": "neg_", "LIST_SUFFIX": "_list"}
        dataset = SimpleNamespace(config=config, uid_field="user", iid_field="item", user_num=9, item_num=ITEMS)
        self.pupils = Pupils(dataset, of_rows=True)  # type: ignore[arg-type]

    def rank_rows(self, batch: Interaction) -> tuple[np.ndarray, np.ndarray]:
        """Item ids in ascending order that the row has not consumed, with falling scores."""
        consumed = self.pupils.consumed_in(batch)
        free = [sorted(set(range(1, ITEMS)) - consumed[row])[:15] for row in range(len(batch))]
        return np.array(free, np.int32), np.tile(-np.arange(15, dtype=np.float32), (len(batch), 1))


def batch_of_histories(seed: int = 0) -> Interaction:
    """Six histories of up to 5 items and their next items; padding behind."""
    random = np.random.default_rng(seed)
    histories = np.stack([random.choice(np.arange(1, ITEMS), 5, replace=False) for _ in range(6)])
    histories[np.arange(5) >= np.arange(1, 7)[:, None]] = 0
    users, targets = np.arange(1, 7), random.integers(1, ITEMS, 6)
    columns = {"user": users, "item": targets, "item_list": histories}
    return Interaction({name: torch.from_numpy(column) for name, column in columns.items()})


def draw(ranked: Any, consumed: UsedIds, stream: np.random.Generator) -> Drawn:
    return draw_lists(ranked, outside_of(consumed, ranked[0]), 6, 8, None, stream)


def test_what_a_row_has_consumed_is_its_history_and_its_target() -> None:
    batch = batch_of_histories()
    consumed = Ranks().pupils.consumed_in(batch)
    for row, (history, target) in enumerate(zip(batch["item_list"].tolist(), batch["item"].tolist())):
        assert consumed[row] == ({*history, target} - {0})


def test_lists_of_rows_are_outside_the_history_and_of_each_other() -> None:
    teacher, batch = Ranks(), batch_of_histories()
    listed = list_source(teacher, draw).of(batch)  # type: ignore[arg-type]
    consumed, ranked = teacher.pupils.consumed_in(batch), teacher.rank_rows(batch)[0]
    assert listed.rows is batch and listed.interesting.tolist() == ranked[:, :6].tolist()
    for row, drawn in enumerate(listed.uninteresting.tolist()):
        assert len(set(drawn)) == 8 and 0 not in drawn
        assert not set(drawn) & (consumed[row] | set(ranked[row].tolist()))


def test_draws_follow_from_seed_epoch_and_batch_and_shift_no_stream() -> None:
    batch = batch_of_histories()

    def drawn(seed: int, epoch: int, count: int) -> list[Any]:
        source = list_source(Ranks(seed), draw)  # type: ignore[arg-type]
        source.begin_epoch(epoch)
        return [source.of(batch).uninteresting.tolist() for _ in range(count)]

    torch.manual_seed(1)
    np.random.seed(1)
    before = random_state()
    whole = drawn(7, 3, 2)
    assert drawn(7, 3, 1) == whole[:1] and drawn(7, 3, 2) == whole
    assert whole[0] != whole[1] and drawn(7, 4, 1) != whole[:1] and drawn(8, 3, 1) != whole[:1]
    assert not have_moved(before)


def test_uninteresting_items_of_rows_are_uniform() -> None:
    """Chi-squared of 1600 draws over the items that row 0 can get."""
    teacher, batch = Ranks(), batch_of_histories()
    source = list_source(teacher, draw)  # type: ignore[arg-type]
    counts = np.bincount(np.concatenate([source.of(batch).uninteresting[0].numpy() for _ in range(200)]))
    taken = teacher.pupils.consumed_in(batch)[0] | set(teacher.rank_rows(batch)[0][0].tolist())
    free = [item for item in range(1, ITEMS) if item not in taken]
    found = counts[free]
    assert found.sum() == counts.sum() == 1600
    # without replacement counts vary less than in a multinomial; 99.9 % point of 25 degrees of freedom is 52.6
    assert ((found - found.mean()) ** 2 / found.mean()).sum() < 52.6


def test_ranks_that_are_missing_take_nothing() -> None:
    ids, scores = take_ranks((np.array([[5, 6, -1]]), np.array([[0.5, 0.25, 0.0]])), np.array([[1, -1, 0]]))
    assert ids.tolist() == [[6, -1, 5]] and scores.tolist() == [[0.25, 0.0, 0.5]]


# ---- real models -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_dataset(folder)
    return folder


def checkpoint(model: str | type, data: Path, folder: Path, **changes: Any) -> tuple[Trained, Path]:
    name = model if isinstance(model, str) else model.__name__
    trained = Trained(model, settings_of(name, data, **changes), folder)
    return trained, trained.save(folder / f"{name}.pth")


@pytest.mark.slow
def test_a_sequential_teacher_ranks_rows_as_its_own_scores_do(data: Path, tmp_path: Path) -> None:
    trained, file = checkpoint("SASRec", data, tmp_path)
    teacher = open_for(data, file, "GRU4Rec", of_rows=True, distill_list_length=12)
    batch = first_rows(teacher.pupils)
    before = torch.get_rng_state()
    lists, found = teacher.rank_rows(batch)
    logits = teacher.row_logits(batch)
    assert torch.equal(before, torch.get_rng_state()) and not logits.requires_grad
    with torch.no_grad():
        scores = trained.model.full_sort_predict(batch).view(len(batch), -1)
    assert torch.allclose(logits[:, 1:], scores[:, 1:], atol=1e-5)
    for row, (history, target) in enumerate(zip(batch["item_id_list"].tolist(), batch["item_id"].tolist())):
        own = scores[row].clone()
        own[[0, target, *history]] = -torch.inf
        assert np.allclose(scores[row, lists[row].astype(int)].numpy(), own.topk(12).values.numpy(), atol=1e-5)
        assert not {0, target, *history} & set(lists[row].tolist())
        assert np.allclose(found[row], own.topk(12).values.numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_teacher_of_users_gives_rows_of_the_users_of_a_batch(data: Path, tmp_path: Path) -> None:
    """A sequential teacher knows no history of some users: their rows are NaN."""
    trained, file = checkpoint("BPR", data, tmp_path)
    teacher = open_for(data, file, "SASRec", of_rows=True)
    batch = first_rows(teacher.pupils)
    with torch.no_grad():
        scores = trained.model.full_sort_predict({"user_id": batch["user_id"]}).view(len(batch), -1)
    assert torch.allclose(teacher.row_logits(batch), scores, atol=1e-6)
    _, file = checkpoint("SASRec", data, tmp_path)
    teacher = open_for(data, file, "MultiVAE")
    rows = teacher.row_logits(torch.arange(teacher.pupils.user_count))
    known = set(teacher._known_users().tolist())  # type: ignore[attr-defined]
    assert all(bool(row.isnan().all()) == (user not in known) for user, row in enumerate(rows))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "distiller"), [("MultiVAE", "kd"), ("SASRec", "rrd"), ("DeepFM", "hint")])
def test_losses_teach_the_student_and_not_the_teacher(data: Path, tmp_path: Path, model: str, distiller: str) -> None:
    file = Trained(model, config_for(model, data), tmp_path).save(tmp_path / "teacher.pth")
    given = {"distiller": distiller, "distill_teacher": str(file)}
    config = PruneConfig(model, DATASET, config_dict={**config_for(model, data), **given})
    workshop = Workshop(config)
    pupils = Pupils(workshop.train_data._dataset, of_rows=model == "SASRec", whole_rows=model != "DeepFM")
    opened = open_teacher(config, pupils)
    assert isinstance(opened, ModelTeacher)
    student = workshop.build_model()
    kind = get_distiller(distiller).for_student(student)
    kind.ask(student, opened)
    part = kind(config.settings, opened, pupils)
    part.attach(student)
    part.begin_epoch()
    batch = next(iter(workshop.train_data))
    batch = batch[0] if isinstance(batch, tuple) else batch
    [loss] = part.losses(student, batch).values()
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert any(weight.grad is not None and weight.grad.any() for weight in student.parameters())
    assert all(weight.grad is None and not weight.requires_grad for weight in opened.model.parameters())
    assert not student.state_dict().keys() & set(part.parameters())


def refused(data: Path, model: str, distiller: str) -> str:
    """With what a student is refused; no teacher is opened."""
    given = {"distiller": distiller, "distill_teacher_model": "BPR"}
    config = PruneConfig(model, DATASET, config_dict={**config_for(model, data), **given})
    student = Workshop(config).build_model()
    return refusal(lambda: require_student(get_distiller(distiller).for_student(student), config, student))


@pytest.mark.slow
def test_what_cannot_be_taught_is_refused_with_its_reason(data: Path) -> None:
    assert "no closed set" in refused(data, "SASRec", "ir_rrd")
    assert "no vector stands for a user" in refused(data, "DeepFM", "de")
    assert "no lists of items" in refused(data, "DeepFM", "rrd")


def test_only_hint_learns_from_fields() -> None:
    """Of the methods that copy vectors."""

    class Student:
        pass

    student: Any = Student()
    methods = ["hint", "de", "phr", "ftd", "htd", "de_rrd"]
    kinds: list[type[Distiller]] = [get_distiller(name).for_student(student) for name in methods]
    assert FieldHints not in kinds
    Student.__name__, Student.__module__ = "DeepFM", "recbole.model.context_aware_recommender.deepfm"
    found = [get_distiller(name).for_student(student) for name in methods]
    assert found[0] is FieldHints and FieldHints not in found[1:]


@pytest.mark.slow
def test_a_narrower_teacher_is_refused_by_methods_that_need_a_wider_one(data: Path, tmp_path: Path) -> None:
    _, file = checkpoint("BPR", data, tmp_path, embedding_size=4)
    student = Trained("BPR", settings_of("BPR", data, embedding_size=5), tmp_path).model
    teacher = open_for(data, file)
    for name in ("hint", "de", "phr", "de_rrd"):
        text = refusal(partial(get_distiller(name).ask, student, teacher))
        assert "width 4" in text and "student's 5" in text and str(file) in text
    for name in ("ftd", "htd"):
        get_distiller(name).ask(student, teacher)
    equal = Trained("BPR", settings_of("BPR", data, embedding_size=4), tmp_path).model
    get_distiller("de").ask(equal, teacher)


@pytest.mark.slow
def test_a_subclass_with_other_scores_is_refused(data: Path, tmp_path: Path) -> None:
    trained, file = checkpoint("BPR", data, tmp_path)
    rows = trained.train_data._dataset.inter_feat
    assert contradiction_of_subclass(trained.model, type(trained.model), rows) == ""
    changed = student_config(data, file)
    own = type(changed)(own_models.BPR, changed["dataset"], config_dict=changed.external_config_dict)
    text = refusal(lambda: Teaching(Workshop(own)))
    assert "cannot teach BPR" in text and "own_models.BPR are not those" in text
