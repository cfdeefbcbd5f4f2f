"""Every pruner on every RecBole model that trains by gradient; the other models say why not.

A cell is one run of an epoch. Those of a model read its data once and adopt one dense model from each other.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from conformance import NOT_COUNTED, reachable_sparsity, used_keys
from marks import slow_but
from recbole.trainer.trainer import Trainer
from recbole.utils import get_model, init_seed
from training_bench import experiment_of, leaks, scores
from zoo import DATASET, all_models, config_for, gradient_models, missing_package, not_prunable_models, stages_of
from zoo_plain import last_stage_settings, reload

from recbole_prune import quick_start, run_recbole_prune
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.errors import ConfigError, NothingToPrune, PruneError
from recbole_prune.masking.schedule import kept_counts
from recbole_prune.pruners import PRUNERS, get_pruner
from recbole_prune.run import measuring
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.ticket import Ticket
from recbole_prune.run.workshop import Workshop
from recbole_prune.training.trainer import MaskAwareTrainer

Weights = dict[str, torch.Tensor]

# one of each kind, the general one by user histories; all others are slow
QUICK = ("CKE", "DeepFM", "MultiVAE", "SASRec")
QUICK_METHODS = ("imp", "dsl")
STORAGES = ("compact", "masked")

# a row of their batches is a whole user
BATCHES_OF_USERS = "CDAE DiffRec ENMF LDiffRec MacridVAE MultiDAE MultiVAE RaCT RecVAE".split()

_BATCH = {
    **dict.fromkeys(BATCHES_OF_USERS, 8),
    "DGCF": 32,  # draws as many users as an epoch's share of the items, which must not be more than there are
}

# values with which a method takes one training, or two where tickets follow from each other
_SMALL = {"prune_rounds": 1, "prune_update_interval": 2, "prune_min_per_row": 0, "prune_pq_centroids": 4}


def skip_without_package(model: str) -> None:
    reason = missing_package(model)
    if reason:
        pytest.skip(f"{model}: {reason}")


def settings_of(method: str, model: str, data: Path) -> dict[str, Any]:
    """Few users, several batches, every target where no dense model is needed."""
    used = used_keys(method)
    settings = {**config_for(model, data), "pruner": method, "user_inter_num_interval": "[0,30]"}
    settings["train_batch_size"] = _BATCH.get(model, 128)
    small = {**_SMALL, "prune_target_sparsity": reachable_sparsity(method)}
    settings.update({name: value for name, value in small.items() if name in used})
    if get_pruner(method).iterative:
        settings["prune_rounds"] = 2
    if "prune_dense" in used:
        settings.update(prune_dense=False, prune_scope="all")
    return settings


# ---- runs, and what is seen of them ----------------------------------------------------------------------------------


@dataclass
class Witness:
    """Looks at the model at every evaluation.

    Attributes:
        leaked: nonzero pruned entries, for each evaluation under masks.
        held_dense: embedding tables with pruned entries that were dense parameters then.
        epochs: epochs that began.
    """

    leaked: list[int] = field(default_factory=list)
    held_dense: set[str] = field(default_factory=set)
    epochs: int = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While it is open, runs are seen."""
        evaluate, train = Trainer.evaluate, MaskAwareTrainer._train_epoch

        def seen_evaluation(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            masks = trainer.model.masks
            if masks is not None and not masks.is_dense:  # whether a dense one is trained here depends on earlier cells
                self.leaked.append(leaks(trainer.model, masks))
                self.held_dense.update(held_dense(trainer.model))
            return evaluate(trainer, *args, **kwargs)

        def seen_epoch(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            self.epochs += 1
            return train(trainer, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "evaluate", seen_evaluation)
            patch.setattr(MaskAwareTrainer, "_train_epoch", seen_epoch)
            yield


def held_dense(model: Any) -> list[str]:
    """Embedding tables with pruned entries that a model holds as dense parameters."""
    parameters = dict(model.named_parameters())
    return [
        t.name
        for t in model.masks.scope
        if t.kind == "embedding" and t.name in parameters and not model.masks[t.name].all()
    ]


class Row:
    """The cells of one model.

    Args:
        model: name of a model.
        data: the folder of ``tiny``.
        folder: for its runs.
    """

    def __init__(self, model: str, data: Path, folder: Path) -> None:
        self.model, self.data, self.folder = model, data, folder

    @cached_property
    def workshop(self) -> Workshop:
        """Its data."""
        return Workshop(PruneConfig(self.model, DATASET, config_dict=settings_of("none", self.model, self.data)))

    def run(self, method: str, storage: str, witness: Witness) -> tuple[Experiment, list[Ticket]]:
        """One cell over the data that is read already; with ``imp`` all that a user's run does.

        With other methods the artifact and the costs of tickets are left out.
        """
        settings = {**settings_of(method, self.model, self.data), "output_dir": str(self.folder)}
        config = PruneConfig(self.model, DATASET, config_dict={**settings, "prune_storage": storage})
        with pytest.MonkeyPatch.context() as patch, witness.watching():
            patch.setattr(quick_start, "Workshop", self.workshop.with_config)
            patch.setattr(os, "fsync", lambda descriptor: None)
            if method != "imp":
                patch.setattr(measuring, "macs", lambda *_: NOT_COUNTED)
                for step in ("count_bytes", "export_chosen", "can_recommend", "summary_of"):
                    patch.setattr(quick_start, step, lambda *_: {})
            result = quick_start.run(config)
        result.raise_failure()
        return result.experiment, result.tickets


@pytest.fixture(scope="module")
def rows(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Row]:
    """The row of a model; that of the model before is let go."""
    kept: dict[str, Row] = {}

    def row(model: str) -> Row:
        if model not in kept:
            kept.clear()
            kept[model] = Row(model, tiny_data, tmp_path_factory.mktemp(model))
        return kept[model]

    return row


# ---- the cells -------------------------------------------------------------------------------------------------------


def cells() -> list[Any]:
    """(model, method, storage) of every cell; storages alternate, and both are taken where a cell is quick.

    Of methods of one class the first is taken, and none that only adds a teacher to others.
    """
    by_class = {get_pruner(name): name for name in reversed(PRUNERS)}
    methods = [name for name in PRUNERS if by_class[get_pruner(name)] == name and not get_pruner(name).distiller]
    models = gradient_models()
    places = product(enumerate(models), enumerate(methods))
    every = [(model, method, STORAGES[(x + y) % 2]) for (x, model), (y, method) in places]
    quick = [cell for cell in every if cell[0] in QUICK and cell[1] in QUICK_METHODS]
    others = [(model, method, next(s for s in STORAGES if s != storage)) for model, method, storage in quick]
    return slow_but(quick, sorted([*every, *others], key=lambda cell: models.index(cell[0])))


@pytest.mark.parametrize(("model", "method", "storage"), cells())
def test_every_pruner_on_every_model(model: str, method: str, storage: str, rows: Callable[[str], Row]) -> None:
    """It is refused for a listed reason before training, or finishes and keeps what was announced."""
    skip_without_package(model)
    row, witness, promises = rows(model), Witness(), get_pruner(method).promises
    try:
        experiment, tickets = row.run(method, storage, witness)
    except ConfigError as error:
        refusal = str(error)
        assert any(re.search(pattern, refusal) for pattern in promises.refuses), refusal
        assert not witness.epochs, "training began"
        return
    assert not any(witness.leaked)
    assert bool(witness.leaked) == promises.masks or method == "none", "nothing was looked at"
    assert storage == "masked" or not witness.held_dense or tickets[-1].has_units  # of which tables stay, but smaller
    for ticket in tickets:
        assert all(value is not None and isfinite(value) for value in (*ticket.valid.values(), *ticket.test.values()))
    check_kept(experiment, tickets, promises.exact)
    check_checkpoint(row.workshop, experiment, tickets[-1])
    if method == "imp":
        check_reload(experiment, tickets[-1])


def check_kept(experiment: Experiment, tickets: list[Ticket], exact: bool) -> None:
    """Counts are those that the pruner announced, of each target where it announces them."""
    pruner: Any = get_pruner(experiment.settings.pruner)(experiment)
    counts = pruner.counts()
    kept = {ticket.ticket: ticket.kept for ticket in tickets}
    assert set(kept) | {0} == set(range(len(counts)))
    if exact:
        assert kept == {number: counts[number] for number in kept}
    else:
        assert all(after < before for before, after in zip(kept.values(), list(kept.values())[1:]))
    masks = [experiment.masks_of(ticket) for ticket in tickets if ticket.mask_file]
    assert [m.kept for m in masks] == [ticket.kept for ticket in tickets if ticket.mask_file]
    if pruner.promises.nested:
        assert all(after.is_nested_in(before) for before, after in zip(masks, masks[1:]))
    if hasattr(pruner, "kept"):
        assert {name: int(masks[-1].per_row(name).sum()) for name in pruner.kept()} == pruner.kept()
        updates = tickets[-1].method.get("updates")
        assert updates is None or updates > 0


def check_checkpoint(workshop: Workshop, experiment: Experiment, ticket: Ticket) -> None:
    """It has RecBole's config, zeros where entries are pruned, and a plain model of it scores like ours."""
    checkpoint = torch.load(experiment.folder.path / ticket.checkpoint_file, map_location="cpu", weights_only=False)
    config = checkpoint["config"]
    assert type(config).__module__ == "recbole.config.configurator"
    init_seed(config["seed"], config["reproducibility"])  # FwFM draws weights that no checkpoint holds
    plain = get_model(config["model"])(config, workshop.train_data._dataset)
    plain.load_state_dict(checkpoint["state_dict"])
    plain.load_other_parameter(checkpoint.get("other_parameter"))
    compare(plain, experiment, ticket)


def check_reload(experiment: Experiment, ticket: Ticket) -> None:
    """Plain RecBole does everything anew from the checkpoint."""
    compare(reload(experiment.folder.path / ticket.checkpoint_file).model, experiment, ticket)


def compare(plain: Any, experiment: Experiment, ticket: Ticket) -> None:
    """Equal weights, zeros where entries are pruned, equal scores up to the order of sums."""
    if ticket.mask_file:
        assert leaks(plain, experiment.masks_of(ticket)) == 0
    ours, workshop = experiment.trained_model(ticket), experiment.workshop
    for name, value in plain.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name
    theirs, found = (scores(model.eval(), workshop.test_data, workshop.dataset) for model in (plain, ours))
    assert bool(torch.isfinite(theirs).all())
    torch.testing.assert_close(theirs, found, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model", [model for model in gradient_models() if stages_of(model)])
def test_imp_runs_on_the_last_stage(
    model: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # RaCT's log call has an argument without a placeholder, which pytest's log capture does not forgive
    monkeypatch.setattr(logging.root.manager, "disable", logging.INFO)
    settings = {**last_stage_settings(model, tiny_data, tmp_path), "pruner": "imp", "prune_rate": 0.3}
    settings["prune_rounds"] = 2
    witness = Witness()
    with witness.watching():
        result = run_recbole_prune(model=model, dataset=DATASET, config_dict=settings)
    assert witness.leaked and not any(witness.leaked)
    experiment = experiment_of(result, model, settings)
    tickets = [Ticket.from_record(record) for record in result["tickets"]]
    assert [t.kept for t in tickets] == kept_counts(tickets[0].prunable, rate=0.3, rounds=2)
    check_kept(experiment, tickets, exact=True)
    check_reload(experiment, tickets[2])


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
