"""Structured pruning: which units go, on what tensors it trains, what plain RecBole makes of its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from own_models import BPR, Gated, Normed
from recbole.config import Config
from recbole.utils import get_model, get_trainer
from training_bench import Bench
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.anatomy.units.groups import Along, Anatomy, UnitGroup
from recbole_prune.errors import ConfigError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scope import Scope, Target
from recbole_prune.masking.unit_masks import all_units, units_of
from recbole_prune.masking.unit_selection import group_scores, most_removed, select_units, units_removed

W1 = torch.tensor([[1.0, 2.0], [0.5, 0.0], [0.0, 3.0]])
W2 = torch.tensor([[2.0, 0.1, 0.2]])
NEURONS = UnitGroup("hidden", "neuron", 3, (Along("w1"), Along("w2", 1)))
SCOPE = Scope((Target("w1", "linear", (3, 2)), Target("w2", "linear", (1, 3))))


def run(tiny_data: Path, model: str = "BPR", **settings: Any) -> dict[str, Any]:
    return run_recbole_prune(
        model=model,
        dataset=DATASET,
        config_dict={**config_for(model, tiny_data), "pruner": "structured", "prune_rounds": 2, **settings},
    )


def groups_of(*sizes: int, kind: str = "neuron", **more: Any) -> list[UnitGroup]:
    return [UnitGroup(f"g{i}", kind, size, (Along(f"w{i}"),), **more) for i, size in enumerate(sizes)]


def everything(groups: list[UnitGroup]) -> dict[str, torch.Tensor]:
    return all_units(Anatomy(groups))


def test_oracle_of_a_group_score() -> None:
    """Method file, oracle 6: sums over both sides, divided by the members and by the group's mean."""
    entries = {"w1": W1.square(), "w2": W2.square()}
    scores = group_scores(entries, [NEURONS], SCOPE, {"hidden": torch.arange(3)})["hidden"]
    assert scores.tolist() == pytest.approx([1.475410, 0.042623, 1.481967], abs=1e-6)
    kept = select_units({"hidden": scores}, [NEURONS], {"hidden": torch.arange(3)}, 2)
    assert kept["hidden"].tolist() == [2]


def test_padding_rows_score_nothing() -> None:
    """The random values of row 0 say nothing about a dimension."""
    table = Target("table", "embedding", (3, 2), padding_rows=(0,))
    group = UnitGroup("width", "embedding", 2, (Along("table", 1),))
    entries = {"table": torch.tensor([[100.0, 0.0], [1.0, 2.0], [1.0, 4.0]])}
    scores = group_scores(entries, [group], Scope((table,)), {"width": torch.arange(2)})["width"]
    assert scores.tolist() == pytest.approx([2 / 4, 6 / 4])
    live = torch.tensor([[True, True], [True, False], [True, False]])
    assert units_of(Anatomy([group]), MaskSet(Scope((table,)), {"table": live}))["width"].tolist() == [0]


def test_oracle_of_the_schedule() -> None:
    """Method file, P8 and oracle 7: floor(share * units + 0.5), whatever the number of units."""
    additive = [0.1 * k for k in range(7)]
    assert units_removed(additive, 10) == [0, 1, 2, 3, 4, 5, 6]
    assert units_removed(additive, 64)[-1] == 38
    assert units_removed([0.5], 3) == [2]


def test_groups_of_a_kind_are_ranked_together() -> None:
    """The lowest scores go wherever they are; no layer loses more than its share, and none all."""
    groups = groups_of(4, 4)
    scores = {"g0": torch.tensor([0.1, 0.2, 0.3, 0.4]), "g1": torch.tensor([5.0, 6.0, 0.05, 8.0])}
    kept = select_units(scores, groups, everything(groups), 4)
    assert [kept[g].tolist() for g in ("g0", "g1")] == [[3], [0, 1, 3]]
    assert most_removed(groups, 0.5) == 4
    kept = select_units(scores, groups, everything(groups), 4, share=0.5)
    assert [kept[g].tolist() for g in ("g0", "g1")] == [[2, 3], [1, 3]]


def test_chunks_lose_alike() -> None:
    """Rule R6: one of every chunk at a time, and a step that does not fit any more is not taken."""
    groups = groups_of(6, chunks=2)
    scores = {"g0": torch.tensor([0.1, 0.2, 9.0, 8.0, 0.3, 0.4])}
    assert select_units(scores, groups, everything(groups), 3)["g0"].tolist() == [1, 2, 3, 5]


def test_groups_that_are_alike_lose_as_many() -> None:
    """Rule R6: the same number, not the same units."""
    groups = groups_of(3, 3, alike="ab")
    scores = {"g0": torch.tensor([1.0, 2.0, 3.0]), "g1": torch.tensor([3.0, 2.0, 1.0])}
    kept = select_units(scores, groups, everything(groups), 2)
    assert [kept[g].tolist() for g in ("g0", "g1")] == [[1, 2], [0, 1]]


def test_multiples_stay() -> None:
    """``prune_round_to``: units come back until their number divides."""
    groups = groups_of(8)
    scores = {"g0": torch.arange(8.0)}
    assert select_units(scores, groups, everything(groups), 3, multiple=4)["g0"].tolist() == list(range(8))
    assert select_units(scores, groups, everything(groups), 5, multiple=4)["g0"].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("model", slow_but(["BPR"], ["BPR", "NeuMF", "GRU4Rec", "MultiVAE", "ConvNCF"]))
def test_shrunk_training_is_masked_training(model: str, tiny_data: Path) -> None:
    """On small tensors a ticket learns what it learns under masks, up to rounding (dropout draws other units)."""
    still = {"dropout_prob": 0.0} if model in ("NeuMF", "GRU4Rec", "MultiVAE", "ConvNCF") else {}
    results = [
        run(tiny_data, model, prune_storage=storage, output_dir=str(tiny_data.parent / f"{model}-{storage}"), **still)
        for storage in ("auto", "masked")
    ]
    for shrunk, masked in zip(*(result["tickets"] for result in results)):
        assert shrunk["kept"] == masked["kept"]
        assert shrunk["valid_score"] == pytest.approx(masked["valid_score"], abs=2e-3)


@pytest.mark.parametrize("score", ["l1", "taylor", "random"])
def test_every_score_finds_units(score: str, tiny_data: Path, tmp_path: Path) -> None:
    """Other scores keep as many, and the schedule of a level's own epochs holds."""
    result = run(tiny_data, prune_score=score, prune_round_epochs=1, prune_rounds=1, output_dir=str(tmp_path))
    assert result["tickets"][1]["epochs"] == 1 and result["tickets"][1]["units"]["width"][0] == 13
    live = result["tickets"][1]["measured"]
    assert live["live_parameters"] < live["parameters"]
    assert live["bytes_by_format"]["dense"] == 4 * live["live_parameters"]


def test_units_in_the_journal(tiny_data: Path, tmp_path: Path) -> None:
    """Every ticket says how many units each group has left; masks are nested and zero on whole columns."""
    result = run(tiny_data, prune_target_sparsity=0.5, output_dir=str(tmp_path))
    left = [ticket["units"]["width"] for ticket in result["tickets"][1:]]
    assert left == [[11, 16], [8, 16]]
    assert result["tickets"][2]["sparsity"] == pytest.approx(0.5)


def test_recbole_trains_the_smaller_class_on(tiny_data: Path, tmp_path: Path) -> None:
    """The second checkpoint is one of plain RecBole's with smaller settings: equal scores, and it learns on."""
    result = run(tiny_data, prune_target_sparsity=0.5, output_dir=str(tmp_path), metric_decimal_place=6)
    ticket = result["tickets"][2]
    assert ticket["smaller"]["settings"] == {"embedding_size": 8}
    file = next(tmp_path.rglob(Path(ticket["smaller"]["checkpoint_file"]).name))
    settings = {**config_for("BPR", tiny_data), **ticket["smaller"]["settings"], "metric_decimal_place": 6, "epochs": 4}
    bench = Bench("BPR", tiny_data, **ticket["smaller"]["settings"], metric_decimal_place=6)
    config = Config("BPR", DATASET, config_dict={**settings, "checkpoint_dir": str(tmp_path)})
    model = get_model("BPR")(config, bench.train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "BPR")(config, model)
    tested = trainer.evaluate(bench.test, load_best_model=True, model_file=str(file), show_progress=False)
    assert dict(tested) == pytest.approx(ticket["test"], abs=1e-6)
    trainer.resume_checkpoint(str(file))
    before = model.user_embedding.weight.detach().clone()
    trainer.fit(bench.train, bench.valid, show_progress=False)
    assert not torch.equal(before, model.user_embedding.weight)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("BPR", {"prune_units": ["neuron"]}, "BPR has no neuron units to remove; it has embedding"),
        ("BPR", {"prune_target_sparsity": 0.95}, "only 14 can go"),
        ("BPR", {"prune_rate": 0.01}, "no unit more than ticket 0"),
        ("BPR", {"prune_round_to": 16}, "no unit more than ticket 0"),
        ("LR", {}, "LR has no units to remove"),
    ],
)
def test_bad_input(model: str, settings: dict[str, Any], message: str, tiny_data: Path, tmp_path: Path) -> None:
    """One message before any training."""
    with pytest.raises(ConfigError, match=message):
        run(tiny_data, model, output_dir=str(tmp_path), **settings)
    assert not list(tmp_path.rglob("tickets.jsonl"))


def test_a_class_of_ones_own_is_tried_before_any_training(tiny_data: Path, tmp_path: Path) -> None:
    """It may add to what is known of the class that it inherits from: what does not fit any more is refused."""
    fits = run_own(BPR, tiny_data, tmp_path)
    assert fits["tickets"][-1]["units"]["width"][0] < 16
    for model in (Gated, Normed):
        with pytest.raises(ConfigError, match=f"{model.__name__} has no units that can be taken out"):
            run_own(model, tiny_data, tmp_path / model.__name__)
        assert not list((tmp_path / model.__name__).rglob("tickets.jsonl"))


def run_own(model: Any, tiny_data: Path, output: Path) -> dict[str, Any]:
    settings = {**config_for("BPR", tiny_data), "pruner": "structured", "prune_rounds": 1, "output_dir": str(output)}
    return run_recbole_prune(model, DATASET, config_dict=settings)
