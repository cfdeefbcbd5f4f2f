"""What is particular to single pruners; what every one owes is in ``conformance.py``."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from marks import slow_but
from torch import nn
from training_bench import experiment_of
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.masking.scope import Scope, Target
from recbole_prune.pruners import PRUNERS, get_pruner
from recbole_prune.pruners.smaller_tables import map_tables
from recbole_prune.run.experiment import Experiment
from recbole_prune.run.store import REWIND
from recbole_prune.run.ticket import REWINDS
from recbole_prune.run.ticket_training import TicketTraining
from recbole_prune.training import codec


def run(data: Path, model: str = "BPR", **changes: Any) -> tuple[dict[str, Any], Experiment]:
    settings = {**config_for(model, data), "epochs": 2, "prune_rate": 0.4, "prune_rounds": 2, **changes}
    if changes.get("prune_target_sparsity"):
        settings = {key: value for key, value in settings.items() if key not in ("prune_rate", "prune_rounds")}
        settings.update({key: changes[key] for key in ("prune_rate", "prune_rounds") if key in changes})
    result = run_recbole_prune(model=model, dataset=DATASET, config_dict=settings)
    return result, experiment_of(result, model, settings)


def test_target_is_met_exactly(tiny_data: Path) -> None:
    result, _ = run(tiny_data, pruner="imp", prune_target_sparsity=0.75, prune_rounds=2)
    last = result["tickets"][-1]
    assert last["kept"] == last["prunable"] - (3 * last["prunable"]) // 4
    assert result["chosen"]["ticket"] == 2


@pytest.mark.parametrize("storage", slow_but(["compact"], ["compact", "masked"]))
@pytest.mark.parametrize("rewind", slow_but(["init", "late"], REWINDS))
def test_rewinds_start_where_they_say(
    rewind: str, storage: str, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that a ticket's training starts from, pruned entries aside."""
    starts: dict[int, dict[str, torch.Tensor]] = {}
    train = TicketTraining.run

    def spy(self: TicketTraining) -> Any:
        starts[self.plan.ticket] = {name: value.clone() for name, value in self.trainer.model.state_dict().items()}
        return train(self)

    monkeypatch.setattr(TicketTraining, "run", spy)
    extra = {"prune_rewind_epoch": 1} if rewind == "late" else {}
    schedule = {"prune_lr_schedule": "linear"} if rewind == "lr" else {}
    result, experiment = run(tiny_data, pruner="imp", prune_rewind=rewind, prune_storage=storage, **extra, **schedule)
    masks = experiment.masks_of(experiment.tickets[1])
    dense_best = experiment.weights_of(experiment.tickets[0])
    for name, mask in masks.items():
        start = starts[1][name]
        assert not start[~mask].any()
        assert torch.equal(start, starts[0][name] * mask) == (rewind == "init")
        assert torch.equal(start, dense_best[name] * mask) == (rewind in ("lr", "none"))
    if rewind == "late":
        rewound = codec.decode((experiment.folder.path / REWIND).read_bytes())["weights"]
        assert all(torch.equal(starts[1][name], rewound[name] * mask) for name, mask in masks.items())
        assert result["tickets"][1]["epochs"] == 1
    if rewind == "reinit":
        assert not torch.equal(starts[1]["item_embedding.weight"], starts[2]["item_embedding.weight"])


def test_first_imp_mask_equals_the_omp_mask(tiny_data: Path) -> None:
    _, imp = run(tiny_data, pruner="imp")
    _, omp = run(tiny_data, pruner="omp")
    assert omp.tickets[0].method["adopted_from"].startswith("imp-")  # the dense training is shared
    assert imp.masks_of(imp.tickets[1]).equals(omp.masks_of(omp.tickets[1]))
    assert imp.tickets[1].valid == omp.tickets[1].valid


def test_magprune_searches_the_minimum_on_validation(tiny_data: Path) -> None:
    result, experiment = run(tiny_data, pruner="magprune", epochs=5)
    for record in result["tickets"][1:]:
        scores = dict(map(tuple, record["searched"]))
        assert record["epochs"] == 0 and record["train_seconds"] == 0
        assert scores[record["min_per_row"]] == max(scores.values()) == pytest.approx(record["valid_score"])
        masks = experiment.masks_of(experiment.tickets[record["ticket"]])
        assert all(int(masks.per_row(name).min()) >= record["min_per_row"] for name in masks)


def test_small_dense_has_at_least_the_bytes_of_the_ticket(tiny_data: Path) -> None:
    from recbole_prune.masking.bound import information_bound_bits

    result, experiment = run(tiny_data, pruner="small_dense")
    for record in result["tickets"][1:]:
        bound = information_bound_bits(record["prunable"], record["equal_to_kept"], 32)
        assert (
            32 * record["kept"] >= bound > 32 * (record["kept"] - record["kept"] // record["changes"]["embedding_size"])
        )
        weights = experiment.weights_of(experiment.tickets[record["ticket"]])
        assert weights["user_embedding.weight"].shape[1] == record["changes"]["embedding_size"]


def test_lcm_tables_are_affine_maps_of_the_dense_ones(tiny_data: Path) -> None:
    result, experiment = run(tiny_data, pruner="lcm")
    teacher = experiment.weights_of(experiment.tickets[0])["item_embedding.weight"].double()
    student = experiment.weights_of(experiment.tickets[1])["item_embedding.weight"].double()
    wide = torch.cat([teacher, torch.ones(len(teacher), 1)], dim=1).double()
    solution = torch.linalg.lstsq(wide, student).solution
    assert torch.allclose(wide @ solution, student, atol=1e-5)
    assert student.shape[1] < teacher.shape[1]


class TwoNames(nn.Module):
    """A model with one table under two names, as FFM has."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3, padding_idx=0)
        self.groups = nn.ModuleList([nn.ModuleList([self.table])])


def test_a_mapped_table_is_saved_and_pickled_as_a_plain_one() -> None:
    """Under each of its names; some checkpoints hold whole modules (SASRecF)."""
    model, names = TwoNames(), {"table.weight", "groups.0.0.weight"}
    map_tables(model, {"table.weight": torch.randn(5, 6)})
    table = model.table(torch.arange(5)).detach()
    state = model.state_dict()
    assert set(state) == names and all(torch.equal(state[name], table) for name in names)
    loaded = pickle.loads(pickle.dumps(model.groups))[0][0]
    assert type(loaded) is nn.Embedding and loaded.padding_idx == 0 and torch.equal(loaded.weight, table)
    plain = TwoNames()
    plain.load_state_dict(state)
    assert torch.equal(plain.table.weight, table)
    model.load_state_dict(state)
    assert type(model.table) is nn.Embedding and torch.equal(model.table.weight, table)


@pytest.mark.slow
def test_stop_below_ends_the_search(tiny_data: Path) -> None:
    result, _ = run(tiny_data, pruner="imp", prune_rounds=6, prune_rate=0.6, prune_stop_below=1.0, epochs=4)
    scores = [t["valid_score"] for t in result["tickets"]]
    assert all(score >= scores[0] for score in scores[1:-1])
    assert len(scores) == 7 or scores[-1] < scores[0]


def test_official_rule_counts(tiny_data: Path) -> None:
    result, _ = run(tiny_data, pruner="imp", prune_parity="official")
    tickets = result["tickets"]
    for before, after in zip(tickets, tickets[1:]):
        assert after["kept"] == before["kept"] - int(0.4 * before["kept"]) - 1


@pytest.mark.parametrize(
    ("pruner", "expected"),
    [
        ("imp", [2_007_820, 1_626_333, 777_868, 105_074]),
        ("omp", [2_007_820, 1_626_334, 777_870, 105_078]),
        ("random", [2_007_821, 1_626_335, 777_871, 105_079]),
    ],
)
def test_official_counts_of_the_paper(pruner: str, expected: list[int]) -> None:
    """Tickets 1, 3, 10 and 29 of Yelp2018 with 32 dimensions (methods/lottery_ticket.md, section 6)."""
    tables = (Target("user", "embedding", (31_668, 32)), Target("item", "embedding", (38_048, 32)))
    settings = SimpleNamespace(
        prune_rate=0.1, prune_rounds=29, prune_target_sparsity=None, prune_parity="official", explicit=frozenset()
    )
    experiment: Any = SimpleNamespace(settings=settings, scope=Scope(tables))
    counts = get_pruner(pruner)(experiment).counts()
    assert [counts[number] for number in (1, 3, 10, 29)] == expected


def test_tensor_allocation_gives_every_table_the_same_sparsity(tiny_data: Path) -> None:
    _, experiment = run(tiny_data, pruner="imp", prune_allocation="tensor")
    masks = experiment.masks_of(experiment.tickets[2])
    for target in experiment.scope:
        kept = int(masks.per_row(target.name).sum())
        assert abs(kept / target.prunable - masks.kept / masks.prunable) < 1 / target.prunable + 1e-9


def test_pruner_table_and_property_files_agree() -> None:
    from recbole_prune.config.paths import property_names

    assert sorted(PRUNERS) == property_names("pruner")


@pytest.mark.slow
def test_two_runs_of_a_baseline_stand_in_each_others_table(tiny_data: Path) -> None:
    run(tiny_data, pruner="random")
    table = run(tiny_data, pruner="imp")[0]["table"]
    assert sum(line.strip().startswith("random") for line in table.splitlines()) == 2
