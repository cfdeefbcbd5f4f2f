"""Every RecBole model that trains by gradient goes through IMP and DSL; the others say why not."""

from __future__ import annotations

import logging
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from recbole.trainer.trainer import Trainer
from training_bench import experiment_of, leaks, scores
from zoo import DATASET, all_models, config_for, gradient_models, missing_package, not_prunable_models, stages_of
from zoo_plain import last_stage_settings, reload

from recbole_prune import run_recbole_prune
from recbole_prune.errors import NothingToPrune, PruneError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.schedule import kept_counts
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.ticket import Ticket


def skip_without_package(model: str) -> None:
    reason = missing_package(model)
    if reason:
        pytest.skip(f"{model}: {reason}")


# one of each kind, the general one by user histories; all others are slow
QUICK = ("CKE", "DeepFM", "MultiVAE", "SASRec")


# a row of their batches is a whole user
BATCHES_OF_USERS = "CDAE DiffRec ENMF LDiffRec MacridVAE MultiDAE MultiVAE RaCT RecVAE".split()


def held_dense(model: Any) -> list[str]:
    """Embedding tables with pruned entries that a model holds as dense parameters."""
    parameters = dict(model.named_parameters())
    return [
        t.name
        for t in model.masks.scope
        if t.kind == "embedding" and t.name in parameters and not model.masks[t.name].all()
    ]


@pytest.mark.parametrize("storage", slow_but(["compact"], ["compact", "masked"]))
@pytest.mark.parametrize("model", slow_but(QUICK, gradient_models()))
def test_imp_runs_on_every_gradient_model(
    model: str, storage: str, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without_package(model)
    check_two_rounds(model, {**config_for(model, tiny_data), "prune_storage": storage}, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("model", [model for model in gradient_models() if stages_of(model)])
def test_imp_runs_on_the_last_stage(
    model: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # RaCT's log call has an argument without a placeholder, which pytest's log capture does not forgive
    monkeypatch.setattr(logging.root.manager, "disable", logging.INFO)
    check_two_rounds(model, last_stage_settings(model, tiny_data, tmp_path), monkeypatch)


@pytest.mark.parametrize("model", slow_but(QUICK, gradient_models()))
def test_dsl_runs_on_every_gradient_model(model: str, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse from scratch over every target, masks that move between steps, no dense model."""
    skip_without_package(model)
    settings = {**config_for(model, tiny_data), "pruner": "dsl", "prune_dense": False, "prune_scope": "all"}
    settings.update(prune_target_sparsity=0.6, prune_update_interval=2)
    experiment, result = checked_run(
        model, {**settings, "train_batch_size": 16 if model in BATCHES_OF_USERS else 256}, monkeypatch
    )
    (ticket,) = experiment.tickets.values()
    assert ticket.kept == sum(round(0.4 * target.prunable) for target in experiment.scope)
    masks = experiment.masks_of(ticket)
    for target in experiment.scope:
        assert int(masks.per_row(target.name).sum()) == round(0.4 * target.prunable)
    assert ticket.method["updates"] > 0 and ticket.method["exploration_rate"] > ticket.kept / ticket.prunable
    check_checkpoint(experiment, ticket, masks)


def check_two_rounds(model: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**settings, "pruner": "imp", "prune_rate": 0.3, "prune_rounds": 2}
    experiment, result = checked_run(model, settings, monkeypatch)
    tickets = [Ticket.from_record(record) for record in result["tickets"]]
    assert [t.kept for t in tickets] == kept_counts(tickets[0].prunable, rate=0.3, rounds=2)
    masks = experiment.masks_of(tickets[2])
    assert masks.kept == tickets[2].kept and masks.is_nested_in(experiment.masks_of(tickets[1]))
    check_checkpoint(experiment, tickets[2], masks)


def checked_run(
    model: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[Experiment, dict[str, Any]]:
    """A run without leaks at any evaluation, with compact tables where they are asked for."""
    evaluated_with_leaks = []
    still_dense: set[str] = set()
    evaluate = Trainer.evaluate

    def checked_evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.model.masks is not None:
            evaluated_with_leaks.append(leaks(self.model, self.model.masks))
            if not self.model.masks.is_dense and self.config["prune_storage"] == "compact":
                still_dense.update(held_dense(self.model))
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "evaluate", checked_evaluate)
    result = run_recbole_prune(model=model, dataset=DATASET, config_dict=settings)
    assert evaluated_with_leaks and not any(evaluated_with_leaks)
    assert not still_dense
    return experiment_of(result, model, settings), result


def check_checkpoint(experiment: Experiment, ticket: Ticket, masks: MaskSet) -> None:
    """The checkpoint loads in a plain RecBole model, holds zeros, and scores like ours (up to the order of sums)."""
    plain = reload(experiment.folder.path / ticket.checkpoint_file)
    assert type(plain.config).__module__ == "recbole.config.configurator"
    assert leaks(plain.model, masks) == 0
    ours = experiment.trained_model(ticket)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name
    workshop = experiment.workshop
    torch.testing.assert_close(
        scores(plain.model.eval(), plain.test_data, plain.dataset),
        scores(ours, workshop.test_data, workshop.dataset),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("model", not_prunable_models())
def test_models_without_gradient_say_so(model: str, tiny_data: Path) -> None:
    skip_without_package(model)
    settings = {**config_for(model, tiny_data), "pruner": "imp"}
    with pytest.raises(NothingToPrune, match=model):
        run_recbole_prune(model=model, dataset=DATASET, config_dict=settings)


def test_the_matrix_is_recboles_own_list() -> None:
    assert sorted(gradient_models() + not_prunable_models()) == sorted(all_models())
    assert len(all_models()) >= 90


def test_pattern_that_matches_nothing_is_refused(tiny_data: Path) -> None:
    settings = {**config_for("BPR", tiny_data), "pruner": "imp", "prune_include": ["user_embeding*"]}
    assert not fnmatchcase("user_embedding.weight", "user_embeding*")
    with pytest.raises(PruneError, match="user_embeding"):
        run_recbole_prune(model="BPR", dataset=DATASET, config_dict=settings)
