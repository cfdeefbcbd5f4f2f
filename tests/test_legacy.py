"""What a part leaves to the next ticket: sad's network goes on, from files that the journal names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_bench import Killed, kill, without_clocks
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.distillers.attention import AttentionDistillation
from recbole_prune.errors import StoreError
from recbole_prune.run.store import RunFolder
from recbole_prune.training import codec
from recbole_prune.training.trainer import MaskAwareTrainer

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensors, Tensors]]:
    """Of every ticket what was left to its network, and the network as it then began."""
    seen: list[tuple[Tensors, Tensors]] = []
    inherit = AttentionDistillation.inherit

    def noted(self: Any, legacy: Tensors) -> None:
        inherit(self, legacy)
        seen.append((legacy, {name: value.detach().clone() for name, value in self.parameters().items()}))

    monkeypatch.setattr(AttentionDistillation, "inherit", noted)
    return seen


def run(data: Path, folder: Path, pruner: str = "imp", **settings: Any) -> Path:
    """Two tickets of NeuMF after the dense one."""
    config = {
        **config_for("NeuMF", data),
        "pruner": pruner,
        "distiller": "sad",
        "distill_teacher_model": "NeuMF",
        "distill_teacher_settings": {"epochs": 1},
        "distill_alone": False,
        "prune_rounds": 2,
        "epochs": 2,
        "output_dir": str(folder),
        **settings,
    }
    return Path(run_recbole_prune("NeuMF", DATASET, config_dict=config)["folder"])


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "tickets.jsonl").read_text().splitlines()]


def test_the_network_goes_on(tiny_data: Path, tmp_path: Path, begun: list[tuple[Tensors, Tensors]]) -> None:
    folder = run(tiny_data, tmp_path)
    assert begun[0][0] == {} and len(begun) == 3
    for before, (legacy, now) in zip(journal(folder), begun[1:]):
        left = codec.decode((folder / before["legacy"]["file"]).read_bytes())["distiller"]
        assert set(left) == set(legacy) == set(now) and len(now) > 3
        assert all(torch.equal(left[name], now[name]) for name in now)
        assert any(not torch.equal(now[name], begun[0][1][name]) for name in now)


def test_or_begins_anew(tiny_data: Path, tmp_path: Path, begun: list[tuple[Tensors, Tensors]]) -> None:
    folder = run(tiny_data, tmp_path, distill_network="reinit")
    assert all("legacy" not in record for record in journal(folder))
    for legacy, now in begun:
        assert legacy == {} and all(torch.equal(now[name], begun[0][1][name]) for name in now)


@pytest.mark.slow
def test_what_reads_narrower_layers_is_drawn_anew(
    tiny_data: Path,
    tmp_path: Path,
    begun: list[tuple[Tensors, Tensors]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO", "recbole_prune")
    monkeypatch.setattr("recbole_prune.distillers.attention._SMALL", 9000)  # between the sizes before and after
    run(tiny_data, tmp_path, "structured", prune_target_sparsity=0.5, prune_rounds=1)
    legacy, now = begun[1]
    kept = {name for name in now if torch.equal(now[name], legacy.get(name, torch.empty(0)))}
    narrower = {name for name in now if name in legacy and now[name].shape != legacy[name].shape}
    assert narrower and kept and not narrower & kept
    assert "tensors of the network that picks layers are drawn anew" in caplog.text


@pytest.mark.slow
def test_an_adopted_dense_ticket_brings_it(tiny_data: Path, tmp_path: Path) -> None:
    run(tiny_data, tmp_path / "both", "omp")
    adopted = journal(run(tiny_data, tmp_path / "both"))
    alone = journal(run(tiny_data, tmp_path / "alone"))
    assert "adopted_from" in adopted[0] and "adopted_from" not in alone[0]
    assert [record["valid"] for record in adopted] == [record["valid"] for record in alone]
    assert [record["legacy"] for record in adopted] == [record["legacy"] for record in alone]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["epoch", "line"])
def test_killed_in_a_ticket_that_takes_over_ends_equal(
    moment: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its second epoch, and when its own network is written but not its line in the journal."""
    whole, calls = journal(run(tiny_data, tmp_path / "whole")), 0
    owner, name = {"epoch": (MaskAwareTrainer, "_valid_epoch"), "line": (RunFolder, "append_ticket")}[moment]
    original = getattr(owner, name)

    def killed(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        # the teacher's epoch or line, those of ticket 0, then ticket 1
        return kill() if calls == {"epoch": 5, "line": 3}[moment] else original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(Killed):
            run(tiny_data, tmp_path / "killed")
    assert len(journal(*(tmp_path / "killed").rglob("imp+sad-*"))) == 1
    again = journal(run(tiny_data, tmp_path / "killed"))
    for record in (*whole, *again):
        for name in ("distill_epoch_seconds", "teacher", "run_sha256", "sha256"):  # a clock, a path, seals of both
            del record[name]
    for found, expected in zip(map(without_clocks, again), map(without_clocks, whole)):
        assert {name: (found[name], expected[name]) for name in expected if found[name] != expected[name]} == {}
    assert len(again) == len(whole)


@pytest.mark.slow
def test_a_damaged_file_is_no_network(tiny_data: Path, tmp_path: Path) -> None:
    """It is found before the ticket that needs it is trained, and nothing on disk is lost."""
    folder = run(tiny_data, tmp_path)
    lines = (folder / "tickets.jsonl").read_text().splitlines(keepends=True)
    (folder / "tickets.jsonl").write_text(lines[0])
    file = folder / journal(folder)[0]["legacy"]["file"]
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match=file.name):
        run(tiny_data, tmp_path)
    assert (folder / "tickets.jsonl").read_text() == lines[0]
