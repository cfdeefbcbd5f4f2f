"""The scope is decided once, before ticket 0, and stored: counts agree everywhere, masks are read without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from marks import slow_but
from recbole.trainer import trainer as recbole_trainer
from training_bench import Bench, experiment_of
from zoo import DATASET, config_for, gradient_models, missing_package

from recbole_prune import run_recbole_prune
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.errors import StoreError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scope import Scope, find_scope
from recbole_prune.run.store import SCOPE, RunFolder
from recbole_prune.run.ticket import Ticket
from recbole_prune.run.workshop import UNTRAINED, Workshop
from recbole_prune.training import state as states

# LR has a table that its loss never reads; LINE draws for every batch which of two tables it trains
AWKWARD = ["LR", "LINE"]


def run(data: Path, model: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    settings = {**config_for(model, data), "prune_target_sparsity": 0.5, **changes}
    return run_recbole_prune(model, DATASET, config_dict=settings), settings


@pytest.mark.parametrize("model", slow_but(["LINE"], AWKWARD))
def test_counts_agree_with_and_without_a_dense_model_and_in_a_dry_run(model: str, tiny_data: Path) -> None:
    with_dense, settings = run(tiny_data, model, pruner="dsl", prune_update_interval=2)
    alone, _ = run(tiny_data, model, pruner="dsl", prune_update_interval=2, prune_dense=False)
    plan, _ = run(tiny_data, model, pruner="dsl", prune_update_interval=2, dry_run=True)
    scope = experiment_of(with_dense, model, settings).scope
    for result in (with_dense, alone):
        assert {t["prunable"] for t in result["tickets"]} == {scope.prunable}
    assert with_dense["tickets"][-1]["kept"] == alone["tickets"][-1]["kept"]
    assert f"targets: {scope.prunable} prunable of {scope.parameters} trainable entries" in plan["plan"]
    assert f"  {alone['tickets'][-1]['kept']}  " in plan["plan"]


def test_what_no_loss_reads_is_left_out_before_anything_is_trained(tiny_data: Path) -> None:
    scope = Workshop(PruneConfig("LR", DATASET, config_dict=config_for("LR", tiny_data))).find_scope()
    left = {e.name: e.reason for e in scope.exclusions}
    assert UNTRAINED in left.values()
    everything = Workshop(PruneConfig("LR", DATASET, config_dict=config_for("LR", tiny_data))).find_scope(False)
    assert everything.prunable > scope.prunable and everything.parameters == scope.parameters
    line = Workshop(PruneConfig("LINE", DATASET, config_dict=config_for("LINE", tiny_data))).find_scope()
    assert UNTRAINED not in {e.reason for e in line.exclusions}


@pytest.mark.slow
@pytest.mark.parametrize("model", gradient_models())
def test_the_decision_is_what_a_real_training_shows(
    model: str, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What receives a gradient in three epochs of RecBole's trainer, and nothing else, stays in the scope."""
    if missing_package(model):
        pytest.skip(missing_package(model) or "")
    settings = {**config_for(model, tiny_data), "epochs": 3, "pretrain_epochs": 2, "train_batch_size": 256}
    workshop = Workshop(PruneConfig(model, DATASET, config_dict={**settings, "pruner": "imp", "prune_scope": "all"}))
    decided = workshop.find_scope()
    bench = Bench(model, tiny_data, epochs=3, pretrain_epochs=2, train_batch_size=256)
    monkeypatch.setattr(recbole_trainer, "get_tensorboard", lambda logger: None)
    monkeypatch.setattr(recbole_trainer.Trainer, "_add_train_loss_to_tensorboard", lambda *args, **kwargs: None)
    monkeypatch.setattr(recbole_trainer.Trainer, "_add_hparam_to_tensorboard", lambda *args, **kwargs: None)
    monkeypatch.setattr(recbole_trainer.Trainer, "_valid_epoch", lambda *args, **kwargs: (0.0, {}))
    trained = bench.model()
    names = [t.name for t in find_scope(trained, scope="all", padding=workshop.padding_rule(trained))]
    received = trained.watch_gradients(names)
    trainer = bench.trainer(trained)
    if hasattr(trained, "e_step"):
        trained.e_step()
    for epoch in range(3):
        trainer._train_epoch(bench.train, epoch, show_progress=False)
    assert {t.name for t in decided} == received


def test_masks_are_read_without_a_model(tiny_data: Path) -> None:
    result, _ = run(tiny_data, "BPR", pruner="omp")
    folder = RunFolder(Path(result["folder"]))
    scope = Scope.from_json(folder.read_scope())
    ticket = Ticket.from_record(folder.tickets()[1])
    masks = MaskSet.from_bytes(folder.read(ticket.mask_file, ticket.mask_sha256), scope)
    assert (masks.kept, masks.prunable) == (ticket.kept, ticket.prunable)


def test_a_scope_survives_json(tiny_data: Path) -> None:
    workshop = Workshop(PruneConfig("DeepFM", DATASET, config_dict=config_for("DeepFM", tiny_data)))
    scope = workshop.find_scope()
    again = Scope.from_json(json.loads(json.dumps(scope.to_json())))
    assert again == scope and again.describe() == scope.describe()


@pytest.mark.parametrize(
    "damage",
    [
        {"targets": 3},
        {"targets": [{"name": "a"}]},
        {"prunable": 1},
        {"parameters": None},
        {"exclusions": [{}]},
        {"shape": [0, 8]},
        {"shape": ["x"]},
        {"kind": "table"},
        {"padding_rows": [99]},
        {"tied_to": 1},
    ],
)
def test_a_record_that_is_no_scope_is_refused(damage: dict[str, Any]) -> None:
    target = {"name": "a", "kind": "embedding", "shape": [4, 8], "padding_rows": [0], "tied_to": [], "prunable": 24}
    record = {"targets": [target], "exclusions": [], "parameters": 32, "prunable": 24}
    assert Scope.from_json(record).prunable == 24
    field = next(iter(damage))
    changed = {**record, **damage} if field in record else {**record, "targets": [{**target, **damage}]}
    with pytest.raises(ValueError, match="."):
        Scope.from_json(changed)


def test_a_damaged_scope_stops_a_run_and_loses_nothing(tiny_data: Path) -> None:
    result, settings = run(tiny_data, "BPR", pruner="omp")
    file = Path(result["folder"], SCOPE)
    file.write_bytes(file.read_bytes().replace(b'"prunable": ', b'"prunable": 1'))
    journal = Path(result["folder"], "tickets.jsonl").read_bytes()
    with pytest.raises(StoreError, match=r"scope\.json is corrupt"):
        run_recbole_prune("BPR", DATASET, config_dict=settings)
    assert Path(result["folder"], "tickets.jsonl").read_bytes() == journal


def test_a_folder_of_version_0_1_0_keeps_the_scope_it_had(tiny_data: Path) -> None:
    """There the journal says what the dense training never moved, and no scope is stored."""
    result, settings = run(tiny_data, "LR", pruner="omp")
    folder = RunFolder(Path(result["folder"]))
    scope = Scope.from_json(folder.read_scope())
    left = [e.name for e in scope.exclusions if e.reason == UNTRAINED]
    records = folder.tickets()
    Path(folder.path, "tickets.jsonl").unlink()
    Path(folder.path, SCOPE).unlink()
    folder = RunFolder(folder.path)
    for record in records:
        folder.append_ticket({**record, "untrained": left if record["ticket"] == 0 else []})
    experiment = experiment_of(result, "LR", settings)
    assert [t.name for t in experiment.scope] == [t.name for t in scope] and experiment.scope.prunable == scope.prunable
    assert experiment.masks_of(experiment.tickets[1]).kept == records[1]["kept"]


def test_a_resume_point_of_version_0_1_0_is_read() -> None:
    masks, moved = [1, 2], {"step": 3, "steps": 9, "updates": 1, "grown": 4, "fired": {}, "recorder": {}}
    old = {"dynamics": {**moved, "masks": masks}, "weights": {}, "trainer": {}}
    new = states.current_form(old)
    assert new["masks"] == masks and new["parts"] == {"prune_and_grow": {"state": moved, "parameters": {}}}
    assert states.current_form({**old, "dynamics": None})["masks"] is None
    assert states.current_form(new) is new
