"""What is wrong with a teacher, a distiller or their settings is one message, before anybody is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from teachers import Trained
from zoo import DATASET, config_for

from recbole_prune.cli import main
from recbole_prune.training.trainer import MaskAwareTrainer


@pytest.fixture
def command(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A command line on the generated data in which nobody can be trained; its exit status."""

    def trained(*_: Any, **__: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(MaskAwareTrainer, "_train_epoch", trained)

    def run(model: str, *words: str) -> int:
        settings = {name: value for name, value in config_for(model, tiny_data).items() if name != "gpu_id"}
        file = tmp_path / "settings.json"  # yaml reads json
        file.write_text(json.dumps({**settings, "use_gpu": False}, default=str))
        return main([f"--model={model}", f"--dataset={DATASET}", f"--config_files={file}", *words])

    return run


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command ended."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("recbole-prune: ")
    return lines[-1]


FIRST = ("--distiller=hint", "--distill_teacher_model=BPR")
# (student, words, what the message says)
SETTINGS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "distiller": ("BPR", ("--distiller=rdd",), ("distiller=rdd", "did you mean distiller=rd")),
    "no teacher": ("BPR", ("--distiller=rrd",), ("distiller=rrd", "distill_teacher", "distill_teacher_model")),
    "teacher model": (
        "BPR", ("--distiller=rrd", "--distill_teacher_model=BRP"), ("distill_teacher_model=BRP", "did you mean BPR"),
    ),
    "not by gradient": (
        "BPR", ("--distiller=rrd", "--distill_teacher_model=EASE"), ("distill_teacher_model=EASE", "checkpoint"),
    ),
    "key": ("BPR", (*FIRST, "--distill_wieght=1"), ("distill_wieght", "did you mean --distill_weight")),
    "value": ("BPR", (*FIRST, "--distill_weight=nan"), ("distill_weight=nan", "float")),
    "settings": ("BPR", (*FIRST, "--distill_teacher_settings=[1]"), ("distill_teacher_settings=[1]", "dict")),
    "setting of the teacher": (
        "BPR", (*FIRST, "--distill_teacher_settings={'embeding_size':8}"), ("embeding_size", "did you mean"),
    ),
    "path": ("BPR", ("--distiller=rrd", "--distill_teacher=gone.pth"), ("distill_teacher=gone.pth", "no such file")),
    "a teacher for a method without": (
        "BPR", ("--distiller=concf", "--distill_teacher_model=LightGCN"),
        ("distill_teacher_model=LightGCN", "--distiller=concf", "has no teacher"),
    ),
    "a teacher that is there for a method without": (
        "BPR", ("--distiller=concf", "--distill_teacher=gone.pth"), ("distill_teacher=", "has no teacher"),
    ),
    "no such head": (
        "BPR", ("--distiller=concf", "--distill_heads=bce,cnl"), ("distill_heads=bce,cnl", "item_multinomial"),
    ),
    "a head twice": ("BPR", ("--distiller=concf", "--distill_heads=mse,mse"), ("distill_heads=mse,mse", "none twice")),
    "no teacher there": ("BPR", ("--distiller=rrd", "--distill_teacher=."), ("distill_teacher=.", "is no teacher")),
}  # fmt: skip
# what the class or the settings of a teacher that is trained first lack
BEFORE_TRAINING: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "narrower": (
        "BPR", (*FIRST, "--distill_teacher_settings={'embedding_size':8}"),
        ("teacher BPR", "distill_teacher_model", "width 8", "student's 16"),
    ),
    "no vectors": (
        "BPR", ("--distiller=de", "--distill_teacher_model=NAIS"), ("teacher NAIS", "has no vectors to copy"),
    ),
    "two spaces": (
        "BPR", ("--distiller=ftd", "--distill_teacher_model=ConvNCF", "--cnn_channels=[1,8,8]", "--cnn_kernels=[4,4]"),
        ("teacher ConvNCF", "not in one space"),
    ),
    "several without vectors in common": (
        "BPR", ("--distiller=de", "--distill_teacher_models=BPR,NeuMF"),
        ("teachers BPR (distill_teacher_models), NeuMF (distill_teacher_models) have no vectors in common",),
    ),
    "several, one of another split": (
        "BPR",
        ("--distiller=rrd", "--distill_teacher_models=BPR,NeuMF", "--distill_teacher_settings={'NeuMF':{'seed':3}}"),
        ("distill_teacher_models=NeuMF", "other data, another split"),
    ),
    "other seed, other split": (
        "BPR", (*FIRST, "--distill_teacher_settings={'seed':3}"),
        ("distill_teacher_model=BPR", "other data, another split", "only the student trains on"),
    ),
    "other filter": (
        "BPR", (*FIRST, "--distill_teacher_settings={'user_inter_num_interval':'[30,inf)'}"),
        ("distill_teacher_model=BPR", "only the student has", "users, first"),
    ),
    "items without an entity": (
        "BPR", ("--distiller=rrd", "--distill_teacher_model=KGAT"),
        ("distill_teacher_model=KGAT", "only the student has 5 of its 240 items", "drops the items without an entity"),
    ),
    "teacher without its data": (
        "BPR", ("--distiller=rrd", "--distill_teacher_model=SASRec"), ("distill_teacher_model=SASRec", "TO"),
    ),
    "teacher without labels": (
        "BPR", ("--distiller=kd", "--distill_teacher_model=DeepFM"), ("distill_teacher_model=DeepFM", "label"),
    ),
    "student without vectors": (
        "NAIS", ("--distiller=de", "--distill_teacher_model=BPR"), ("distiller=de cannot teach NAIS",),
    ),
    "student and pruner": (
        "MultiVAE", ("--pruner=small_dense", "--distiller=rrd", "--distill_teacher_model=BPR"),
        ("pruner=small_dense", "MultiVAE"),
    ),
    "layers of other kinds": (
        "STAMP", ("--distiller=sad", "--distill_teacher_model=SASRec"),
        ("teacher SASRec", "nothing to compare with the student", "sequences", "STAMP vectors"),
    ),
    "several without layers in common": (
        "BPR", ("--distiller=sad", "--distill_teacher_models=BPR,NeuMF"), ("have no layers in common to copy",),
    ),
    "student without layers": (
        "LR", ("--distiller=sad", "--distill_teacher_model=DeepFM"),
        ("distiller=sad cannot teach LR", "no hidden layer"),
    ),
    "student without a gradient": (
        "EASE", ("--distiller=sad", "--distill_teacher_model=BPR"), ("EASE is not trained by gradient",),
    ),
    "other fields": (
        "MultiVAE", ("--distiller=sad", "--distill_teacher_model=NeuMF"),
        ("teacher NeuMF", "reads the field 'item_id'"),
    ),
    "nothing to prune": (
        "BPR", ("--pruner=imp", "--prune_exclude=['*']", *FIRST), ("nothing to prune",),
    ),
}  # fmt: skip


# what a method without a teacher cannot do with a model or with its data
WITHOUT_TEACHER: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "a head that the model has anyway": (
        "NeuMF", ("--distiller=concf", "--distill_heads=mse,bce"),
        ("distill_heads=['mse', 'bce']", "bce is the objective of NeuMF itself", "bpr, cml, mse"),
    ),
    "too few items for lists": (
        "BPR", ("--distiller=concf", "--distill_list_length=500", "--distill_interesting=240"),
        ("distill_interesting=240", "distill_list_length=500", "240 items"),
    ),
    "nothing below the interesting ones": (
        "BPR", ("--distiller=concf", "--distill_interesting=100"),
        ("distill_interesting=100", "distill_list_length=100"),
    ),
    "student of histories": (
        "SASRec", ("--distiller=concf",), ("distiller=concf cannot teach SASRec", "histories and no closed set"),
    ),
    "student without tables of users": (
        "RippleNet", ("--distiller=concf",), ("distiller=concf cannot teach RippleNet", "vectors of items only"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", slow_but(["distiller", "no teacher", "path"], SETTINGS))
def test_settings_are_refused(name: str, command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, words, said = SETTINGS[name]
    assert command(student, *words) == 2
    message = refused(capsys)
    assert all(part in message for part in said), message
    assert not (tmp_path / "pruned").exists()


@pytest.mark.parametrize("name", slow_but(["narrower"], BEFORE_TRAINING))
def test_a_teacher_that_is_trained_first_is_refused_before_it_is(
    name: str, command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student, words, said = BEFORE_TRAINING[name]
    for more in ((), ("--dry_run=True",)):
        assert command(student, *words, *more) == 2
        message = refused(capsys)
        assert all(part in message for part in said), message
    assert not (tmp_path / "pruned").exists()


@pytest.mark.parametrize("name", slow_but(["a head that the model has anyway"], WITHOUT_TEACHER))
def test_a_method_without_a_teacher_refuses_before_any_training(
    name: str, command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student, words, said = WITHOUT_TEACHER[name]
    for more in ((), ("--dry_run=True",)):
        assert command(student, *words, *more) == 2
        message = refused(capsys)
        assert all(part in message for part in said), message
    assert not list(tmp_path.rglob("tickets.jsonl"))


class Files:
    """Teachers on disk, each wrong in one way."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder

    def checkpoint(self, damage: float | None = None, **changes: Any) -> Path:
        """Of plain RecBole; nothing is trained."""
        trained = Trained("BPR", {**config_for("BPR", self.data), **changes}, self.folder)
        if damage is not None:
            with torch.no_grad():
                trained.model.item_embedding.weight[3, 2] = damage
        return trained.save(self.folder / "teacher.pth")

    def lists(self, *lines: str, name: str = "lists.tsv") -> Path:
        """As text."""
        (self.folder / name).write_text("".join(line + "\n" for line in lines))
        return self.folder / name

    def tokens(self) -> tuple[list[str], list[str]]:
        """Users and items of the data."""
        rows = (self.data / DATASET / f"{DATASET}.inter").read_text(encoding="utf-8").splitlines()[1:]
        users, items = (sorted({row.split("\t")[place] for row in rows}) for place in (0, 1))
        return users, items

    def other_data(self) -> Path:
        """Of data that lack interactions."""
        shutil.copytree(self.data, self.folder / "other")
        inter = self.folder / "other" / DATASET / f"{DATASET}.inter"
        inter.write_text("".join(inter.read_text().splitlines(keepends=True)[:-40]))
        return self.checkpoint(data_path=str(self.folder / "other"))


def with_scores(files: Files) -> Path:
    """A score is NaN."""
    users, items = files.tokens()
    return files.lists(f'{{"user": "{users[0]}", "items": ["{items[0]}"], "scores": [NaN]}}', name="lists.jsonl")


# (distiller, the file, what the message says beside the file)
FILES: dict[str, tuple[str, Callable[[Files], Path], tuple[str, ...]]] = {
    "empty checkpoint": ("rrd", lambda f: f.lists(name="x.pth"), ("is no checkpoint of RecBole",)),
    "NaN": ("rrd", lambda f: f.checkpoint(float("nan")), ("1 of the", "item_embedding.weight are NaN")),
    "infinite": ("rrd", lambda f: f.checkpoint(float("inf")), ("infinite numbers in 1 of its item vectors",)),
    "narrower": ("hint", lambda f: f.checkpoint(embedding_size=8), ("narrower", "width 8", "student's 16")),
    "other data": ("rrd", Files.other_data, ("trained on other data",)),
    "other split": ("rrd", lambda f: f.checkpoint(seed=7), ("trained on other data", "only the teacher trains on")),
    "empty": ("rrd", lambda f: f.lists(), ("holds no lists",)),
    "empty list": ("rrd", lambda f: f.lists(f.tokens()[0][0]), ("line 1", "is empty")),
    "unknown users": ("rrd", lambda f: f.lists("nobody\t" + f.tokens()[1][0]), ("1 of the 1 users", "'nobody'", "10%")),
    "unknown items": ("rrd", lambda f: f.lists(f.tokens()[0][0] + "\tx"), ("1 of the 1 items", "'x'", "10%")),
    "NaN in scores": ("cd", with_scores, ("line 1", "finite numbers", "nan")),
    "no scores": ("cd", lambda f: f.lists("\t".join([f.tokens()[0][0], *f.tokens()[1]])), ("lists without scores",)),
    "lists and vectors": ("de", lambda f: f.lists("\t".join([f.tokens()[0][0], *f.tokens()[1]])), ("no vectors",)),
    "lists and layers": (
        "sad", lambda f: f.lists("\t".join([f.tokens()[0][0], *f.tokens()[1]])), ("no layers to copy",),
    ),
    "lists and logits": ("kd", lambda f: f.lists("\t".join([f.tokens()[0][0], *f.tokens()[1]])), ("no scores of",)),
}  # fmt: skip


@pytest.mark.parametrize("name", slow_but(["narrower"], FILES))
def test_a_teacher_on_disk_is_refused_before_the_student_alone_is_trained(
    name: str, command: Any, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distiller, make, said = FILES[name]
    file = make(Files(tiny_data, tmp_path))
    assert command("BPR", f"--distiller={distiller}", f"--distill_teacher={file}") == 2
    message = refused(capsys)
    assert str(file) in message and all(part in message for part in said), message
    assert not list(tmp_path.rglob("tickets.jsonl"))


@pytest.mark.slow
def test_settings_without_effect_are_named(command: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert command("BPR", "--distill_weight=1", "--distill_teacher_model=BPR", "--dry_run=True") == 0
    assert "distill_weight has no effect without --distiller" in caplog.text
    assert "distill_teacher_model has no effect without --distiller" in caplog.text
    assert command("BPR", *FIRST, "--distill_rule=linear", "--dry_run=True") == 0
    assert "distill_rule has no effect with --distiller=hint" in caplog.text
