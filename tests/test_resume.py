"""Killed and resumed = never killed: masks and checkpoints bit for bit, metrics equal, whatever the moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from training_bench import Killed, kill, without_clocks
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.disk.names import USERS
from recbole_prune.masking import scores as entry_scores
from recbole_prune.run.store import RESUME, RunFolder
from recbole_prune.training.trainer import MaskAwareTrainer

KILLS = 20

# the child kills itself at the n-th call of a function that marks a moment, so kills are spread over all of them
PARENT = """
import contextlib, copy, json, os, signal, sys, tempfile
settings = json.loads(sys.argv.pop())
import torch
torch.set_num_threads(1)
from recbole_prune import run_recbole_prune
from recbole_prune.training.trainer import MaskAwareTrainer
def run():
    words = copy.deepcopy(settings)
    run_recbole_prune(model=words.pop("model"), dataset=words.pop("dataset"), config_dict=words)
with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
    os.chdir(folder)
    run()  # what it imports, parses and loads no child has to again
    os.chdir("/")
count = moment = 0
def tick():
    global count
    count += 1
    if count == moment:
        os.kill(os.getpid(), signal.SIGKILL)
def before_and_after(owner, name):
    function = getattr(owner, name)
    def counted(*args, **kwargs):
        tick()
        result = function(*args, **kwargs)
        tick()
        return result
    setattr(owner, name, counted)
for name in ("replace", "fsync", "unlink"):
    before_and_after(os, name)
before_and_after(MaskAwareTrainer, "_valid_epoch")
before_and_after(MaskAwareTrainer, "_train_epoch")
for line in sys.stdin:
    moment, folder = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        for descriptor, file in ((1, "out"), (2, "err")):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        count = 0
        run()
        print("moments", count)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runs:
    """A process that has imported everything and forks one for every run; strings have other hashes in each such."""

    def __init__(self, settings: dict[str, Any]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONHASHSEED": "random"}
        command = [sys.executable, "-c", PARENT, json.dumps(settings)]
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1
        )

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def run(self, moment: int, folder: Path) -> int:
        """The status of a run in the working directory ``folder``, killed at a moment; 0 for one that is not killed."""
        folder.mkdir(exist_ok=True)
        assert self.process.stdin and self.process.stdout
        print(json.dumps([moment, str(folder)]), file=self.process.stdin)
        status = int(self.process.stdout.readline())
        assert status in (0, -signal.SIGKILL), (folder / "err").read_text()[-2000:]
        return status


def outcome(folder: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Journal lines without clocks, and the bytes of masks, checkpoints, values of users and the artifact."""
    records = [without_clocks(record) for record in RunFolder(folder).tickets()]
    files = [file for name in ("masks", "checkpoints", "artifact") for file in (folder / name).iterdir()]
    return records, {file.name: file.read_bytes() for file in [*files, *folder.glob(USERS)]}


def settings_of(model: str, data: Path, **changes: Any) -> dict[str, Any]:
    return {
        **config_for(model, data),
        "epochs": 3,
        "pruner": "imp",
        "prune_rate": 0.3,
        "prune_rounds": 2,
        **changes,
    }


@pytest.mark.slow
@pytest.mark.multiprocess
def test_killed_at_random_moments_ends_equal(tiny_data: Path, tmp_path: Path) -> None:
    settings = {"model": "BPR", "dataset": DATASET, **settings_of("BPR", tiny_data)}
    with Runs(settings) as runs:
        assert runs.run(0, tmp_path / "whole") == 0
    moments = int((tmp_path / "whole" / "out").read_text().rsplit("moments", 1)[1])
    draw = random.Random(20)
    kills = searches = 0
    with Runs(settings) as runs:
        while kills < KILLS:  # a search that ended before its kill came is checked, and the next one begins
            if runs.run(draw.randint(1, moments // 4), tmp_path / f"killed-{searches}"):
                kills += 1
            else:
                searches += 1
        assert runs.run(0, tmp_path / f"killed-{searches}") == 0
    [whole] = (tmp_path / "whole" / "pruned").glob("*/*/imp-*")
    for search in range(searches + 1):
        [resumed] = (tmp_path / f"killed-{search}" / "pruned").glob("*/*/imp-*")
        assert outcome(whole) == outcome(resumed)
        assert not list(resumed.rglob(".*.tmp"))


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("BPR", {"prune_rewind": "late", "prune_rewind_epoch": 1}),
        *[
            pytest.param(model, changes, marks=pytest.mark.slow)
            for model, changes in [
                ("BPR", {"prune_storage": "masked", "prune_rewind": "late", "prune_rewind_epoch": 1}),
                ("BPR", {"prune_rewind": "none", "prune_lr_schedule": "cosine"}),
                ("BPR", {"prune_user_uniform": True, "prune_l2_weight": 1e-4}),
                *[(model, {}) for model in "MultiVAE RecVAE KGAT NCL LightGCN SGL LDiffRec SASRec DIN".split()],
                ("KGAT", {"prune_storage": "masked"}),
            ]
        ],
    ],
)
def test_stopped_in_every_epoch_ends_equal(
    model: str,
    changes: dict[str, Any],
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_of(model, tiny_data, **{"prune_rounds": 1, "prune_storage": "compact", **changes})

    def run(name: str) -> dict[str, Any]:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        return run_recbole_prune(model=model, dataset=DATASET, config_dict=dict(settings))

    whole = run("whole")
    train_epoch = MaskAwareTrainer._train_epoch
    stopped: set[tuple[str, int]] = set()

    def stop_once_in_every_epoch(self: Any, data: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
        result = train_epoch(self, data, epoch, *args, **kwargs)
        if (self.session.name, epoch) not in stopped:
            stopped.add((self.session.name, epoch))
            raise Killed
        return result

    monkeypatch.setattr(MaskAwareTrainer, "_train_epoch", stop_once_in_every_epoch)
    for _ in range(20):
        try:
            resumed = run("killed")
            break
        except Killed:
            continue
    assert len(stopped) >= 3
    assert outcome(Path(whole["folder"])) == outcome(Path(resumed["folder"]))


def test_killed_after_the_last_line_of_the_journal_leaves_no_resume_point(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of("BPR", tiny_data, epochs=2, pruner="none", eval_step=2)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "drop_resume", kill)
        with pytest.raises(Killed):
            run_recbole_prune(model="BPR", dataset=DATASET, config_dict=settings)
    [left] = Path("pruned").glob(f"*/*/*/{RESUME}")
    result = run_recbole_prune(model="BPR", dataset=DATASET, config_dict=settings)
    assert Path(result["folder"]) == left.parent.absolute() and not left.exists()


def test_a_mask_that_comes_out_otherwise_is_trained_from_its_start(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As scores by gradients may on a GPU: a resume point is of the mask that it was trained with."""

    def run(folder: str) -> Path:
        changes = {"epochs": 3, "pruner": "structured", "prune_rounds": 1, "output_dir": str(tmp_path / folder)}
        settings = settings_of("BPR", tiny_data, **changes)
        return Path(run_recbole_prune(model="BPR", dataset=DATASET, config_dict=settings)["folder"])

    validate, validations = MaskAwareTrainer._valid_epoch, 0

    def killed_in_ticket_1(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal validations
        validations += 1
        return kill() if validations == 5 else validate(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MaskAwareTrainer, "_valid_epoch", killed_in_ticket_1)
        with pytest.raises(Killed):
            run("killed")
    magnitude = entry_scores.magnitude
    monkeypatch.setattr(
        entry_scores, "magnitude", lambda *args: {name: 1 / (1 + score) for name, score in magnitude(*args).items()}
    )
    again, whole = run("killed"), run("whole")
    assert "ticket 1 begins again: its mask came out otherwise" in (again / "log.txt").read_text(encoding="utf-8")
    (lines, files), (expected, right) = outcome(again), outcome(whole)
    assert lines == expected
    assert files["ticket-001.safetensors"] == right["ticket-001.safetensors"]


def test_finished_run_trains_nothing(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("BPR", tiny_data, epochs=1)
    first = run_recbole_prune(model="BPR", dataset=DATASET, config_dict=settings)
    written = {path: path.stat().st_mtime_ns for path in Path(first["artifact"]).iterdir()}

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(MaskAwareTrainer, "_train_epoch", refuse)
    second = run_recbole_prune(model="BPR", dataset=DATASET, config_dict=settings)
    assert second == first
    assert "highest winning sparsity" in second["table"]
    assert written == {path: path.stat().st_mtime_ns for path in Path(first["artifact"]).iterdir()}


@pytest.mark.slow
@pytest.mark.multiprocess
def test_ctrl_c_says_how_to_go_on(tiny_data: Path, tmp_path: Path) -> None:
    settings = settings_of("BPR", tiny_data, epochs=500, stopping_step=500)
    words = [f"--{name}={value}" for name, value in settings.items() if not isinstance(value, (dict, list))]
    config = tmp_path / "more.json"  # yaml reads json
    config.write_text(json.dumps({k: v for k, v in settings.items() if isinstance(v, (dict, list))}))
    # a background job may have been started with SIGINT ignored
    start = "import signal, sys; signal.signal(2, signal.default_int_handler); from recbole_prune.cli import main; "
    command = [sys.executable, "-c", start + "sys.exit(main())", "--model=BPR", f"--dataset={DATASET}"]
    command += [f"--config_files={config}", *[word for word in words if word != "--gpu_id="]]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("pruned/*/*/*/resume/point.json")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors[-2000:]
    assert "continues" in errors.splitlines()[-1] and "Traceback" not in errors
