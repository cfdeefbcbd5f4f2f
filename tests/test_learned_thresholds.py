"""Learned soft thresholds: values worked out by hand, equality with autograd, the search and its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_bench import Bench, Killed, MemoryFiles, experiment_of, kill, without_clocks
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.errors import ConfigError, StoreError
from recbole_prune.masking.allocate import select
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.schedule import kept_counts
from recbole_prune.masking.scope import Scope
from recbole_prune.pruners.learned_thresholds import SoftThresholds, soft_threshold, threshold_settings
from recbole_prune.run import mask_search
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.mask_search import MaskSearch
from recbole_prune.run.store import RunFolder
from recbole_prune.training import codec
from recbole_prune.training.optimizers import add_group
from recbole_prune.training.trainer import MaskAwareTrainer

GRANULARITIES = ("global", "column", "row", "entry")


# ---- the formula, and what moves a threshold (methods/more_methods.md, B3) -------------------------------------------


def test_soft_threshold_by_hand() -> None:
    values = torch.tensor([[0.9, -0.1], [0.5, -0.1], [0.3, 0.02], [-0.4, 0.05]])
    counts = torch.tensor([[False], [True], [True], [True]])
    found = soft_threshold(values, torch.tensor(-2.0), counts)
    expected = torch.tensor([[0.9, -0.1], [0.380797, 0], [0.180797, 0], [-0.280797, 0]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.tensor(-15.0).sigmoid().item() == pytest.approx(3.05902e-7, rel=1e-5)
    assert torch.tensor(-5.0).sigmoid().item() == pytest.approx(0.00669285, rel=1e-5)


def thresholds_moved(start: float, rate: float, decay: float, gradient: float, rows: int, steps: int) -> list[float]:
    """s after every step of Adam, where dL/dw of one live entry of v = 1 is ``gradient`` summed over ``rows``."""
    s, v, counts = nn.Parameter(torch.tensor(start)), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=0.5, weight_decay=0.3)
    add_group(optimizer, [s], threshold_settings(rate, decay, rows))
    moved = []
    for _ in range(steps):
        optimizer.zero_grad()
        (soft_threshold(v, s, counts).sum() * gradient / rows).backward()
        optimizer.step()
        moved.append(s.item())
    return moved


def steps_until_it_cuts(start: float, rate: float, decay: float, rows: int, at_most: int) -> int:
    """Steps after which decay alone has lifted s to -4.6, where sigmoid(s) = 0.01."""
    moved = thresholds_moved(start, rate, decay, 0.0, rows, at_most)
    return next(step for step, s in enumerate(moved, 1) if s >= -4.6)


@pytest.mark.parametrize("rows", [1, 2048])
def test_decay_alone_lifts_a_threshold_at_the_published_pace(rows: int) -> None:
    assert steps_until_it_cuts(-20.0, 1e-2, 0.1, rows, 2100) == pytest.approx(2065, abs=3)


def test_decay_alone_lifts_the_threshold_of_movielens() -> None:
    assert steps_until_it_cuts(-15.0, 1e-3, 1e-5, 1, 12000) == pytest.approx(11400, rel=0.01)


@pytest.mark.slow
def test_decay_alone_lifts_the_threshold_of_criteo_where_its_sigmoid_is_zero() -> None:
    assert torch.tensor(-150.0).sigmoid().item() == 0.0
    assert steps_until_it_cuts(-150.0, 1e-3, 1e-5, 1, 150000) == pytest.approx(148769, rel=0.01)


def test_without_decay_a_mean_of_small_gradients_moves_nothing() -> None:
    assert thresholds_moved(-15.0, 1e-3, 0.0, 1e-2 / 2048, 1, 500)[-1] == pytest.approx(-15, abs=0.02)


def test_a_threshold_settles_where_decay_and_loss_balance() -> None:
    # sign(v) dL/dw < 0 asks for a larger entry, which a lower threshold gives too
    s = thresholds_moved(-8.0, 1e-2, 1e-5, -1e-2, 1, 2000)[-1]
    assert s == pytest.approx(-5.24, abs=0.02)


# ---- the part beside autograd ----------------------------------------------------------------------------------------


class Chooser:
    """Stands for the pruner's selection and remembers the scores that it was given."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.scores: list[dict[str, torch.Tensor]] = []

    def __call__(self, scores: Any, keep: int) -> MaskSet:
        self.scores.append({name: score.clone() for name, score in scores.items()})
        return select(scores, MaskSet.dense(self.scope), keep, seed=3)


def part_of(scope: Scope, keeps: list[int], granularity: str, chooser: Any = None, **changes: float) -> SoftThresholds:
    values = {"start": -5.0, "rate": 0.05, "decay": 0.1, **changes}
    settings = threshold_settings(values["rate"], values["decay"], 64)
    chooser = chooser or Chooser(scope)
    return SoftThresholds(
        scope, keeps, chooser, granularity=granularity, start=values["start"], optimizer_settings=settings
    )


def trainer_of(bench: Bench, part: SoftThresholds, files: MemoryFiles | None = None, **session: Any) -> Any:
    """A trainer of the newly built model, with the part attached."""
    model = bench.model()
    part.attach(model)
    return bench.trainer(model, files, parts=(part,), **session)


class Thresholded(nn.Module):
    """A weight as torch computes it from v and s; autograd does the rest."""

    def __init__(self, s: nn.Parameter, counts: torch.Tensor) -> None:
        super().__init__()
        self._s = (s,)  # no parameter of the model
        self.counts = counts

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        return soft_threshold(v, self._s[0], self.counts)


def trained_by_autograd(bench: Bench, scope: Scope, granularity: str, epochs: int) -> tuple[Any, dict[str, Any]]:
    """The slow way: parametrized tables, one loop, one Adam with a group for s."""
    model = bench.plain_model()
    shapes = {"global": lambda t: (), "column": lambda t: (1, t.shape[1]), "row": lambda t: (t.shape[0], 1)}
    shared = nn.Parameter(torch.tensor(-5.0))
    modules = dict(model.named_modules())
    s = {}
    for target in scope:
        shape = shapes.get(granularity, lambda t: t.shape)(target)
        s[target.name] = shared if granularity == "global" else nn.Parameter(torch.full(shape, -5.0))
        made = Thresholded(s[target.name], target.countable().view(-1, 1))
        nn.utils.parametrize.register_parametrization(modules[target.name.rpartition(".")[0]], "weight", made)
    optimizer = torch.optim.Adam(model.parameters(), lr=bench.config["learning_rate"])
    optimizer.add_param_group({"params": list(dict.fromkeys(s.values())), **threshold_settings(0.05, 0.1, 64)})
    model.train()
    for _ in range(epochs):
        for batch in bench.train:
            optimizer.zero_grad()
            model.calculate_loss(batch).backward()
            optimizer.step()
    values = {name: modules[name.rpartition(".")[0]].parametrizations.weight.original.detach() for name in s}
    return values, {name: each.detach() for name, each in s.items()}


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_part_equals_autograd_through_parametrized_tables(granularity: str, tiny_data: Path) -> None:
    bench = Bench("BPR", tiny_data, epochs=2, train_batch_size=64, weight_decay=0.0)
    scope = bench.scope()
    values, thresholds = trained_by_autograd(bench, scope, granularity, 2)
    part = part_of(scope, [1], granularity)
    trainer = trainer_of(bench, part, fused=False)
    bench.fit(trainer)
    state, found = part.state(), part.parameters()
    for target in scope:
        name = target.name
        torch.testing.assert_close(state["values"][name], values[name], rtol=1e-4, atol=1e-6)
        mine = found["global" if granularity == "global" else name]
        torch.testing.assert_close(mine.detach(), thresholds[name], rtol=1e-4, atol=1e-5)
        worn = soft_threshold(state["values"][name], mine.detach(), target.countable().view(-1, 1))
        assert torch.equal(trainer.model.state_dict()[name], worn)
        assert not torch.equal(worn[1:], state["values"][name][1:])
        assert torch.equal(worn[0], state["values"][name][0])  # the padding row


def test_masks_are_taken_at_the_first_step_that_is_sparse_enough(tiny_data: Path) -> None:
    bench = Bench("BPR", tiny_data, epochs=8, train_batch_size=64)
    scope = bench.scope()
    keeps = kept_counts(scope.prunable, rate=0.4, rounds=3)[1:]
    chooser = Chooser(scope)
    part = part_of(scope, keeps, "entry", chooser)
    live: list[int] = []
    wear = part._wear
    part._wear = lambda: live.append(wear()) or live[-1]  # type: ignore[method-assign]
    bench.fit(trainer_of(bench, part))
    assert part.is_over and all(each.reached for each in part.found)
    for keep, each, scores in zip(keeps, part.found, chooser.scores):
        assert live[each.step] <= keep < live[each.step - 1]  # the first is before any step
        masks = MaskSet.from_bytes(each.masks, scope)
        assert masks.kept == keep
        for target in scope:
            rows = target.countable()
            assert bool(masks[target.name][rows][scores[target.name][rows] > 0].all())
    per_epoch = len(bench.train)
    assert [each.epoch for each in part.found] == [(each.step - 1) // per_epoch + 1 for each in part.found]


def test_one_threshold_for_all_is_magnitude_pruning_of_that_step(tiny_data: Path) -> None:
    bench = Bench("BPR", tiny_data, epochs=8, train_batch_size=64)
    scope = bench.scope()
    taken: list[tuple[MaskSet, MaskSet]] = []

    def both(scores: Any, keep: int) -> MaskSet:
        magnitudes = {name: values.abs() for name, values in part.state()["values"].items()}
        by_score, by_magnitude = (select(each, MaskSet.dense(scope), keep) for each in (scores, magnitudes))
        taken.append((by_score, by_magnitude))
        return by_score

    part = part_of(scope, [scope.prunable // 2, scope.prunable // 5], "global", both)
    bench.fit(trainer_of(bench, part))
    assert len(taken) == 2 and all(one.equals(other) for one, other in taken)


def test_rows_that_must_not_be_empty_keep_their_largest_entry(tiny_data: Path) -> None:
    bench = Bench("BPR", tiny_data, epochs=3, train_batch_size=64)
    scope = bench.scope()
    name = "item_embedding.weight"
    part = part_of(scope, [1], "entry", start=2.0)  # a threshold far above every weight
    part._without_empty_rows = [name]
    bench.fit(trainer_of(bench, part))
    values, worn = part.state()["values"], part._weights
    assert not worn["user_embedding.weight"][1:].any()
    assert torch.equal((worn[name][1:] != 0).sum(1), torch.ones(scope[name].rows, dtype=torch.long))
    largest = values[name].abs().max(1).values
    assert torch.equal(worn[name][1:].abs().max(1).values, largest[1:])


def test_a_step_that_is_left_out_changes_nothing(tiny_data: Path) -> None:
    bench = Bench("BPR", tiny_data, epochs=1, train_batch_size=64)
    part = part_of(bench.scope(), [1], "entry")
    trainer = trainer_of(bench, part)
    bench.fit(trainer)
    worn = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    part.before_step(trainer)
    assert any(not torch.equal(value, worn[name]) for name, value in trainer.model.state_dict().items())
    part.step_left_out()
    assert all(torch.equal(value, worn[name]) for name, value in trainer.model.state_dict().items())


def test_resumed_between_two_epochs_equals_uninterrupted(tiny_data: Path) -> None:
    bench, files = Bench("BPR", tiny_data, epochs=4, train_batch_size=64), MemoryFiles()
    scope = bench.scope()
    keeps = kept_counts(scope.prunable, rate=0.4, rounds=3)[1:]
    whole = part_of(scope, keeps, "row")
    bench.fit(trainer_of(bench, whole, files))
    for epoch, (state, checkpoint) in files.states.items():
        again = part_of(scope, keeps, "row")
        trainer = trainer_of(bench, again, MemoryFiles(checkpoint), start=codec.decode(state))
        trainer.start_epoch = epoch
        bench.fit(trainer)
        assert again.found == whole.found
        for name, values in whole.state()["values"].items():
            assert torch.equal(again.state()["values"][name], values)


# ---- whole runs ------------------------------------------------------------------------------------------------------


def settings_of(data: Path, **changes: Any) -> dict[str, Any]:
    values = {"pruner": "pep", "epochs": 3, "prune_rate": 0.4, "prune_rounds": 2, "prune_pep_learning_rate": 0.3}
    return {**config_for("BPR", data), **values, **changes}


def run(data: Path, **changes: Any) -> tuple[dict[str, Any], Experiment]:
    settings = settings_of(data, **changes)
    result = run_recbole_prune(model="BPR", dataset=DATASET, config_dict=settings)
    return result, experiment_of(result, "BPR", settings)


def test_every_ticket_says_what_the_one_search_took(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[tuple[float, bool]] = []
    find = MaskSearch.find

    def seen(self: MaskSearch) -> Any:
        decays = [group["weight_decay"] for group in self.trainer.optimizer.param_groups]
        searches.append((decays[0], decays[1] > 0))
        return find(self)

    monkeypatch.setattr(MaskSearch, "find", seen)
    result, experiment = run(tiny_data, weight_decay=0.01, prune_pep_decay=0.1, train_batch_size=64)
    assert searches == [(0.0, True)]  # one for all tickets, in which only thresholds decay
    found = [record["search"] for record in result["tickets"][1:]]
    assert [each["reached"] for each in found] == [True, True]
    assert found[0]["step"] <= found[1]["step"] and found[0]["epochs"] == found[1]["epochs"] == found[1]["epoch"]
    file = json.loads((experiment.folder.path / "search.json").read_text(encoding="utf-8"))
    for record, line in zip(result["tickets"][1:], file["tickets"]):
        assert (line["mask_file"], line["mask_sha256"]) == (record["mask_file"], record["mask_sha256"])
        assert record["search_seconds"] == file["train_seconds"] > 0
    assert not (experiment.folder.path / "resume").exists()


def test_sizes_that_were_not_reached_are_met_all_the_same(tiny_data: Path) -> None:
    result, experiment = run(tiny_data, prune_pep_learning_rate=1e-4)
    counts = kept_counts(experiment.scope.prunable, rate=0.4, rounds=2)
    for record, keep in zip(result["tickets"][1:], counts[1:]):
        assert record["kept"] == keep
        assert (record["search"]["reached"], record["search"]["epoch"]) == (False, 3)


def test_without_a_learning_rate_decay_reaches_a_hundredth_in_a_third(tiny_data: Path) -> None:
    from recbole_prune.pruners import get_pruner

    _, experiment = run(tiny_data, prune_pep_learning_rate=None)
    rate = get_pruner("pep")(experiment).learning_rate  # type: ignore[attr-defined]
    steps = experiment.workshop.steps_per_epoch * 3
    assert torch.tensor(-8 + rate * steps / 3).sigmoid().item() == pytest.approx(0.01, rel=1e-3)


def moments(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have the process killed at one of the moments of a search."""
    if name == "in an epoch":
        train = MaskAwareTrainer._train_epoch

        def dies(trainer: Any, data: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
            result = train(trainer, data, epoch, *args, **kwargs)
            if trainer.session.name == "the search for masks" and epoch == 1:
                raise Killed
            return result

        monkeypatch.setattr(MaskAwareTrainer, "_train_epoch", dies)
    elif name == "before it is written":
        monkeypatch.setattr(mask_search, "_write", kill)
    elif name == "once it is written":
        drop = RunFolder.drop_resume

        def dies_then(folder: RunFolder) -> None:
            if folder.has("search.json"):
                raise Killed
            drop(folder)

        monkeypatch.setattr(RunFolder, "drop_resume", dies_then)


@pytest.mark.parametrize("moment", ["in an epoch", "before it is written", "once it is written"])
def test_killed_in_the_search_ends_equal(
    moment: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"prune_pep_learning_rate": 0.05, "prune_rounds": 1}
    whole, _ = run(tiny_data, **changes, output_dir=str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        moments(patch, moment)
        with pytest.raises(Killed):
            run(tiny_data, **changes, output_dir=str(tmp_path / "killed"))
    again, _ = run(tiny_data, **changes, output_dir=str(tmp_path / "killed"))
    assert list(map(without_clocks, again["tickets"])) == list(map(without_clocks, whole["tickets"]))
    files = [Path(each["folder"]) / "masks" / "ticket-001.safetensors" for each in (whole, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_damaged_search_is_said_and_a_missing_one_made_again(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, experiment = run(tiny_data)
    folder = experiment.folder.path
    lines = (folder / "tickets.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "tickets.jsonl").write_bytes(b"".join(lines[:2]))  # as if ticket 2 were still to come
    good = (folder / "search.json").read_bytes()
    (folder / "search.json").write_bytes(good.replace(b'"step": ', b'"step":  '))
    with pytest.raises(StoreError, match=r"search\.json is damaged"):
        run(tiny_data)
    (folder / "search.json").unlink()
    again, _ = run(tiny_data)
    assert list(map(without_clocks, again["tickets"])) == list(map(without_clocks, whole["tickets"]))


def test_a_teacher_teaches_the_search_too(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[list[str]] = []
    find = MaskSearch.find

    def seen(self: MaskSearch) -> Any:
        names.append([part.name for part in self.parts])
        groups = self.trainer.optimizer.param_groups
        assert len(groups) == 3 and groups[1]["lr"] == 0.3 and groups[2]["lr"] == groups[0]["lr"]
        return find(self)

    monkeypatch.setattr(MaskSearch, "find", seen)
    taught = {"distiller": "hint", "distill_teacher_model": "BPR", "distill_alone": False}
    result, _ = run(tiny_data, **taught, distill_teacher_settings={"embedding_size": 16, "epochs": 1})
    assert names == [["soft_thresholds", "distiller"]]
    assert all("teacher" in record for record in result["tickets"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner": "sgd"}, "learner=sgd is not allowed with --pruner=pep"),
        ({"prune_pep_learning_rate": None, "prune_pep_start": -2.0}, "prune_pep_start=-2.0 is a threshold of 0.119"),
        ({"prune_pep_start": 0.0}, "prune_pep_start=0.0 is not allowed"),
        ({"prune_pep_scope": "table"}, "prune_pep_scope=table is not allowed"),
        ({"prune_pep_decay": -1.0}, "prune_pep_decay=-1.0 is not allowed"),
        ({"prune_pep_learning_rate": 0.0}, "prune_pep_learning_rate=0.0 is not allowed"),
    ],
)
def test_bad_settings_are_refused_before_training(changes: dict[str, Any], message: str, tiny_data: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        run(tiny_data, **changes)
    assert message in str(refused.value)
