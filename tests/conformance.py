"""What every method owes, checked for each line of the table of pruners on a model of each kind.

No name of a method stands here: its settings follow from the keys that its property file lists, what is expected of it
from ``promises`` of its class. A new line in the table is in these tests by being there.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, wraps
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
from marks import slow_but
from recbole.trainer.trainer import Trainer
from training_bench import experiment_of, leaks, scores, without_clocks
from zoo import DATASET, config_for
from zoo_plain import reload

from recbole_prune import load_ticket, quick_start, run_recbole_prune
from recbole_prune.config import schema
from recbole_prune.config.settings import rounds_planned
from recbole_prune.errors import ConfigError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.pruners import PRUNERS, get_pruner
from recbole_prune.run import measuring
from recbole_prune.run.costs import count_bytes
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.store import RunFolder
from recbole_prune.run.ticket import Ticket
from recbole_prune.run.ticket_training import TicketTraining
from recbole_prune.training.trainer import MaskAwareTrainer

QUICK_MODEL = "BPR"
MODELS = (QUICK_MODEL, "LightGCN", "SASRec", "DeepFM", "CKE")  # of each kind of RecBole's one, and a propagating one
Moment = tuple  # (ticket, epoch about to begin), or (ticket, None) before it is planned

# counting takes as long as a training here, and no check asks
NOT_COUNTED = {"macs": {"not_counted": ["left out"]}, "ranking_parameters": None}
# values with which a method is quick, where it has a use for the key
_SMALL = {"prune_rounds": 2, "prune_update_interval": 2, "prune_pq_centroids": 4}
# a training long enough, and a mask sparse enough, that the choice of entries shows: chosen masks score about twice as
# much as random ones, and random ones differ by a tenth from seed to seed
_TELLING = {
    "epochs": 20,
    "learning_rate": 0.01,
    "embedding_size": 32,
    "train_batch_size": 256,
    "prune_target_sparsity": 0.9,
    "prune_rounds": 1,
    "prune_update_interval": 5,
    "prune_dense": False,
    "export_ticket": 1,
}


def used_keys(method: str) -> set[str]:
    """Keys that the property file of a pruner lists."""
    return {name for name, key in schema.known_keys().items() if ("pruner", method) in key.methods}


def reachable_sparsity(method: str) -> float:
    """A sparsity at the end of a schedule whose points the method reaches."""
    least = get_pruner(method).promises.least_sparsity
    return 1 - (1 - least) / 4 if least else 0.6


def settings_of(method: str, model: str, data: Path, **changes: Any) -> dict[str, Any]:
    """Settings with which a method takes seconds on ``tiny``; the last ticket is exported."""
    used = used_keys(method)
    settings = {**config_for(model, data), "epochs": 2, "pruner": method}
    if get_pruner(method).distiller:
        settings.update(distiller=get_pruner(method).distiller, distill_alone=False)
    small = {**_SMALL, "prune_target_sparsity": reachable_sparsity(method)}
    settings.update({name: value for name, value in small.items() if name in used})
    settings["export_ticket"] = rounds_planned({**settings, "distiller": None})
    known = {name: value for name, value in changes.items() if name not in schema.known_keys() or _takes(name, used)}
    return {**settings, **known}


def _takes(name: str, used: set[str]) -> bool:
    return not schema.known_keys()[name].listed or name in used


# ---- one run, and what is seen of it while it lasts ------------------------------------------------------------------


@dataclass
class Witness:
    """Looks at the model after every optimizer step and at every evaluation.

    Attributes:
        steps: nonzero pruned entries after each step.
        evaluations: what was evaluated, its kept entries (None without masks) and its nonzero pruned ones.
        moments: where a training can be stopped, in order.
        stops: moments at which it is stopped, in order.
    """

    steps: list[int] = field(default_factory=list)
    evaluations: list[tuple[str, int | None, int]] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    stops: list[Moment] = field(default_factory=list)

    def pass_by(self, moment: Moment) -> None:
        """Note a moment; stop if it is the next one to stop at."""
        self.moments.append(moment)
        if self.stops and self.stops[0] == moment:
            del self.stops[0]
            raise KeyboardInterrupt

    def see_step(self, model: Any) -> None:
        """After an optimizer step, and what trains along with it."""
        self.steps.append(0 if model.masks is None else leaks(model, model.masks))

    def see_evaluation(self, trainer: Any) -> None:
        """Before the first batch is scored."""
        masks = trainer.model.masks
        kept, leaked = (None, 0) if masks is None else (masks.kept, leaks(trainer.model, masks))
        self.evaluations.append((trainer.session.name, kept, leaked))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While it is open, runs of this process are seen."""
        with pytest.MonkeyPatch.context() as patch:
            self._hook_trainer(patch)
            self._hook_moments(patch)
            yield

    def _hook_trainer(self, patch: pytest.MonkeyPatch) -> None:
        build, evaluate = MaskAwareTrainer._build_optimizer, Trainer.evaluate

        def watched_optimizer(trainer: Any, **kwargs: Any) -> Any:
            optimizer = build(trainer, **kwargs)
            step = optimizer.step

            @wraps(step)
            def seen(*args: Any, **step_kwargs: Any) -> Any:
                result = step(*args, **step_kwargs)
                self.see_step(trainer.model)
                return result

            optimizer.step = seen
            return optimizer

        def watched_evaluation(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            self.see_evaluation(trainer)
            return evaluate(trainer, *args, **kwargs)

        patch.setattr(MaskAwareTrainer, "_build_optimizer", watched_optimizer)
        patch.setattr(Trainer, "evaluate", watched_evaluation)

    def _hook_moments(self, patch: pytest.MonkeyPatch) -> None:
        before_epoch, obtain = TicketTraining.before_epoch, Experiment.obtain

        def passing(training: Any, epoch: int, trainer: Any) -> None:
            before_epoch(training, epoch, trainer)
            self.pass_by((training.plan.ticket, epoch))

        def obtaining(experiment: Any, number: int, plan: Any) -> Ticket:
            self.pass_by((number, None))
            return obtain(experiment, number, plan)

        patch.setattr(TicketTraining, "before_epoch", passing)
        patch.setattr(Experiment, "obtain", obtaining)


class Outcome:
    """A finished run as its folder tells it."""

    def __init__(self, result: dict[str, Any], witness: Witness) -> None:
        self.result = result
        self.witness = witness
        self.folder = RunFolder(Path(result["folder"]))

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """Its journal."""
        return self.folder.tickets()

    @cached_property
    def masks(self) -> list[bytes | None]:
        """The mask file of each ticket."""
        return [r["mask_file"] and self.folder.read(r["mask_file"], r["mask_sha256"]) for r in self.records]

    @cached_property
    def weights(self) -> list[dict[str, torch.Tensor]]:
        """The weights of each ticket's checkpoint."""
        files = [self.folder.path / record["checkpoint_file"] for record in self.records]
        return [torch.load(file, map_location="cpu", weights_only=False)["state_dict"] for file in files]

    @property
    def artifact(self) -> bytes:
        """The tensors of the artifact."""
        return (Path(self.result["artifact"]) / "ticket.safetensors").read_bytes()


class Subject:
    """A method on a model, with the runs that the checks look at, each made once.

    Args:
        method: a name of the table.
        model: name of a model.
        data: the folder of ``tiny``.
        folder: for its runs.
        changes: settings beside those of :func:`settings_of`; ours only where the method has a use for them.
    """

    def __init__(self, method: str, model: str, data: Path, folder: Path, **changes: Any) -> None:
        self.method, self.model, self.data, self.folder = method, model, data, folder
        self.promises = get_pruner(method).promises
        self.settings = settings_of(method, model, data, **changes)
        self.sizes: dict[int, int | None] = {}

    def run(self, output: str, witness: Witness | None = None, **changes: Any) -> Outcome:
        """One run under an output folder of its own."""
        witness = witness or Witness()
        settings = {
            **self.settings,
            **self.teaching(changes.get("seed")),
            **changes,
            "output_dir": str(self.folder / output),
        }
        with pytest.MonkeyPatch.context() as patch, witness.watching():
            patch.setattr(quick_start, "count_bytes", self.count_once)
            patch.setattr(measuring, "macs", lambda *_, **__: NOT_COUNTED)
            return Outcome(run_recbole_prune(self.model, DATASET, config_dict=settings), witness)

    def teaching(self, seed: int | None = None) -> dict[str, str]:
        """Who teaches, for methods that need a teacher: a run of the model itself, with the same split."""
        if not get_pruner(self.method).distiller:
            return {}
        settings = {**config_for(self.model, self.data), "epochs": 2, "output_dir": str(self.folder / "teacher")}
        if seed is not None:
            settings["seed"] = seed
        return {"distill_teacher": str(run_recbole_prune(self.model, DATASET, config_dict=settings)["folder"])}

    def count_once(self, experiment: Experiment, tickets: list[Ticket]) -> dict[int, int | None]:
        """Bytes of tickets, counted in the first run for all."""
        if not {ticket.ticket for ticket in tickets} <= set(self.sizes):
            self.sizes = dict(count_bytes(experiment, tickets))
        return self.sizes

    @cached_property
    def refusal(self) -> str | None:
        """The message with which the model is turned down; None if the method takes it."""
        try:
            return self.whole and None
        except ConfigError as error:
            return str(error)

    @cached_property
    def whole(self) -> Outcome:
        """The run that others are compared with."""
        return self.run("whole")

    @cached_property
    def experiment(self) -> Experiment:
        """The whole run, for those who ask on."""
        return experiment_of(self.whole.result, self.model, {**self.settings, **self.teaching()})

    @cached_property
    def counts(self) -> list[int]:
        """Live entries of each ticket as the method announces them."""
        return get_pruner(self.method)(self.experiment).counts()

    @cached_property
    def masks(self) -> list[MaskSet]:
        """The masks of each ticket."""
        assert all(data is not None for data in self.whole.masks), "a ticket has no mask file"
        return [MaskSet.from_bytes(data, self.experiment.scope) for data in self.whole.masks if data is not None]

    @property
    def pruned(self) -> list[dict[str, Any]]:
        """The journal without ticket 0."""
        return [record for record in self.whole.records if record["ticket"] > 0]


# ---- the checks ------------------------------------------------------------------------------------------------------


def check_counts(subject: Subject) -> None:
    """Journal, masks, evaluations and ``counts()`` agree."""
    records, counts, promises = subject.whole.records, subject.counts, subject.promises
    kept = [record["kept"] for record in records]
    assert [record["ticket"] for record in records] == list(range(len(counts)))
    levels = kept[:-1] if promises.repeats_last else kept
    assert levels == sorted(set(levels), reverse=True) and kept[-1] > 0
    assert not promises.repeats_last or kept[-1] == kept[-2]
    for record in records:
        assert record["prunable"] == subject.experiment.scope.prunable
        assert record["sparsity"] == pytest.approx(1 - record["kept"] / record["prunable"])
    if promises.exact:
        assert kept == counts
        expected = {f"ticket {number}": count for number, count in enumerate(counts)}
        seen = {(name, number) for name, number, _ in subject.whole.witness.evaluations if name in expected}
        assert seen == set(expected.items())
    if promises.masks:
        assert [masks.kept for masks in subject.masks] == kept


def check_kind_of_tickets(subject: Subject) -> None:
    """Tickets are masks, or other models or forms of tables, and name what they are comparable to."""
    assert subject.whole.records[0]["mask_file"]
    if subject.promises.masks:
        assert all(record["mask_file"] and not record.get("changes") for record in subject.pruned)
    else:
        assert all(record["mask_file"] is None for record in subject.pruned)
        assert all(record.get("changes") or record.get("forms") for record in subject.pruned)
        assert [record["equal_to_kept"] for record in subject.pruned] == subject.counts[1:]


def check_nested(subject: Subject) -> None:
    """What is pruned stays pruned in later tickets."""
    if subject.promises.masks and subject.promises.nested:
        for before, after in zip(subject.masks, subject.masks[1:]):
            assert after.is_nested_in(before)


def check_pruned_entries_are_zero(subject: Subject) -> None:
    """After every optimizer step, at every evaluation, in every checkpoint."""
    witness = subject.whole.witness
    assert len(witness.steps) >= sum(epoch is not None for _, epoch in witness.moments)
    assert len(witness.evaluations) >= 2 * len(subject.whole.records)
    assert not any(witness.steps)
    assert not any(leaked for _, _, leaked in witness.evaluations)
    if subject.promises.masks:
        for masks, weights in zip(subject.masks, subject.whole.weights):
            assert not any(weights[name][~mask].any() for name, mask in masks.items())


def check_training(subject: Subject) -> None:
    """Tickets are trained; or they are the dense model's weights as they are."""
    trained = {ticket for ticket, epoch in subject.whole.witness.moments if epoch is not None and ticket > 0}
    pruned = subject.pruned
    if subject.promises.trains:
        assert trained == {record["ticket"] for record in pruned}
        assert all(1 <= record["best_epoch"] <= record["epochs"] for record in pruned)
        return
    assert not trained
    assert all(record["epochs"] == record["best_epoch"] == record["train_seconds"] == 0 for record in pruned)
    if not subject.promises.masks:
        return
    dense = subject.whole.weights[0]
    for masks, weights in zip(subject.masks[1:], subject.whole.weights[1:]):
        assert all(torch.equal(value, dense[name] * masks.get(name, 1)) for name, value in weights.items())


def check_forms(subject: Subject) -> None:
    """Small forms decode to the tables of the checkpoint, leave padding and all else alone, and have the bytes told."""
    for record, weights in zip(subject.pruned, subject.whole.weights[1:]):
        forms = subject.experiment.forms_of(Ticket.from_record(record))
        if not forms:
            continue
        dense = 0
        for target in subject.experiment.scope:
            if target.name not in forms:
                dense += 4 * target.shape[0] * target.width
                continue
            form = forms[target.name]
            assert form.padding_rows == target.padding_rows
            table = weights[target.name]
            assert np.array_equal(form.decode(), table.numpy())
            assert all(torch.equal(weights[name], table) for name in target.tied_to)
            if not subject.promises.trains:
                rows = list(target.padding_rows)
                assert torch.equal(table[rows], subject.whole.weights[0][target.name][rows])
        assert record["bytes"] == sum(part.nbytes for form in forms.values() for part in form.parts.values()) + dense
        if not subject.promises.trains:
            formed = {name for each in forms for name in (each, *subject.experiment.scope[each].tied_to)}
            others = set(weights) - formed
            assert all(torch.equal(weights[name], subject.whole.weights[0][name]) for name in others)


def check_dense_model(subject: Subject) -> None:
    """Ticket 0 is the whole model and competes with nobody; where it can be left out, it is."""
    first = subject.whole.records[0]
    assert first["ticket"] == 0 and first["kept"] == first["prunable"] and first["wins"] is None
    assert all(record["wins"] is not None for record in subject.pruned)
    assert subject.promises.needs_dense == ("prune_dense" not in used_keys(subject.method))
    if not subject.promises.needs_dense:
        assert [record["ticket"] for record in subject.run("sparse", prune_dense=False).records] == [
            record["ticket"] for record in subject.pruned
        ]


def check_checkpoint(subject: Subject) -> None:
    """Plain RecBole loads the last checkpoint, name by name, scores as we do and has the metrics of the journal."""
    ticket = subject.experiment.tickets[subject.pruned[-1]["ticket"] if subject.pruned else 0]
    plain = reload(subject.whole.folder.path / ticket.checkpoint_file)
    assert type(plain.config).__module__ == "recbole.config.configurator"
    ours = subject.experiment.trained_model(ticket)
    assert list(plain.model.state_dict()) == list(ours.state_dict())
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name
    theirs = scores(plain.model.eval(), plain.test_data, plain.dataset)
    torch.testing.assert_close(theirs, _our_scores(subject, ours), rtol=1e-5, atol=1e-6)
    assert dict(plain.trainer.evaluate(plain.test_data, load_best_model=False)) == pytest.approx(ticket.test, abs=2e-4)


def check_artifact(subject: Subject) -> None:
    """The small folder gives back the model of the ticket that was asked for."""
    ticket = subject.experiment.tickets[subject.settings["export_ticket"]]
    assert ticket.ticket == subject.whole.records[-1]["ticket"] == subject.whole.result["chosen"]["ticket"]
    facts = json.loads((Path(subject.whole.result["artifact"]) / "ticket.json").read_text(encoding="utf-8"))
    assert not subject.promises.masks or facts["kept"] == ticket.kept
    loaded = load_ticket(subject.whole.result["artifact"])
    ours = subject.experiment.trained_model(ticket)
    torch.testing.assert_close(_our_scores(subject, loaded), _our_scores(subject, ours), rtol=1e-5, atol=1e-6)


def _our_scores(subject: Subject, model: Any) -> torch.Tensor:
    workshop = subject.experiment.workshop
    return scores(model, workshop.test_data, workshop.dataset)


def check_same_twice(subject: Subject) -> None:
    """The same command elsewhere gives the same bytes."""
    twin = subject.run("twin")
    assert twin.folder.path.name == subject.whole.folder.path.name
    assert_equal(subject.whole, twin)
    assert twin.artifact == subject.whole.artifact


def check_another_seed(subject: Subject) -> None:
    """Another seed gives other masks, or other weights where there are none."""
    if subject.pruned:
        other = subject.run("seed", seed=subject.experiment.config["seed"] + 1)
        if subject.promises.masks:
            assert other.masks[-1] != subject.whole.masks[-1]
        assert other.artifact != subject.whole.artifact


def check_killed_and_resumed(subject: Subject) -> None:
    """Stopped at random moments and begun again it ends as if it had never been stopped."""
    killer = Witness(stops=two_moments(subject.whole.witness.moments, subject.method + subject.model))
    while killer.stops:
        with pytest.raises(KeyboardInterrupt):
            subject.run("killed", killer)
    assert_equal(subject.whole, subject.run("killed", killer))


def two_moments(moments: list[Moment], seed: str) -> list[Moment]:
    """One of the last ticket, when a new process knows least, and one before it."""
    draw = random.Random(seed)
    of_last = [place for place, (ticket, _) in enumerate(moments) if ticket == moments[-1][0] and place >= 2]
    late = draw.choice(of_last)
    return [moments[draw.randrange(1, late)], moments[late]]


def assert_equal(one: Outcome, other: Outcome) -> None:
    """Journals without clocks, mask files byte for byte, weights bit for bit."""
    assert list(map(without_clocks, one.records)) == list(map(without_clocks, other.records))
    assert one.masks == other.masks
    for before, after in zip(one.weights, other.weights):
        assert list(before) == list(after)
        assert all(torch.equal(before[name], after[name]) for name in before)


CHECKS: tuple[Callable[[Subject], None], ...] = (
    check_counts,
    check_kind_of_tickets,
    check_nested,
    check_pruned_entries_are_zero,
    check_training,
    check_forms,
    check_dense_model,
    check_checkpoint,
    check_artifact,
    check_same_twice,
    check_another_seed,
    check_killed_and_resumed,
)


def check_refusal(subject: Subject) -> None:
    """A model may be turned down for the reasons that the class lists, and before anything is trained."""
    assert _is_listed(str(subject.refusal), subject.method), subject.refusal
    assert not list((subject.folder / "whole").rglob("tickets.jsonl"))


def _is_listed(message: str, method: str) -> bool:
    return any(re.search(pattern, message) for pattern in get_pruner(method).promises.refuses)


@cache
def telling_score(method: str, data: Path, folder: Path, seed: int) -> tuple[int, float]:
    """Kept entries and validation score where the choice of entries shows; methods share the dense model."""
    subject = Subject(method, QUICK_MODEL, data, folder, **_TELLING, seed=seed)
    last = subject.run("telling").records[-1]
    return last["kept"], last["valid_score"]


def check_above_random(method: str, data: Path, folder: Path, seed: int = 1) -> None:
    """The choice of entries is worth something."""
    kept, score = telling_score(method, data, folder, seed)
    random_kept, random_score = telling_score("random", data, folder, seed)
    assert kept == random_kept
    assert score > 1.1 * random_score


# ---- over the table --------------------------------------------------------------------------------------------------


# each goes the way of a method that is quick, and only chooses other entries
_ALIKE = {"omp", "random", "magprune", "static", "rigl", "set", "sp_sad", "lth_sad", "pq"}


# on further models a resumed run shows that the same command gives the same
_ON_ONE_MODEL = {check_same_twice, check_another_seed}


def cases() -> list[Any]:
    """(method, model, storage, check) for every line of the table; what is not quick is marked."""
    compact = [(method, QUICK_MODEL, "compact", check) for method in PRUNERS for check in CHECKS]
    quick = [case for case in compact if case[0] not in _ALIKE and case[-1] is not check_another_seed]
    alone = [method for method in PRUNERS if not get_pruner(method).distiller]  # the others add a teacher to these
    others = [(method, QUICK_MODEL, "masked", check) for method in alone for check in CHECKS]
    further = [check for check in CHECKS if check not in _ON_ONE_MODEL]
    others += [(method, model, "auto", check) for model in MODELS[1:] for method in alone for check in further]
    return slow_but(quick, [*compact, *others])


@pytest.fixture(scope="module")
def subjects(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], Subject]:
    """The subject of a case; that of the case before is let go."""
    kept: dict[tuple[str, str, str], Subject] = {}

    def subject(method: str, model: str, storage: str) -> Subject:
        case = method, model, storage
        if case not in kept:
            kept.clear()
            folder = tmp_path_factory.mktemp(f"{method}-{model}-{storage}")
            kept[case] = Subject(method, model, tiny_data, folder, prune_storage=storage)
        return kept[case]

    return subject


@pytest.mark.parametrize(
    ("method", "model", "storage", "check"), cases(), ids=lambda value: getattr(value, "__name__", value)
)
def test_a_method_keeps_its_promises(
    method: str,
    model: str,
    storage: str,
    check: Callable[[Subject], None],
    subjects: Callable[[str, str, str], Subject],
) -> None:
    subject = subjects(method, model, storage)
    if subject.refusal is not None:
        check = check_refusal
    check(subject)


@pytest.fixture(scope="module")
def telling_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs that tell chosen from random masks lie."""
    return tmp_path_factory.mktemp("telling")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("method", [method for method in PRUNERS if get_pruner(method).promises.above_random])
def test_a_chosen_mask_beats_a_random_one(method: str, seed: int, tiny_data: Path, telling_runs: Path) -> None:
    check_above_random(method, tiny_data, telling_runs, seed)
