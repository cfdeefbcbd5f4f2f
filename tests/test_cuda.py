"""On a CUDA device every method does what it does on a CPU: whole runs, from settings to artifact, killed and resumed.

The same bodies run on a CPU for a few cases, which shows that the tests themselves are right. Sums on a GPU are added
in no fixed order, so what is equal bit for bit on a CPU is compared within a tolerance here, but for
:func:`test_deterministic_algorithms_repeat_bits`.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from conformance import (
    Outcome,
    Subject,
    Witness,
    assert_equal,
    check_artifact,
    check_checkpoint,
    check_counts,
    check_kind_of_tickets,
    check_pruned_entries_are_zero,
    check_training,
    settings_of,
)
from distilling import EPOCHS, Classroom, equal
from training_bench import experiment_of, scores
from zoo import DATASET

from recbole_prune.distillers import DISTILLERS
from recbole_prune.errors import ConfigError
from recbole_prune.pruners import PRUNERS, get_pruner

QUICK_MODEL = "BPR"
GPU, CPU = "0", ""
MODELS = ("LightGCN", "NeuMF", "MultiVAE", "SASRec", "GRU4Rec", "DeepFM", "CKE", "UltraGCN")
CHECKS = (check_counts, check_kind_of_tickets, check_pruned_entries_are_zero, check_training, check_checkpoint)


def on_devices(cases: list[Any], also_on_cpu: int = 1) -> list[Any]:
    """Each case on the GPU, the first ones on the CPU too: parameters (``gpu_id``, *case)."""
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    missing = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return [pytest.param(GPU, *value, marks=[pytest.mark.gpu, missing]) for value in values] + [
        pytest.param(CPU, *value, marks=pytest.mark.slow) for value in values[:also_on_cpu]
    ]


class WatchedDevice(Witness):
    """A witness that also sees where the model is trained."""

    def __init__(self, gpu_id: str, **fields: Any) -> None:
        super().__init__(**fields)
        self.expected = "cuda" if gpu_id else "cpu"

    def see_step(self, model: Any) -> None:
        """After an optimizer step."""
        super().see_step(model)
        assert {parameter.device.type for parameter in model.parameters()} == {self.expected}


def assert_close(one: Outcome, other: Outcome, atol: float = 5e-3) -> None:
    """Trainings that differ by the order of sums: the same course, nearly the same masks and weights."""
    course = ("ticket", "kept", "prunable", "epochs", "seed")
    for before, after in zip(one.records, other.records):
        assert [before[name] for name in course] == [after[name] for name in course]
        assert before["valid_score"] == pytest.approx(after["valid_score"], abs=0.05)
    assert len(one.records) == len(other.records)
    for before, after in zip(one.weights, other.weights):
        assert list(before) == list(after)
        for name in before:
            near = torch.isclose(before[name].float(), after[name].float(), atol=atol)
            assert near.float().mean() > 0.99, name


def skip_refusal(model: str, error: ConfigError) -> NoReturn:
    """Skip what a method refuses by its nature; scores that are no numbers are a fault of the device."""
    if "NaN" in str(error):
        raise error
    pytest.skip(f"{model}: {error}")


# ---- pruners ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu_id", "method", "model"),
    on_devices([(method, QUICK_MODEL) for method in PRUNERS])
    + on_devices([(method, model) for model in MODELS for method in ("imp", "dsl")], also_on_cpu=0),
)
def test_pruners(gpu_id: str, method: str, model: str, tiny_data: Path, tmp_path: Path) -> None:
    subject = Subject(method, model, tiny_data, tmp_path, gpu_id=gpu_id)
    witness = WatchedDevice(gpu_id)
    try:
        subject.whole = subject.run("whole", witness)  # type: ignore[misc]
    except ConfigError as error:
        skip_refusal(model, error)
    assert witness.steps
    for check in CHECKS if subject.promises.masks else (check_counts, check_checkpoint):
        check(subject)
    check_artifact(subject)


@pytest.mark.parametrize(("gpu_id", "method"), on_devices([name for name in PRUNERS if name != "none"]))
def test_a_killed_pruning_goes_on(gpu_id: str, method: str, tiny_data: Path, tmp_path: Path) -> None:
    subject = Subject(method, QUICK_MODEL, tiny_data, tmp_path, gpu_id=gpu_id)
    last = [moment for moment in subject.whole.witness.moments if moment[1]][-1]
    killer = WatchedDevice(gpu_id, stops=[last])
    with pytest.raises(KeyboardInterrupt):
        subject.run("killed", killer)
    resumed = subject.run("killed", killer)
    (assert_close if gpu_id else assert_equal)(subject.whole, resumed)
    if get_pruner(method).promises.masks:
        check_pruned_entries_are_zero(subject)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["imp", "rigl"])
def test_goes_on_without_a_gpu(method: str, tiny_data: Path, tmp_path: Path) -> None:
    subject = Subject(method, QUICK_MODEL, tiny_data, tmp_path, gpu_id=GPU)
    last = [moment for moment in subject.whole.witness.moments if moment[1]][-1]
    with pytest.raises(KeyboardInterrupt):
        subject.run("killed", WatchedDevice(GPU, stops=[last]))
    settings = {**subject.settings, "gpu_id": CPU, "output_dir": str(tmp_path / "killed")}
    program = (
        "import json, sys, torch; assert not torch.cuda.is_available(); sys.argv = sys.argv[:1]\n"
        "from recbole_prune import run_recbole_prune\n"
        f"print(run_recbole_prune({QUICK_MODEL!r}, {DATASET!r}, config_dict={settings!r})['folder'])"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.split()[-1])
    assert folder.name == subject.whole.folder.path.name, "the device is no part of a run's name"
    assert f"continues after epoch {last[1]}" in (folder / "log.txt").read_text(encoding="utf-8")
    assert_close(subject.whole, Outcome({"folder": str(folder)}, Witness()))


# ---- distillers ------------------------------------------------------------------------------------------------------


def taught(room: Classroom, method: str, gpu_id: str, **changes: Any) -> Any:
    """A lesson on a device; skipped where the method refuses the model."""
    lesson = room.lesson(method, **{**changes, "gpu_id": gpu_id})
    try:
        return room.run(**lesson), lesson
    except ConfigError as error:
        skip_refusal(room.model, error)


def check_lesson(outcome: Any, gpu_id: str) -> None:
    """Losses are finite in every epoch; student, teacher and helpers were on the device."""
    terms = outcome.terms()
    assert sorted(terms) == list(range(EPOCHS))
    assert all(math.isfinite(value) and value > 0 for sums in terms.values() for value in sums.values()), terms
    for seen in outcome.spy.taught:
        modules = [seen.trainer.model, *seen.helper_modules]
        modules += [seen.teacher_model] if seen.part.promises.teacher else []
        devices = {tensor.device.type for module in modules for tensor in module.state_dict().values()}
        assert devices == {"cuda" if gpu_id else "cpu"}
    assert all(bool(value.isfinite().all()) for value in outcome.weights.values())


@pytest.mark.parametrize(
    ("gpu_id", "method", "model"),
    on_devices([(method, QUICK_MODEL) for method in DISTILLERS])
    + on_devices([(method, model) for model in ("LightGCN", "SASRec") for method in DISTILLERS], also_on_cpu=0),
)
def test_distillers(gpu_id: str, method: str, model: str, tiny_data: Path, tmp_path: Path) -> None:
    room = Classroom(model, tiny_data, tmp_path)
    outcome, lesson = taught(room, method, gpu_id)
    check_lesson(outcome.read(), gpu_id)
    if model != QUICK_MODEL:
        return
    room.kill(lesson, epoch=EPOCHS - 1, batch=1)
    again = room.run(**lesson)
    assert again.folder.path == outcome.folder.path and f"continues after epoch {EPOCHS - 1}" in again.log
    for epoch, sums in outcome.terms().items():
        assert again.terms()[epoch] == pytest.approx(sums, rel=1e-2 if gpu_id else 1e-6)


@pytest.mark.parametrize(
    ("gpu_id", "pruner", "method"), on_devices([("imp", "rrd"), ("dsl", "de_rrd"), ("rigl", "hetcomp")])
)
def test_pruned_and_taught(gpu_id: str, pruner: str, method: str, tiny_data: Path, tmp_path: Path) -> None:
    room, settings = Classroom(QUICK_MODEL, tiny_data, tmp_path), settings_of(pruner, QUICK_MODEL, tiny_data)
    del settings["gpu_id"]
    outcome, _ = taught(room, method, gpu_id, **settings)
    assert len(outcome.records) > 1 and all(math.isfinite(record["valid_score"]) for record in outcome.records)


# ---- the same stored model on both devices, precision, storage -------------------------------------------------------


@pytest.mark.parametrize(("gpu_id", "model"), on_devices([QUICK_MODEL, "LightGCN", "NeuMF", "SASRec", "DeepFM"], 2))
def test_a_stored_model_scores_alike_on_both(gpu_id: str, model: str, tiny_data: Path, tmp_path: Path) -> None:
    subject = Subject("imp", model, tiny_data, tmp_path, gpu_id=gpu_id)
    there = subject.experiment
    here = experiment_of(subject.whole.result, model, {**subject.settings, "gpu_id": CPU})
    for number, ticket in there.tickets.items():
        models = there.trained_model(ticket), here.trained_model(here.tickets[number])
        found = [
            scores(one, experiment.workshop.test_data, experiment.workshop.dataset).cpu()
            for one, experiment in zip(models, (there, here))
        ]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("gpu_id", "model"), on_devices([QUICK_MODEL, "LightGCN", "SASRec", "DeepFM"]))
def test_automatic_mixed_precision(gpu_id: str, model: str, tiny_data: Path, tmp_path: Path) -> None:
    changes = {"gpu_id": gpu_id, "enable_amp": True, "enable_scaler": bool(gpu_id)}
    subject = Subject("dsl", model, tiny_data, tmp_path, **changes)
    check_counts(subject)
    check_pruned_entries_are_zero(subject)
    if model == QUICK_MODEL:
        for method in ("rrd", "kd", "de"):
            outcome, _ = taught(Classroom(model, tiny_data, tmp_path / method), method, **changes)
            check_lesson(outcome, gpu_id)


@pytest.mark.parametrize(
    ("gpu_id", "method", "storage"),
    on_devices([("static", "compact"), ("dsl", "compact"), ("imp", "compact"), ("dsl", "masked")]),
)
def test_storage(gpu_id: str, method: str, storage: str, tiny_data: Path, tmp_path: Path) -> None:
    subject = Subject(method, QUICK_MODEL, tiny_data, tmp_path, gpu_id=gpu_id, prune_storage=storage)
    for check in CHECKS:
        check(subject)
    check_artifact(subject)


@contextmanager
def deterministic() -> Iterator[None]:
    """torch's deterministic algorithms, where it has them."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize(("gpu_id", "method"), on_devices(["imp", "dsl", "rigl"]))
def test_deterministic_algorithms_repeat_bits(
    gpu_id: str, method: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    subject = Subject(method, QUICK_MODEL, tiny_data, tmp_path, gpu_id=gpu_id)
    with deterministic():
        last = [moment for moment in subject.whole.witness.moments if moment[1]][-1]
        killer = Witness(stops=[last])
        with pytest.raises(KeyboardInterrupt):
            subject.run("killed", killer)
        assert_equal(subject.whole, subject.run("killed", killer))


@pytest.mark.parametrize("gpu_id", on_devices([()]))
def test_taught_bits_repeat_with_deterministic_algorithms(gpu_id: str, tiny_data: Path, tmp_path: Path) -> None:
    room = Classroom(QUICK_MODEL, tiny_data, tmp_path)
    with deterministic():
        whole, lesson = taught(room, "rrd", gpu_id)
        whole.read()
        room.kill(lesson, epoch=EPOCHS - 1, batch=1)
        assert equal(whole.weights, room.run(**lesson).weights)
