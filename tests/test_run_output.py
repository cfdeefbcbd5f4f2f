"""What a person sees of a run: whole lines, at most one bar, and at the end what to do with the result."""

from __future__ import annotations

import io
import json
import logging
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from compat_helpers import Reports
from tqdm import tqdm
from zoo import DATASET, config_for

from recbole_prune import cli, run_recbole_prune
from recbole_prune.compat import needless
from recbole_prune.config.words import launch, settings_in
from recbole_prune.errors import ConfigError
from recbole_prune.run.workshop import Workshop

SETTINGS = {"pruner": "imp", "prune_rate": 0.5, "prune_rounds": 1, "epochs": 3, "stopping_step": 9}
DENSE = {"pruner": "none", "prune_rate": None, "prune_rounds": None, "epochs": 1}
LINES = 1 + 2 * 3 + 2  # what is run; every validation; every ticket


@contextmanager
def root_with(*handlers: logging.Handler) -> Iterator[logging.Logger]:
    """The root logger as a fresh process has it; pytest's handlers would take the place of a run's own."""
    root = logging.getLogger()
    before = root.handlers, root.level
    root.handlers = list(handlers)
    root.setLevel(logging.WARNING)
    try:
        yield root
    finally:
        root.handlers = before[0]
        root.setLevel(before[1])


class Screen(io.StringIO):
    """A terminal, as far as tqdm asks."""

    def isatty(self) -> bool:
        return True

    def rows(self) -> list[str]:
        """What is left on every row, a carriage return goes to its beginning."""
        shown = []
        for row in self.getvalue().split("\n"):
            cells: list[str] = []
            for part in row.split("\r"):
                cells[: len(part)] = part
            shown.append("".join(cells).rstrip())
        return shown


def settings(data: Path, **changes: Any) -> dict[str, Any]:
    """Settings for a run; None leaves one out."""
    base = {**config_for("BPR", data), **SETTINGS, "show_progress": True, "state": "INFO"}
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


def run(data: Path, **changes: Any) -> dict[str, Any]:
    """A run as a fresh process would do it, without the warnings that pytest turns on."""
    with root_with(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message="look out")
        return run_recbole_prune("BPR", DATASET, config_dict=settings(data, **changes))


def test_a_piped_run_shows_a_line_per_validation_and_ticket(
    tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(run(tiny_data)["folder"])
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == LINES and max(map(len, lines)) <= 100
    assert "imp on BPR / tiny" in lines[0]
    for number, sparsity in enumerate(["0.00", "50.00"]):
        of_ticket = [line for line in lines[1:] if line.startswith(f"ticket {number} ({sparsity} %)")]
        assert [bool(re.search(rf": epoch {epoch}, valid \S+ 0\.\d+", of_ticket[epoch - 1])) for epoch in (1, 2, 3)]
        assert "the best so far" in of_ticket[0]
        assert re.search(r" done: .* best epoch \d of 3, ndcg@10 \S+, test ", of_ticket[3])
    log = (folder / "log.txt").read_text()
    assert log.count("training [time") == 6, "the detail of each epoch is kept"
    assert "\x1b" not in log + err and "\r" not in err


def test_a_terminal_shows_the_same_lines_above_one_bar(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setattr("recbole_prune.run.progress.tqdm", partial(tqdm, mininterval=0))  # a fast machine skips batches
    run(tiny_data)
    text, rows = screen.getvalue(), screen.rows()
    assert "tickets 1/2 |" in text and "epoch 2/3 batch" in text
    assert not re.search(r"Train|Evaluate", text)
    assert max(map(len, re.split("[\r\n]", text))) <= 80
    assert rows[-1] == "" and len(rows) == LINES + 1, "the bar is gone at the end"
    assert not any("|" in row for row in rows), "and left nothing beside the lines"


def test_the_log_is_as_loud_as_the_settings_say(tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tiny_data, **DENSE, state="ERROR")
    assert capsys.readouterr().err == ""
    run(tiny_data, **DENSE, state="DEBUG", fresh=True)
    assert "training [time" in capsys.readouterr().err


def test_a_logger_that_the_user_set_up_is_not_doubled(tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    with root_with(handler) as root:
        run_recbole_prune("BPR", DATASET, config_dict=settings(tiny_data, **DENSE))
        assert root.handlers == [handler] and root.level == logging.WARNING
    assert capsys.readouterr().err == "" and "ticket 0 (0.00 %)" in stream.getvalue()


def test_warnings_are_whole_lines_of_the_log(
    tiny_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Workshop.build_model

    def warn(*args: Any) -> Any:
        warnings.warn("look out", UserWarning, stacklevel=1)
        logging.getLogger().warning("Max value of user's history interaction records has reached 55% of the total.")
        return build(*args)

    monkeypatch.setattr(Workshop, "build_model", warn)
    before = warnings.showwarning
    folder = Path(run(tiny_data, **DENSE)["folder"])
    assert warnings.showwarning is before
    err, log = capsys.readouterr().err, (folder / "log.txt").read_text()
    assert [line.startswith("warning: UserWarning: look out (") for line in err.splitlines()[:2]] == [True, False]
    assert "Max value" not in err and "Max value" in log and log.count("look out") > 1, "the log has all of them"


def test_what_a_user_cannot_change_is_not_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    def warned(module: str, category: type[Warning]) -> bool:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            needless.ignore_needless_warnings(report)
            exec("import warnings; warnings.warn('x', category)", {"__name__": module, "category": category})
        return bool(caught)

    report = Reports()
    monkeypatch.setattr(sys, "warnoptions", [])
    assert not warned("recbole.trainer.trainer", FutureWarning)
    assert not warned("recbole.data.dataset.dataset", UserWarning)
    assert warned("recbole.evaluator.metrics", RuntimeWarning), "may speak of the data"
    assert not warned("recbole.model.knowledge_aware_recommender.kgin", RuntimeWarning), "zero degrees, handled there"
    assert warned("recbole_prune.pruners", UserWarning) and warned("mine", FutureWarning)
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    assert warned("recbole.trainer.trainer", FutureWarning), "asked for with -W"
    assert report[-1][0] is False


# ---- the end


@pytest.mark.slow
def test_the_end_fits_the_terminal(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []
    for columns in ("80", "300"):
        monkeypatch.setenv("COLUMNS", columns)
        text = run(tiny_data)["table"]
        widths.append(max(len(line) for line in text.splitlines() if "pruned/" not in line))
    assert widths[0] <= 80 < widths[1] <= 100


def test_the_end_says_what_was_chosen_and_how_to_use_it(tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tiny_data)
    summary = json.loads((Path(result["folder"]) / "summary.json").read_text())
    text, chosen = result["table"], result["chosen"]
    dense, kept = summary["tickets"][0], summary["tickets"][chosen["ticket"]]
    assert max(map(len, text.splitlines())) <= 100
    words = " ".join(text.split())
    assert f"Chosen is ticket {chosen['ticket']}: {summary['reason']}." in words
    assert f"{chosen['kept']:,} of {chosen['prunable']:,} prunable entries" in words
    assert f"{kept['bytes']:,} bytes of weights" in words and f"dense model's {dense['bytes']:,}" in words
    metric = summary["valid_metric"].lower()
    for part, name in (("validation", "valid"), ("test", "test")):
        assert f"{part} {metric} {dense[name][metric]:.4f} -> {kept[name][metric]:.4f}" in words
    assert "artifact:   pruned/" in text
    capsys.readouterr()
    [line] = [line for line in text.splitlines() if line.startswith("recommend:")]
    assert cli.main(shlex.split(line)[2:]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 * 10


@pytest.mark.slow
def test_verbose_shows_every_metric_and_changes_no_run(tiny_data: Path) -> None:
    assert settings_in(launch(["--verbose", "--model=BPR"]).words)[0]["verbose"] == "True"
    short, long = run(tiny_data), run(tiny_data, verbose=True)
    assert "valid recall@10" in long["table"] and "valid recall@10" not in short["table"]
    assert long["folder"] == short["folder"]


@pytest.mark.slow
def test_bytes_are_those_of_the_artifact(tiny_data: Path) -> None:
    for values in ("fp32", "int8"):
        result = run(tiny_data, export_values=values)
        summary = json.loads((Path(result["folder"]) / "summary.json").read_text())
        document = json.loads((Path(result["artifact"]) / "ticket.json").read_text())
        stored = sum(tensor["bytes"] for tensor in document["tensors"].values())
        assert summary["tickets"][summary["chosen"]]["bytes"] == stored


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, ["--prune_rate=0.25", "--prune_rewind=none", "--pruner=small_dense"]),
        pytest.param({"pruner": "random", "prune_rate": None, "prune_rounds": None, "prune_target_sparsity": 0.4},
                     ["a lower --prune_target_sparsity", "--pruner=imp", "--pruner=small_dense"],
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_no_winner_is_answered_with_what_to_try(
    changes: dict[str, Any], advice: list[str], tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recbole_prune.run.journal_line.judge", lambda *_: (False, False, None))
    words = " ".join(run(tiny_data, **changes, epochs=1)["table"].split())
    assert "No ticket reaches the dense model's validation score. Try" in words
    assert all(word in words for word in advice)


@pytest.mark.slow
def test_a_distilled_run_compares_teacher_student_alone_and_taught(
    tiny_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    teacher = {"distill_teacher_model": "BPR", "distill_teacher_settings": {"embedding_size": 32, "epochs": 2}}
    changes = {**DENSE, "embedding_size": 4, "distiller": "de_rrd", "distill_parity": "official", **teacher}
    plan = run(tiny_data, **changes, dry_run=True)["plan"]
    assert not Path("pruned").exists() and "none+de_rrd on BPR / tiny" in plan
    assert "teacher: BPR with embedding_size=32, epochs=2, trained first unless its run is there already" in plan
    capsys.readouterr()

    result = run(tiny_data, **changes)
    err, text = capsys.readouterr().err, result["table"]
    size = config_for("BPR", tiny_data)["train_batch_size"]
    assert err.count(f"distill_weight=0.001 is for sums over a batch: 0.001/{size} = {0.001 / size:.3g} ") == 1
    assert err.count(f"distill_vector_weight=0.01 is for sums over a batch: 0.01/{size} = {0.01 / size:.3g} ") == 1
    assert err.count("distill_parity=official: ") == 1 and "distill_item_weight" not in err

    rows = [line.split() for line in text.splitlines()]
    first = [row[0] for row in rows if row and row[0] in ("teacher", "alone", "taught")]
    assert first == ["teacher", "alone", "taught"]
    summary = json.loads((Path(result["folder"]) / "summary.json").read_text())
    metric, words = summary["valid_metric"].lower(), " ".join(text.split())
    assert f"Chosen is ticket 0: {summary['reason']}." in words and "taught student" in summary["reason"]
    for name, part in (("validation", "valid"), ("test", "test")):
        before, now = summary["alone"][part][metric], result["chosen"][part][metric]
        if before != now:
            assert f"{name} {metric} {before:.4f} -> {now:.4f} (" in words
        assert f"{name} {metric} {summary['teacher']['metrics'][part][metric]:.4f}" in words
    weights, own = summary["teacher"]["parameters"], result["chosen"]["parameters"]
    assert f"{weights:,} weights, the student {own:,} ({100 * own / weights:.1f} %)" in words
    assert max(len(line) for line in text.splitlines() if "pruned/" not in line) <= 80

    named = {"distill_teacher_model": None, "distill_teacher_settings": None, "distill_alone": False}
    plan = run(tiny_data, **{**changes, **named}, distill_teacher=summary["teacher"]["path"], dry_run=True)["plan"]
    assert f"teacher: ticket 0 of BPR/{Path(summary['teacher']['path']).name}, {weights:,} weights" in plan
    assert "trained alone" not in plan


def test_a_student_that_cannot_learn_is_refused_before_its_teacher_is_trained(tiny_data: Path) -> None:
    taught = {"distiller": "rrd", "distill_teacher_model": "BPR"}
    with pytest.raises(ConfigError, match="distiller=rrd cannot teach DeepFM: .* no lists of items"):
        run_recbole_prune("DeepFM", DATASET, config_dict={**config_for("DeepFM", tiny_data), "epochs": 1, **taught})
    assert not Path("pruned").exists()
