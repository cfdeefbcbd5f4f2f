"""What nobody foresaw ends in one line that says who raised it, the traceback in the log, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from marks import slow_but
from recbole.model.general_recommender.bpr import BPR
from zoo import DATASET, config_for

from recbole_prune import cli, commands, run_recbole_prune
from recbole_prune.errors import (
    ConfigError,
    InternalError,
    PruneError,
    RecBoleError,
    TrainingError,
    explained,
    in_one_line,
)
from recbole_prune.masking.masks import MaskSet

Call = Callable[..., Any]


def code_of(module: str, file: str = "/lib/site-packages/x.py", body: str = "call()", name: str = "f") -> Call:
    """``def f(call): <body>`` as a module of that name and file would have it."""
    names: dict[str, Any] = {"__name__": module, "torch": torch}
    exec(compile(f"def {name}(call=None, *args, **kwargs):\n    return {body}\n", file, "exec"), names)
    function: Call = names[name]
    return function


def chain(*calls: Call) -> Call:
    """The first calls the second, and so on."""
    last = calls[-1]
    for call in reversed(calls[:-1]):
        last = partial(call, last)  # has no frame
    return last


def raised(*calls: Call) -> BaseException:
    try:
        chain(*calls)()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


OURS = code_of("recbole_prune.training.trainer")
WRAPPER = code_of("recbole_prune.training.trainer", name="step_and_mask")
RECBOLE = code_of("recbole.trainer.trainer")
LIBRARY = code_of("torch.optim.sparse_adam")
MINE = code_of("my_models", "/home/me/my_models.py")
FAULT = "1 / 0"


@pytest.mark.parametrize(
    ("calls", "kind", "words"),
    [
        ((OURS, RECBOLE, code_of("recbole.model.x", body=FAULT)), RecBoleError, "RecBole raised ZeroDivisionError: "),
        ((OURS, RECBOLE, code_of("torch.nn.y", body=FAULT)), RecBoleError, "(recbole/trainer/trainer.py line 2)"),
        ((RECBOLE, code_of("recbole_prune.sparse.rows", body=FAULT)), InternalError, "recbole_prune/sparse/rows.py"),
        ((RECBOLE, OURS, LIBRARY, code_of("torch.z", body=FAULT)), InternalError, "please report it"),
        ((RECBOLE, WRAPPER, code_of("torch.z", body=FAULT)), RecBoleError, "RecBole raised"),
        ((RECBOLE, MINE, code_of("torch.z", body=FAULT)), RecBoleError, "your own code raised ZeroDivisionError"),
        ((MINE, code_of("recbole.model.layers", body=FAULT)), RecBoleError, "(recbole/model/layers.py line 2)"),
        ((RECBOLE, code_of("json", json.__file__, FAULT)), RecBoleError, "RecBole raised"),
    ],
)
def test_whose_code_is_innermost_is_said(calls: tuple[Call, ...], kind: type, words: str) -> None:
    error = explained(raised(*calls))
    assert type(error) is kind and words in str(error)


def test_a_text_is_one_printable_line_of_bounded_length() -> None:
    for text in ("a\nb\x1b[31m\u202ec", "x" * 10**6, ""):
        error = raised(RECBOLE, code_of("recbole.x", body="call(KeyError(TEXT))".replace("TEXT", repr(text))), _raise)
        line = str(explained(error))
        assert line.isprintable() and len(line) < 1200 and "KeyError" in line


def _raise(error: BaseException) -> None:
    raise error


def test_what_cannot_say_what_it_is_is_named() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert "Silent: no reason given" in str(explained(Silent()))


def test_out_of_memory_is_nobodys_fault() -> None:
    assert (
        type(explained(raised(OURS, code_of("recbole_prune.x", body="call(MemoryError())"), _raise))) is TrainingError
    )
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert "memory does not suffice" in str(explained(caught.value))


def test_what_can_be_acted_on_stays_as_it_is() -> None:
    with pytest.raises(ConfigError, match="^as it was$"), in_one_line("build BPR"):
        raise ConfigError("as it was")
    with pytest.raises(OSError, match="full"), in_one_line():
        raise OSError("full")
    with pytest.raises(KeyboardInterrupt), in_one_line():
        raise KeyboardInterrupt
    with pytest.raises(PruneError, match="SystemExit: -1") as caught, in_one_line():
        raise SystemExit(-1)
    assert isinstance(caught.value.__cause__, SystemExit)


# ---- runs ------------------------------------------------------------------------------------------------------------

# RecBole's, ours and a user's: a function that fails
FAILING = {
    "RecBole raised": code_of("recbole.model.general_recommender.bpr", body="{}['label']"),
    "a fault of recbole_prune, please report it:": code_of("recbole_prune.masking.allocate", body="{}['label']"),
    "your own code raised": code_of("my_models", "/home/me/my_models.py", body="{}['label']"),
}


@contextmanager
def failing_in_ticket_1(failure: Call) -> Iterator[None]:
    loss = BPR.calculate_loss

    def fails(self: Any, interaction: Any) -> Any:
        masks: MaskSet | None = self.masks
        return loss(self, interaction) if masks is None or masks.is_dense else failure()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BPR, "calculate_loss", fails)
        yield


@pytest.fixture(scope="module")
def settings(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a run whose dense model is trained once for all."""
    folder = str(tmp_path_factory.mktemp("runs"))
    return {**config_for("BPR", tiny_data), "pruner": "omp", "prune_rounds": 1, "output_dir": folder}


@pytest.mark.parametrize("words", slow_but(["RecBole raised"], FAILING))
def test_a_run_ends_in_one_line_and_continues(
    words: str, settings: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["--model=BPR", f"--dataset={DATASET}", f"--output_dir={tmp_path}", "--state=ERROR"]
    argv += [f"--{name}={value}" for name, value in settings.items() if name not in ("gpu_id", "output_dir")]
    with failing_in_ticket_1(FAILING[words]):
        assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("recbole-prune:")]
    assert line.startswith(f"recbole-prune: {words} KeyError: 'label' (") and "Traceback" not in out + err
    (journal,) = tmp_path.rglob("tickets.jsonl")
    (log,) = tmp_path.rglob("log.txt")
    assert line.endswith(f"; the traceback is in {log}")
    assert "Traceback (most recent call last)" in log.read_text() and "KeyError: 'label'" in log.read_text()
    before = journal.read_text()
    assert before.count("\n") == 1
    assert cli.main(argv) == 0
    assert journal.read_text().startswith(before) and journal.read_text().count("\n") == 2


def test_in_python_the_cause_is_there(settings: dict[str, Any]) -> None:
    with failing_in_ticket_1(FAILING["RecBole raised"]), pytest.raises(RecBoleError) as caught:
        run_recbole_prune("BPR", DATASET, config_dict=settings)
    assert isinstance(caught.value.__cause__, KeyError) and caught.value.__cause__.args == ("label",)


def test_outside_of_a_run_the_traceback_is_shown_on_demand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_run", lambda words: FAILING["RecBole raised"]())
    assert cli.main(["doctor"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "RECBOLE_PRUNE_TRACEBACK=1 in the environment shows the traceback" in err
    monkeypatch.setenv("RECBOLE_PRUNE_TRACEBACK", "1")
    assert cli.main(["doctor"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_what_fails_before_training_is_said_with_what_it_was_doing(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BPR, "full_sort_predict", FAILING["RecBole raised"])
    with pytest.raises(RecBoleError, match="^RecBole cannot score with BPR: KeyError: 'label' .*log.txt$"):
        run_recbole_prune("BPR", DATASET, config_dict={**settings, "output_dir": str(tmp_path)})
    assert not list(tmp_path.rglob("tickets.jsonl"))
