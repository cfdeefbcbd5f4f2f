"""What every distiller owes, checked for each line of the table of distillers on a model of each kind.

No name of a method stands here where it follows from the table, ``promises`` of its class or its property file.
"""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from conformance import settings_of as pruner_settings
from distilling import EPOCHS, Classroom, Lesson, equal, kinds, require_equal
from marks import slow_but
from training_bench import experiment_of
from zoo import DATASET
from zoo_plain import reload

from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.distillers import DISTILLERS, get_distiller
from recbole_prune.distillers.base import Distiller, Promises
from recbole_prune.errors import ConfigError
from recbole_prune.pruners import get_pruner
from recbole_prune.run.opening import run_path

QUICK_MODEL = "BPR"
MODELS = (QUICK_MODEL, "LightGCN", "NeuMF", "MultiVAE", "SASRec", "DeepFM")


# ---- the checks ------------------------------------------------------------------------------------------------------


def promises_of(lesson: Lesson) -> Promises:
    """What the lesson's method owes."""
    return get_distiller(lesson.method).promises


def check_losses_in_the_log(lesson: Lesson) -> None:
    """The sums of every epoch, under names of the method's."""
    terms = lesson.taught.terms()
    assert sorted(terms) == list(range(EPOCHS))
    names = set(terms[0])
    assert names and all(set(sums) == names for sums in terms.values())
    assert {name.split("_")[0] for name in names} <= {lesson.method, *lesson.method.split("_")}
    assert all(math.isfinite(value) and value > 0 for sums in terms.values() for value in sums.values())


def check_journal(lesson: Lesson) -> None:
    """Who taught, how good the teacher is, and what it took."""
    many = promises_of(lesson).many_teachers
    for record in lesson.taught.records:
        assert record["distill_epoch_seconds"] > 0
        assert ("teacher" in record) == promises_of(lesson).teacher
        teachers = record["teacher"].get("members", [record["teacher"]]) if "teacher" in record else []
        assert len(teachers) == promises_of(lesson).teacher + many
        for teacher in teachers:
            assert teacher["kind"] == "run" and re.fullmatch(r"[0-9a-f]{64}", teacher["sha256"])
            assert teacher["parameters"] > 0 and set(teacher["metrics"]) == {"valid", "test"}
        if teachers:
            assert teachers[0]["model"] == lesson.room.model
            assert re.fullmatch(r"[0-9a-f]{64}", record["teacher"]["sha256"])
        for told in (record, *teachers):
            assert ("popularity" in told) == any(name.startswith("recall@") for name in record["test"])
            assert told.get("popularity", "not measured") is not None
    untaught = lesson.room.untaught.records[0]
    assert not {"teacher", "distill_epoch_seconds"} & set(untaught)
    assert ("popularity" in untaught) == any(name.startswith("recall@") for name in untaught["test"])


def check_checkpoint(lesson: Lesson) -> None:
    """It is RecBole's, of the student's class, and has the metrics of the journal."""
    plain, checkpoint, alone = lesson.room.plain, lesson.taught.checkpoint, lesson.room.untaught.checkpoint
    assert type(checkpoint["config"]).__module__ == "recbole.config.configurator"
    assert checkpoint["config"]["model"] == lesson.room.model
    assert list(checkpoint) == list(alone) and list(lesson.taught.weights) == list(lesson.room.untaught.weights)
    groups, expected = (saved["optimizer"]["param_groups"] for saved in (checkpoint, alone))
    assert [group["params"] for group in groups] == [group["params"] for group in expected]
    plain.model.load_state_dict(checkpoint["state_dict"])
    plain.model.load_other_parameter(checkpoint.get("other_parameter"))
    for part, data in (("valid", plain.valid_data), ("test", plain.test_data)):
        metrics = dict(plain.trainer.evaluate(data, load_best_model=False))
        assert metrics == pytest.approx(lesson.taught.records[-1][part], abs=2e-4)


def check_modules(lesson: Lesson) -> None:
    """Neither the teacher nor what helps to learn stands in the student."""
    seen = lesson.seen
    of_teacher = seen.teacher_model.modules() if promises_of(lesson).teacher else ()
    others = {*map(id, of_teacher), *map(id, seen.helper_modules)}
    assert not others & set(map(id, seen.trainer.model.modules()))
    assert not set(map(id, seen.part.parameters().values())) & set(map(id, seen.trainer.model.parameters()))
    trained = {id(parameter) for group in seen.trainer.optimizer.param_groups for parameter in group["params"]}
    if promises_of(lesson).teacher:
        assert not trained & set(map(id, seen.teacher_model.parameters()))


def check_teacher(lesson: Lesson) -> None:
    """It is as it was, and in evaluation mode."""
    if not promises_of(lesson).teacher:
        return
    teacher = lesson.seen.teacher_model
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert equal(lesson.seen.teacher, dict(teacher.state_dict()))


def check_helpers(lesson: Lesson) -> None:
    """What helps to learn learns."""
    now = lesson.seen.part.parameters()
    assert list(now) == list(lesson.seen.helpers)
    assert not any(torch.equal(now[name], before) for name, before in lesson.seen.helpers.items())


def check_teaching_changes_the_student(lesson: Lesson) -> None:
    """The weights are others than those of the student alone."""
    assert not equal(lesson.taught.weights, lesson.room.untaught.weights)


def check_no_weight_no_change(lesson: Lesson) -> None:
    """With weights of 0 the student is the one alone, bit for bit."""
    nothing = lesson.of_no_weight()
    assert set(nothing.terms()) == set(range(EPOCHS))
    assert equal(nothing.weights, lesson.room.untaught.weights)
    assert nothing.records[0]["history"] == lesson.room.untaught.records[0]["history"]


CHECKS: tuple[Callable[[Lesson], None], ...] = (
    check_losses_in_the_log,
    check_journal,
    check_checkpoint,
    check_modules,
    check_teacher,
    check_helpers,
    check_teaching_changes_the_student,
    check_no_weight_no_change,
)

# what one method of a kind shows for all: they share the way
OF_ONE_KIND = (check_checkpoint, check_no_weight_no_change)


def check_refusal(lesson: Lesson) -> None:
    """For a reason that the class lists; nothing of the student is trained."""
    message = str(lesson.refusal)
    assert "\n" not in message and f"distiller={lesson.method} cannot teach {lesson.room.model}" in message
    assert any(re.search(pattern, message) for pattern in get_distiller(lesson.method).promises.refuses), message
    assert not list(lesson.room.folder.rglob(f"*+{lesson.method}-*/tickets.jsonl"))


# ---- over the table --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rooms(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Classroom]:
    """The room of a model."""
    known: dict[str, Classroom] = {}

    def room(model: str) -> Classroom:
        return known.setdefault(model, Classroom(model, tiny_data, tmp_path_factory.mktemp(model)))

    return room


@pytest.fixture(scope="module")
def lessons(rooms: Callable[[str], Classroom]) -> Callable[[str, str], Lesson]:
    """The lesson of a method and a model."""
    known: dict[tuple[str, str], Lesson] = {}

    def lesson(method: str, model: str) -> Lesson:
        return known.setdefault((method, model), Lesson(method, rooms(model)))

    return lesson


# copies both vectors and lists
QUICK_METHOD = next(
    name for name in DISTILLERS if get_distiller(name).promises.vectors and get_distiller(name).promises.lists
)
CASES = [(method, model) for model in MODELS for method in DISTILLERS]


@pytest.mark.parametrize(("method", "model"), slow_but([(QUICK_METHOD, QUICK_MODEL)], CASES))
def test_a_distiller_keeps_its_promises(method: str, model: str, lessons: Callable[[str, str], Lesson]) -> None:
    lesson = lessons(method, model)
    if lesson.refusal is not None:
        check_refusal(lesson)
        return
    for check in CHECKS:
        if check not in OF_ONE_KIND or method in kinds():
            check(lesson)


def test_a_class_is_refused_before_its_teacher_is_trained(tiny_data: Path, tmp_path: Path) -> None:
    room, refused = Classroom("DeepFM", tiny_data, tmp_path), 0
    for method in DISTILLERS:
        if get_distiller(method).promises.lists:
            assert Lesson(method, room).refusal
            refused += 1
    assert refused and not list(tmp_path.rglob("tickets.jsonl"))


def test_every_distiller_has_a_run_and_a_dense_model_of_its_own(tiny_data: Path, tmp_path: Path) -> None:
    room = Classroom(QUICK_MODEL, tiny_data, tmp_path)
    every = [room.lesson(method) for method in DISTILLERS]
    configs = [PruneConfig(QUICK_MODEL, DATASET, config_dict={**room.settings, **lesson}) for lesson in [{}, *every]]
    assert len({run_path(config) for config in configs}) == len(configs)
    assert len({config.base_hash for config in configs}) == len(configs)


@pytest.mark.slow
def test_the_student_alone_is_a_row_of_the_table(rooms: Callable[[str], Classroom]) -> None:
    room = rooms(QUICK_MODEL)
    alone = room.untaught
    taught = room.run(**room.lesson(kinds()[0], distill_alone=True))
    assert taught.spy.trainings <= 2, "the student alone is found, not trained again"
    rows = [line.split() for line in taught.result["table"].strip().splitlines()[2:5]]
    assert [row[0] for row in rows] == ["teacher", "alone", "taught"]
    assert {f"{alone.records[0][part]['ndcg@10']:.4f}" for part in ("valid", "test")} <= set(rows[1])
    assert "adopted_from" not in taught.records[0] and equal(
        taught.weights, room.run(**room.lesson(kinds()[0])).weights
    )


# ---- killed, repeated, from every kind of teacher ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", DISTILLERS)
def test_a_killed_lesson_goes_on_as_if_nothing_had_been(method: str, lessons: Callable[[str, str], Lesson]) -> None:
    lesson = lessons(method, QUICK_MODEL)
    whole, settings = lesson.taught.read(), lesson.room.lesson(method)
    lesson.room.kill(settings, epoch=EPOCHS - 1, batch=1)
    again = lesson.room.run(**settings)
    assert again.folder.path == whole.folder.path and f"continues after epoch {EPOCHS - 1}" in again.log
    require_equal(whole, again)


@pytest.mark.slow
@pytest.mark.parametrize("method", kinds())
def test_the_same_command_gives_the_same(method: str, lessons: Callable[[str, str], Lesson]) -> None:
    lesson = lessons(method, QUICK_MODEL)
    whole = lesson.taught.read()
    require_equal(whole, lesson.room.run(**lesson.room.lesson(method), fresh=True))


@pytest.mark.slow
def test_teachers_of_every_kind(rooms: Callable[[str], Classroom], tmp_path: Path) -> None:
    room = rooms(QUICK_MODEL)
    method = next(name for name in kinds() if get_distiller(name).promises.lists)
    checkpoint, lists = tmp_path / "teacher.pth", tmp_path / "lists.tsv"
    shutil.copyfile(room.teacher / "checkpoints" / "ticket-000.pth", checkpoint)
    rows = (room.data / DATASET / f"{DATASET}.inter").read_text(encoding="utf-8").splitlines()[1:]
    users, items = (sorted({row.split("\t")[place] for row in rows}) for place in (0, 1))
    lists.write_text("".join("\t".join([user, *items]) + "\n" for user in users), encoding="utf-8")
    found = {}
    for kind, path in {
        "run": room.teacher,
        "artifact": room.teacher / "artifact",
        "checkpoint": checkpoint,
        "lists": lists,
    }.items():
        taught = room.run(**room.lesson(method, distill_teacher=str(path)), output_dir=str(tmp_path / kind))
        teacher = taught.records[0]["teacher"]
        assert (teacher["kind"], teacher["path"]) == (kind, str(path))
        found[kind] = taught.weights
    assert equal(found["run"], found["artifact"]) and equal(found["run"], found["checkpoint"])
    assert not equal(found["run"], found["lists"]) and not equal(found["lists"], room.untaught.weights)


# ---- with pruners ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pruner", "method"),
    [("imp", "rrd"), ("dsl", "de_rrd"), ("small_dense", "hint"), ("lcm", "ftd"), ("magprune", "de")],
)
def test_a_pruned_student_is_taught(pruner: str, method: str, rooms: Callable[[str], Classroom]) -> None:
    room = rooms(QUICK_MODEL)
    changes = {**pruner_settings(pruner, QUICK_MODEL, room.data), **room.lesson(method)}
    taught = room.run(**changes)
    settings = {**room.settings, **changes, "output_dir": str(room.folder)}
    counts = get_pruner(pruner)(experiment_of(taught.result, room.model, settings)).counts()
    kept = [record["equal_to_kept"] if record.get("changes") else record["kept"] for record in taught.records]
    assert kept == counts and len(counts) > 1
    for record in taught.records:
        assert record["teacher"]["sha256"] and (record["distill_epoch_seconds"] > 0) == (record["epochs"] > 0)
    adopted = [record["adopted_from"] for record in taught.records if "adopted_from" in record]
    assert all(f"+{method}-" in name for name in adopted), "a dense model is shared among equally taught ones"
    assert len(taught.spy.taught) + len(adopted) == len(taught.records)
    last = reload(taught.folder.path / taught.records[-1]["checkpoint_file"])
    assert list(last.model.state_dict()) == list(taught.weights)


@pytest.mark.slow
def test_a_rewound_ticket_is_taught_from_the_epoch_that_it_begins_at(
    rooms: Callable[[str], Classroom], monkeypatch: pytest.MonkeyPatch
) -> None:
    room, epochs, begin_epoch = rooms(QUICK_MODEL), [], Distiller.begin_epoch
    method = next(name for name in DISTILLERS if get_distiller(name).begin_epoch is begin_epoch)
    monkeypatch.setattr(Distiller, "begin_epoch", lambda part: epochs.append(part.epoch))
    late = {"pruner": "imp", "prune_rounds": 1, "prune_rewind": "late", "prune_rewind_epoch": 1}
    room.run(**room.lesson(method), **late)
    assert epochs == [0, 1, 2, 1, 2]


@pytest.mark.slow
def test_starting_over_moves_nothing_before_the_teacher_is_asked(
    rooms: Callable[[str], Classroom], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = rooms(QUICK_MODEL)
    lesson = {**room.lesson("rrd", distill_teacher=str(room.teacher)), "output_dir": str(tmp_path)}
    folder = room.run(**lesson).folder.path

    def refuse(*_: Any) -> None:
        raise ConfigError("a teacher of other data")

    monkeypatch.setattr(get_distiller("rrd"), "ask", refuse)
    with pytest.raises(ConfigError, match="other data"):
        room.run(**lesson, fresh=True)
    assert list(folder.parent.iterdir()) == [folder] and (folder / "tickets.jsonl").exists()
