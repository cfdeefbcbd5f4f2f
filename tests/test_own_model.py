"""A model class of the user's own, given as RecBole's ``Config(model=MyModel)`` takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from own_models import BPR, Biased, Deeper
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
from zoo import DATASET, config_for

from recbole_prune import PruneConfig, load_ticket, run_recbole_prune
from recbole_prune.artifact import read_artifact
from recbole_prune.cli import main
from recbole_prune.errors import ArtifactError, ConfigError
from recbole_prune.training.trainer import MaskAwareTrainer

LAYERS = {"n_layers": 2, "reg_weight": 1e-5, "bias_strength": 0.5}  # a class of one's own has no property file
MODELS = [Biased, BPR, Deeper]


def settings_of(data: Path, **changes: Any) -> dict[str, Any]:
    """For any general model."""
    return {**config_for("BPR", data), "embedding_size": 16, "epochs": 2, **LAYERS, **changes}


def run(model: Any, data: Path, **changes: Any) -> dict[str, Any]:
    pruned = {"pruner": "imp", "prune_rate": 0.4, "prune_rounds": 1}
    return run_recbole_prune(model, DATASET, config_dict=settings_of(data, **pruned, **changes))


def plain_recbole(model: Any, settings: dict[str, Any]) -> tuple[Any, Any]:
    """As RecBole's documentation runs a new model."""
    config = Config(model=model, dataset=DATASET, config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model(config, train._dataset))
    _, best = trainer.fit(train, valid, saved=True, show_progress=False)
    return best, trainer.evaluate(test)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_its_dense_run_equals_plain_recbole(model: Any, tiny_data: Path, tmp_path: Path) -> None:
    settings = settings_of(tiny_data, checkpoint_dir=str(tmp_path / "saved"))
    valid, test = plain_recbole(model, settings)
    result = run_recbole_prune(model, DATASET, config_dict={**settings, "pruner": "none", "prune_fused": False})
    assert result["best_valid_result"] == {name: float(value) for name, value in valid.items()}
    assert result["test_result"] == {name: float(value) for name, value in test.items()}


@pytest.mark.parametrize("model", slow_but([Biased], MODELS))
def test_its_artifact_comes_back(model: Any, tiny_data: Path) -> None:
    result = run(model, tiny_data)
    found = load_ticket(result["artifact"], model=model)
    assert type(found) is model
    state = read_artifact(result["artifact"]).state()
    for name, weight in found.state_dict().items():
        assert torch.equal(weight, torch.from_numpy(state[name])), name
    with pytest.raises(ArtifactError, match=rf"model={model.__name__}"):
        load_ticket(result["artifact"])
    with pytest.raises(ArtifactError, match=f"{model.__name__}, not NeuMF"):
        load_ticket(result["artifact"], model="NeuMF")


@pytest.mark.slow
def test_it_resumes_and_a_finished_run_trains_nothing(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.session.name == "ticket 1" and args[1] == 1:
            raise KeyboardInterrupt
        return train(self, *args, **kwargs)

    whole = run(Biased, tiny_data, output_dir="whole")
    train = MaskAwareTrainer._train_epoch
    with monkeypatch.context() as patch:
        patch.setattr(MaskAwareTrainer, "_train_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(Biased, tiny_data)
    resumed = run(Biased, tiny_data)
    monkeypatch.setattr(MaskAwareTrainer, "_train_epoch", lambda *_, **__: pytest.fail("training began"))
    assert run(Biased, tiny_data)["chosen"] == resumed["chosen"]
    assert len(whole["tickets"]) == len(resumed["tickets"]) > 1
    for one, other in zip(whole["tickets"], resumed["tickets"]):
        assert (one["mask_sha256"], one["valid"], one["test"]) == (other["mask_sha256"], other["valid"], other["test"])


@pytest.mark.slow
def test_a_class_named_like_a_model_of_recboles_is_another_run(tiny_data: Path) -> None:
    own, stock = run(BPR, tiny_data), run("BPR", tiny_data)
    assert own["folder"] != stock["folder"] and own["best_valid_result"] != stock["best_valid_result"]
    assert type(load_ticket(stock["artifact"])) is get_model("BPR")


def test_a_class_is_known_by_its_source_and_not_by_its_name(tiny_data: Path, tmp_path: Path) -> None:
    def hash_of(model: Any) -> str:
        return PruneConfig(model, DATASET, config_dict=settings_of(tiny_data)).run_hash

    def other_biased() -> type:
        class Biased(BPR):
            pass

        return Biased

    assert hash_of(Biased) == hash_of(Biased) != hash_of(other_biased()) == hash_of(other_biased())
    assert hash_of(get_model("BPR")) == hash_of("BPR") != hash_of(BPR)


@pytest.mark.slow
def test_a_class_that_no_other_process_could_import_is_taken(tiny_data: Path) -> None:
    class Local(Biased):
        pass

    result = run(Local, tiny_data)
    checkpoint = torch.load(Path(result["folder"], result["chosen"]["checkpoint_file"]), weights_only=False)
    assert checkpoint["config"]["model"] == "Local"
    assert type(load_ticket(result["artifact"], model=Local)) is Local


@pytest.mark.slow
def test_commands_say_that_they_lack_the_class(tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(BPR, tiny_data)
    assert main(["export", f"--run={result['folder']}"]) == 2
    assert "export_ticket" in capsys.readouterr().err
    again = run(BPR, tiny_data, export_ticket=0)
    assert read_artifact(again["artifact"]).info["ticket"] == 0


@pytest.mark.parametrize("wrong", [5, object])
def test_what_is_no_model_class_is_refused(wrong: Any, tiny_data: Path) -> None:
    with pytest.raises(ConfigError):
        run(wrong, tiny_data)
