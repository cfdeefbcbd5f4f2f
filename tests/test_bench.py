"""Benchmarks without models: samples, ratios, turns, options, interruptions, tables."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import yaml
from recbole.config import Config
from torch import nn

from recbole_prune import cli, signals
from recbole_prune.bench import memory
from recbole_prune.bench.generate import draw_pairs
from recbole_prune.bench.measuring import Candidate, agreement, first_batches, take_turns
from recbole_prune.bench.plain import PlainData
from recbole_prune.bench.results import FASTER, PART, Results, quantity, read_document, table_of
from recbole_prune.bench.runs import scratch_folder
from recbole_prune.bench.search import add_ours
from recbole_prune.bench.table import markdown, markdown_of_files
from recbole_prune.commands import bench as command
from recbole_prune.config.options import refuse_near, split
from recbole_prune.errors import ConfigError
from recbole_prune.metering.memory import peak_bytes, reset_peak_bytes


class Work:
    """A clock, and pieces of work that move it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def takes(self, name: str, *seconds: float) -> Callable[[], None]:
        durations = iter(seconds)

        def work() -> None:
            self.log.append(name)
            self.now += next(durations)

        return work


def results(**changes: Any) -> Results:
    arguments: dict[str, Any] = {"units": {"seconds": "seconds"}, "references": ["plain"], **changes}
    return Results("train", **arguments)


def test_candidates_take_turns_and_ratios_come_from_medians(tmp_path: Path) -> None:
    work, found = Work(), results(file=tmp_path / "found.json")
    candidates = [
        Candidate("plain", None, work.takes("plain", 99.0, 8.0, 12.0, 10.0), before=lambda n: work.takes("-", 5.0)()),
        Candidate("ours", 0.9, work.takes("ours", 2.0, 1.0, 4.0), warm_up=work.takes("warm", 50.0)),
    ]
    take_turns(candidates, 3, found, work.clock, progress=False)
    assert work.log == ["-", "plain", "warm", *(3 * ["-", "plain", "ours"])]
    found.complete = True
    found.save()
    document = read_document(tmp_path / "found.json")
    plain, ours = document["candidates"]
    assert plain["measures"]["seconds"] == {
        "samples": [8.0, 12.0, 10.0], "median": 10.0, "min": 8.0, "max": 12.0, "ratio_to": {}
    }  # fmt: skip
    assert ours["measures"]["seconds"]["samples"] == [2.0, 1.0, 4.0]
    assert ours["measures"]["seconds"]["ratio_to"] == {"plain": 5.0}
    assert document["complete"] and document["ratios"] == {"seconds": FASTER}


def test_document_says_where_and_with_what() -> None:
    found = results(command=["train", "--config_files=a b.yaml"])
    document = found.document()
    assert document["versions"]["python"].startswith("3.")
    # some builds of torch name their CUDA in one of the two places only
    assert document["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert {"numba", "faiss", "implicit", "recbole", "recbole-prune", "numpy"} <= set(document["versions"])
    assert document["machine"]["threads"] == torch.get_num_threads()
    assert document["machine"]["cpu"] and document["machine"]["cores"] >= 1
    assert document["command"] == "recbole-prune bench train '--config_files=a b.yaml'"
    assert not document["complete"]


def test_ratio_is_to_the_reference_at_the_same_sparsity_and_bytes_are_parts() -> None:
    found = results(units={"seconds": "seconds", "state": "bytes"}, references=["torch", "plain"])
    found.add("plain", None, state=400.0)
    for sparsity, seconds in ((0.5, 3.0), (0.9, 6.0)):
        found.add("torch", sparsity, seconds=seconds)
        found.add("ours", sparsity, seconds=1.5, state=100.0)
    by_key = {(c["name"], c["sparsity"]): c["measures"] for c in found.document()["candidates"]}
    assert by_key["ours", 0.5]["seconds"]["ratio_to"] == {"torch": 2.0}
    assert by_key["ours", 0.9]["seconds"]["ratio_to"] == {"torch": 4.0}
    assert by_key["ours", 0.9]["state"]["ratio_to"] == {"plain": 0.25}
    assert found.document()["ratios"] == {"seconds": FASTER, "state": PART}
    with pytest.raises(ValueError, match="minutes has no unit"):
        found.add("ours", 0.5, minutes=1.0)


def test_search_counts_multiples_of_the_plain_run_and_sums_a_continued_one() -> None:
    tickets = [{"sparsity": s, "epochs": 2, "train_seconds": 3.0, "eval_seconds": 1.0} for s in (0.0, 0.9)]
    for begun in (False, True):
        units = command.BENCHMARKS["search"].units
        found = Results("search", units, ["plain"], speedups=command.BENCHMARKS["search"].speedups)
        found.add("plain", None, seconds=5.0, train_and_eval=4.0)
        add_ours(tickets, 10.0, begun, found)
        ours = found.document()["candidates"][1]["measures"]
        assert ours["train_and_eval"]["ratio_to"] == {"plain": 2.0}
        assert ("seconds" in ours) is not begun
        assert begun or ours["seconds"]["ratio_to"] == {"plain": 2.0}
        assert begun == any("summed from the journal" in note for note in found.notes)


def test_interruption_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(options: dict[str, Any], words: list[str], found: Results) -> None:
        assert read_document(tmp_path / "found.json")["candidates"] == []
        found.settings = {"model": "BPR", "dataset": "tiny"}
        found.add("plain", None, seconds=2.0)
        raise KeyboardInterrupt

    monkeypatch.setattr("recbole_prune.bench.train.run", run)
    assert cli.main(["bench", "train", f"--to={tmp_path / 'found.json'}"]) == 130
    document = read_document(tmp_path / "found.json")
    assert not document["complete"]
    assert document["candidates"][0]["measures"]["seconds"]["samples"] == [2.0]
    assert "INCOMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], r"'trian' is unknown; did you mean train"),
        (["train", "--sparsity=0.9"], r"no option; did you mean --sparsities\?; there are --sparsities=, --repeats="),
        (["train", "--sparsities=0,1"], r"--sparsities=0,1 is not allowed: .* takes numbers from 0 to below 1"),
        (["train", "--sparsities=0.5,0.5"], "is not allowed"),
        (["eval", "--repeats=0"], r"--repeats= takes a whole number from 1"),
        (["eval", "--repeats"], r"--repeats without a value is not allowed"),
        (["memory", "--skip_plain=maybe"], "True or False"),
        (["artifact", "--values=fp32,fp64"], "some of fp32,fp16,int8"),
        (["generate", "--users=3", "--items=4", "--interactions=2"], "--to= is missing"),
        (["generate", "--users=3", "--items=4", "--interactions=7", "--to=x"], "more than half of all 12 pairs"),
        (["generate", "--users=3", "--items=4", "--interactions=1", "--to=x", "--model=BPR"], "'--model=BPR' is no"),
        (["table"], "name the JSON files"),
        (["table", "absent.json"], "absent.json cannot be read"),
        (["train", "--to=/proc/nothing/found.json"], "cannot write"),
    ],
)
def test_wrong_words_give_one_message(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("recbole-prune: ") and error.count("\n") == 1
    assert re.search(message, error)


def test_settings_pass_through_the_options() -> None:
    known = command.BENCHMARKS["train"].options
    words = ["-m", "BPR", "--repeats=7", "--learning_rate=0.1", "--prune_storage=compact", "--topk=[20]"]
    options, rest = split("bench train", known, words, refuse_near)
    assert options["repeats"] == 7 and options["sparsities"] == [0.0, 0.9] and options["to"] is None
    assert rest == ["-m", "BPR", "--learning_rate=0.1", "--prune_storage=compact", "--topk=[20]"]


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    for name, benchmark in command.BENCHMARKS.items():
        assert f"  {name}: " in text
        assert all(f"--{option}=" in text for option in benchmark.options)


def test_threads_are_set_before_the_libraries_read_them() -> None:
    code = "import recbole_prune.commands.bench, sys; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


DOCUMENT = {
    "format": "recbole_prune benchmark", "benchmark": "train", "complete": True,
    "date": "2026-03-04T05:06:07+00:00", "command": "recbole-prune bench train --model=BPR",
    "versions": {"python": "3.11.1", "torch": "2.13.0", "numpy": "2.4.6", "numba": None, "recbole": "1.2.1",
                 "recbole-prune": "0.1.0"},
    "machine": {"cpu": "Some CPU", "threads": 1, "usable_cores": 2, "gpu": None, "load_average": 0.1},
    "settings": {"model": "BPR", "dataset": "gowalla", "device": "cpu"},
    "units": {"seconds": "seconds", "state": "bytes"}, "ratios": {"seconds": FASTER, "state": PART},
    "references": ["plain"], "notes": [],
    "candidates": [
        {"name": "plain", "sparsity": None, "measures": {
            "seconds": {"samples": [10.0, 12.0], "median": 11.0, "min": 10.0, "max": 12.0, "ratio_to": {}},
            "state": {"samples": [4096.0], "median": 4096.0, "min": 4096.0, "max": 4096.0, "ratio_to": {}}}},
        {"name": "ours", "sparsity": 0.9, "measures": {
            "seconds": {"samples": [2.0], "median": 2.0, "min": 2.0, "max": 2.0, "ratio_to": {"plain": 5.5}}}},
        {"name": "ours", "sparsity": 0.95, "measures": {}, "failed": "killed"},
    ],
}  # fmt: skip


def test_table_in_markdown(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(DOCUMENT))
    assert markdown_of_files([str(tmp_path / "a.json")]).splitlines() == [
        "**Training epoch: BPR on gowalla**",
        "",
        "| candidate | sparsity | seconds | min - max | times faster than plain | state |",
        "|---|---:|---:|---:|---:|---:|",
        "| plain |  | 11 s | 10 s - 12 s |  | 4.00 KiB |",
        "| ours | 90 % | 2 s | 2 s - 2 s | 5.50 |  |",
        "| ours | 95 % | killed |  |  |  |",
        "",
        "Some CPU, 1 thread of 2 cores; python 3.11.1, torch 2.13.0, numpy 2.4.6, numba (none), recbole 1.2.1, "
        "recbole-prune 0.1.0; 2026-03-04.",
        "`recbole-prune bench train --model=BPR`",
    ]
    assert markdown({**DOCUMENT, "complete": False}).endswith("INCOMPLETE: not everything was measured.")


def test_every_row_of_a_table_is_as_wide_as_its_header() -> None:
    header, rows = table_of(DOCUMENT)
    assert {len(row) for row in rows} == {len(header)}


def test_json_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"format": "other"}')
    with pytest.raises(ConfigError, match=r"a\.json was not written by recbole-prune bench"):
        read_document(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.01234, "seconds", "12.3 ms"),
        (1.234, "seconds", "1.23 s"),
        (1234.5, "seconds", "1234 s"),
        (1023, "bytes", "1023 B"),
        (1536, "bytes", "1.50 KiB"),
        (3 << 30, "bytes", "3.00 GiB"),
    ],
)
def test_quantity(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_agreement() -> None:
    assert agreement({"a": 0.5, "b": 0.25}, {"a": np.float64(0.5), "b": 0.25}) == (True, 0.0)
    assert agreement({"a": 0.5}, {"a": 0.25}) == (False, 0.25)
    assert agreement({"a": 0.5}, {"b": 0.5})[0] is False


def test_first_batches() -> None:
    assert first_batches([1, 2, 3], None) == [1, 2, 3]
    for batches, expected in ((2, [1, 2]), (5, [1, 2, 3])):
        loader = first_batches([1, 2, 3], batches)
        assert (list(loader), list(loader), len(loader)) == (expected, expected, len(expected))
    assert first_batches("abc", 1).upper() == "ABC"


# ---- memory ----------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.tied = self.table.weight
        self.register_buffer("counts", torch.zeros(10, dtype=torch.int64))
        self.graph = torch.eye(5).to_sparse()
        self.views = [self.table.weight.data[2:4], torch.zeros(8)[:2]]
        self.numbers = np.zeros(3, dtype=np.float32)


def test_every_piece_of_memory_counts_once() -> None:
    model = Model()
    trainer = type("Trainer", (), {})()
    trainer.model = model
    trainer.optimizer = trainer.same = torch.optim.Adam(model.parameters())
    nothing_yet = memory.tensor_bytes(trainer)
    assert (nothing_yet["gradients"], nothing_yet["optimizer"]) == (0, 0)
    model.table(torch.tensor([1])).sum().backward()
    trainer.optimizer.step()
    assert memory.tensor_bytes(trainer) == {
        "weights": 160,
        "gradients": 160,
        "optimizer": 2 * 160 + 4,  # two moments and the number of the step
        "buffers": 80,
        "other": 5 * (4 + 16) + 32 + 12,  # graph, the whole of the tensor behind a view, numpy
    }


def test_peak_covers_what_is_held() -> None:
    reset_peak_bytes()  # tests before this one may have held more
    before = peak_bytes()
    held = np.ones(1 << 26, dtype=np.uint8)
    assert peak_bytes() - before >= len(held) // 2 and held[0]


@pytest.mark.parametrize(
    ("status", "message"), [(-9, "killed by the system"), (1, "the process of plain failed with status 1")]
)
def test_killed_process_is_a_result_and_a_failed_one_an_error(
    status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = MagicMock(returncode=status)
    monkeypatch.setattr(memory.subprocess, "Popen", lambda *args, **kwargs: process)
    if status == -9:
        assert message in memory._run_process({"name": "plain"}, tmp_path / "found.json")["failed"]
    else:
        with pytest.raises(ConfigError, match=message):
            memory._run_process({"name": "plain"}, tmp_path / "found.json")


def test_an_interrupted_process_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an exception, or by a signal, whose handler calls what is registered."""
    process = MagicMock()
    process.communicate.side_effect = lambda text: signals._actions[-1]()
    monkeypatch.setattr(memory.subprocess, "Popen", lambda *args, **kwargs: process)
    with pytest.raises(ConfigError):
        memory._run_process({"name": "plain"}, tmp_path / "found.json")
    assert process.kill.call_count == 1
    process.communicate.side_effect = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        memory._run_process({"name": "plain"}, tmp_path / "found.json")
    assert process.kill.call_count == 2


def test_a_signal_leaves_no_temporary_folder() -> None:
    with scratch_folder() as scratch:
        (scratch / "file").touch()
        signals._actions[-1]()
        assert not scratch.exists()


def test_running_out_of_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert memory.is_out_of_memory(caught.value) and memory.is_out_of_memory(MemoryError())
    assert not memory.is_out_of_memory(RuntimeError("shapes differ"))


# ---- generated data --------------------------------------------------------------------------------------------------


def test_generated_data_has_exactly_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--users=40", "--items=30", "--interactions=100", f"--to={tmp_path / 'made'}"]
    assert cli.main(["bench", "generate", *words]) == 0
    assert f"--dataset=made --data_path={tmp_path}" in capsys.readouterr().out
    config = Config(
        "BPR", "made", [str(tmp_path / "made" / "dataset.yaml")], {"data_path": str(tmp_path), "gpu_id": ""}
    )
    plain = PlainData(config)
    assert (plain.dataset.user_num, plain.dataset.item_num, plain.dataset.inter_num) == (41, 31, 100)
    assert len(next(iter(plain.train_data))["user_id"]) > 0
    assert yaml.safe_load((tmp_path / "made" / "dataset.yaml").read_text())["load_col"]["user"] == ["user_id"]
    first = (tmp_path / "made" / "made.inter").read_bytes()
    assert cli.main(["bench", "generate", *words]) == 2  # never over what is there
    assert cli.main(["bench", "generate", *words[:3], f"--to={tmp_path / 'again' / 'made'}"]) == 0
    assert (tmp_path / "again" / "made" / "made.inter").read_bytes() == first


@pytest.mark.parametrize(("users", "items", "count"), [(1, 2, 1), (5, 4, 10), (1000, 1000, 5000), (3, 4000, 6000)])
def test_drawn_pairs_differ_and_lie_in_range(users: int, items: int, count: int) -> None:
    pairs = draw_pairs(users, items, count, np.random.default_rng(1))
    assert pairs.shape == (count, 2) == np.unique(pairs, axis=0).shape
    assert pairs.min() >= 1 and pairs[:, 0].max() <= users and pairs[:, 1].max() <= items


def test_some_items_are_popular() -> None:
    items = np.bincount(draw_pairs(10_000, 1000, 10_000, np.random.default_rng(1))[:, 1])
    assert items.max() > 50 * np.median(items[1:])
