"""Export of real RecBole models and what comes back from it."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from marks import slow_but
from recbole.data import create_dataset
from recbole.utils import get_model
from test_artifact import reseal, snapshot
from zoo import DATASET, config_for

from recbole_prune.anatomy.caches import refresh
from recbole_prune.artifact import read_artifact, vectors
from recbole_prune.artifact.encoding import EncodedTensor, encode
from recbole_prune.artifact.export import export_ticket, seen_by_users
from recbole_prune.bench.plain import PlainData
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.data.random_streams import preserved_random_streams
from recbole_prune.errors import ArtifactError, ConfigError
from recbole_prune.run.rebuild import load_ticket
from recbole_prune.run.workshop import Workshop
from recbole_prune.scoring.probe import Probe, disagreement, effect, undisturbed
from recbole_prune.serving import Recommender


class Built:
    """A RecBole model with random masks on its weight matrices, and what export needs beside it."""

    def __init__(self, model: Any, dataset: str = "ml-100k", sparsity: float = 0.9, **settings: Any) -> None:
        name = model if isinstance(model, str) else "BPR"
        self.config = PruneConfig(model=name, dataset=dataset, config_dict={"gpu_id": "", **settings})
        self.seen = seen_by_users(create_dataset(self.config), self.config)
        plain = PlainData(self.config)
        self.dataset = plain.dataset
        self.model = plain.build_model(None if isinstance(model, str) else model)
        generator = torch.Generator().manual_seed(5)
        self.masks = {}
        for parameter_name, parameter in self.model.named_parameters():
            if parameter.dim() > 1:
                mask = torch.rand(parameter.shape, generator=generator) >= sparsity
                parameter.data.mul_(mask)
                self.masks[parameter_name] = mask

    def export(self, folder: Path, **changes: Any) -> dict[str, Any]:
        """Export with everything as it belongs, but for ``changes``."""
        facts = {"model": self.config["model"], "dataset": self.config["dataset"], "kept": np.int64(3)}
        arguments = {
            "model": self.model,
            "masks": self.masks,
            "config": self.config,
            "dataset": self.dataset,
            "seen": self.seen,
            "info": {**facts, "settings": self.config.plain_settings(), "valid": {"ndcg@10": float("nan")}},
        }
        return export_ticket(folder, **{**arguments, **changes})

    def scores(self, model: Any = None) -> np.ndarray:
        """Scores of the probe, computed anew from the weights."""
        model = model or self.model
        with undisturbed(model):
            refresh(model)
            return Probe(model, self.config, self.dataset).scores(model)


@pytest.fixture(scope="module")
def bpr() -> Built:
    return Built("BPR")


@pytest.fixture(scope="module")
def lightgcn() -> Built:
    return Built("LightGCN")


def tiny(model: str, tiny_data: Path, **changes: Any) -> Built:
    return Built(model, DATASET, 0.5, **{**config_for(model, tiny_data), **changes})


def interactions_of(config: Any) -> dict[str, set[str]]:
    """What each user consumed, read from the atomic file without RecBole."""
    file = Path(config["data_path"], f"{config['dataset']}.inter")
    table = pd.read_csv(file, sep="\t", dtype=str)
    return table.groupby("user_id:token")["item_id:token"].apply(set).to_dict()


def top(scores: np.ndarray, excluded: set[int], k: int) -> list[int]:
    order = [item for item in np.argsort(-scores, kind="stable").tolist() if item and item not in excluded]
    return order[:k]


# ---- models whose scores are dot products ----------------------------------------------------------------------------


@torch.no_grad()
def test_bpr_recommends_what_the_model_ranks_first(bpr: Built, tmp_path: Path) -> None:
    info = bpr.export(tmp_path / "artifact")
    assert info["serving"] == {"user": "user_embedding.weight", "item": "item_embedding.weight", "scale": 1.0}
    assert info["effect"]["mean_top10_overlap"] == 1.0
    assert (info["kept"], info["valid"]) == (3, {"ndcg@10": None})
    recommender = Recommender.from_artifact(tmp_path / "artifact")
    users = list(bpr.dataset.field2id_token["user_id"][1:60])
    consumed, tokens = interactions_of(bpr.config), list(bpr.dataset.field2id_token["item_id"])
    for exclude_seen in (True, False):
        lists = recommender.recommend(users, 10, exclude_seen)
        for number, (user, items) in enumerate(zip(users, lists), 1):
            excluded = {tokens.index(item) for item in consumed[user]} if exclude_seen else set()
            products = bpr.model.user_embedding.weight[number].double() @ bpr.model.item_embedding.weight.double().T
            expected = top(products.float().numpy(), excluded, 10)
            assert [item for item, _ in items] == [tokens[item] for item in expected]
            assert [score for _, score in items] == pytest.approx(products[expected].tolist(), rel=1e-6)


def test_ninety_percent_sparse_bpr_is_near_the_information_bound(bpr: Built, tmp_path: Path) -> None:
    info = bpr.export(tmp_path / "artifact")
    assert 1.0 < info["bytes"]["tables_ratio"] <= 1.10
    assert info["bytes"]["tables_dense"] == 4 * 64 * (944 + 1683)
    assert (tmp_path / "artifact" / "ticket.safetensors").stat().st_size < 1.10 * info["bytes"]["tables_bound"] + 1024


@pytest.mark.parametrize(
    ("values", "loss"), slow_but([("int8", 1e-2)], [("fp32", 0.0), ("fp16", 1e-3), ("int8", 1e-2), ("int4", 0.1)])
)
def test_load_ticket_gives_the_model_with_the_stored_weights(
    bpr: Built, tmp_path: Path, values: str, loss: float
) -> None:
    info = bpr.export(tmp_path / "artifact", values=values)
    loaded = load_ticket(tmp_path / "artifact")
    assert type(loaded) is get_model("BPR") and not loaded.training
    state = read_artifact(tmp_path / "artifact").state()
    for name, tensor in loaded.state_dict().items():
        assert np.array_equal(tensor.numpy(), state[name])
        assert not state[name][~bpr.masks[name].numpy()].any()
        assert values != "fp32" or torch.equal(tensor, bpr.model.state_dict()[name])
    found, expected = bpr.scores(loaded), bpr.scores()
    assert np.abs(found - expected).max() <= loss * np.abs(expected).max()
    measured = effect(found, expected)
    assert info["effect"]["max_score_difference"] == pytest.approx(measured["max_score_difference"], abs=1e-7)
    assert info["effect"]["mean_top10_overlap"] == pytest.approx(measured["mean_top10_overlap"], abs=0.01)
    assert info["values"] == values


def test_export_leaves_model_and_random_streams_alone(tiny_data: Path, tmp_path: Path) -> None:
    built = tiny("LightGCN", tiny_data)
    model = built.model.train()
    model.restore_user_e = marker = torch.ones(3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.random(), float(torch.rand(()))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    built.export(tmp_path / "artifact", values="int8")
    load_ticket(tmp_path / "artifact")
    assert (random.random(), np.random.random(), float(torch.rand(()))) == expected
    assert model.restore_user_e is marker and model.restore_item_e is None and model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_lightgcn_serves_its_propagated_vectors_only_when_they_are_stored(lightgcn: Built, tmp_path: Path) -> None:
    info = lightgcn.export(tmp_path / "artifact", vectors=False)
    assert info["serving"] is None and "export again with --export_vectors=auto" in info["serving_reason"]
    with pytest.raises(ArtifactError, match=r"restore_user_e, restore_item_e.*--export_vectors=auto"):
        Recommender.from_artifact(tmp_path / "artifact")
    assert disagreement(lightgcn.scores(load_ticket(tmp_path / "artifact")), lightgcn.scores()) == 0

    info = lightgcn.export(tmp_path / "artifact", vectors=True)
    assert (info["serving"]["user"], info["serving"]["item"]) == ("restore_user_e", "restore_item_e")
    users = list(lightgcn.dataset.field2id_token["user_id"][1:40])
    vectors = [table.double() for table in lightgcn.model.eval().forward()]
    tokens = list(lightgcn.dataset.field2id_token["item_id"])
    lists = Recommender.from_artifact(tmp_path / "artifact").recommend(users, 5, exclude_seen=False)
    for number, items in enumerate(lists, 1):
        expected = top((vectors[0][number] @ vectors[1].T).float().numpy(), set(), 5)
        assert [item for item, _ in items] == [tokens[item] for item in expected]
    assert "restore_user_e" not in read_artifact(tmp_path / "artifact").state()


@pytest.mark.parametrize(("values", "overlap"), [("fp16", 0.9), ("int8", 0.9), ("int4", 0.75)])
def test_rounded_vectors_are_checked_against_their_rounding(
    lightgcn: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: str, overlap: float
) -> None:
    info = lightgcn.export(tmp_path / "artifact", values=values, vectors=True)
    assert info["effect"]["max_score_difference"] > 0 and info["effect"]["mean_top10_overlap"] > overlap
    before = snapshot(tmp_path / "artifact")

    def encode_wrong(*args: Any, **kwargs: Any) -> EncodedTensor:
        encoded = encode(*args, **kwargs)
        encoded.parts["values"][-64:] *= 0
        return encoded

    monkeypatch.setattr(vectors, "encode", encode_wrong)
    # the ends of a range of int4 may be so far off that sums of many say little
    words = "restore_.*_e is read back beyond" if values == "int4" else "scores from the stored vectors differ"
    with pytest.raises(ArtifactError, match=words):
        lightgcn.export(tmp_path / "artifact", values=values, vectors=True)
    assert snapshot(tmp_path / "artifact") == before


def test_vectors_of_a_model_with_an_entity_table(tiny_data: Path, tmp_path: Path) -> None:
    """KGAT propagates one table of items and further entities along a graph that follows from its weights."""
    built = tiny("KGAT", tiny_data)
    attention = built.model.A_in
    info = built.export(tmp_path / "artifact", vectors=True)
    assert built.model.A_in is attention
    assert info["serving"]["item"] == "restore_entity_e"
    assert read_artifact(tmp_path / "artifact").tensor("restore_entity_e").shape[0] == built.dataset.item_num
    user = built.dataset.field2id_token["user_id"][1]
    assert len(Recommender.from_artifact(tmp_path / "artifact").recommend([user], 5)[0]) == 5
    assert disagreement(built.scores(load_ticket(tmp_path / "artifact")), built.scores()) == 0


class Scaled(get_model("BPR")):  # type: ignore[misc]
    """Scores are -2.5 times the dot product."""

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        return -2.5 * super().full_sort_predict(interaction)


class Shifted(get_model("BPR")):  # type: ignore[misc]
    """Scores have an item bias beside the dot product."""

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        bias = 1e-3 * torch.arange(self.n_items)
        return (super().full_sort_predict(interaction).view(-1, self.n_items) + bias).view(-1)


def test_dot_products_are_recognised_by_their_scores_not_by_names(tiny_data: Path, tmp_path: Path) -> None:
    settings = config_for("BPR", tiny_data)
    info = Built(Scaled, DATASET, 0.5, **settings).export(tmp_path / "scaled")
    assert info["serving"]["scale"] == pytest.approx(-2.5)
    info = Built(Shifted, DATASET, 0.5, **settings).export(tmp_path / "shifted")
    assert info["serving"] is None and "are not dot products" in info["serving_reason"]
    empty = Built("BPR", DATASET, 1.0, **settings)
    assert "scores 0 for every user" in empty.export(tmp_path / "empty")["serving_reason"]


# ---- other models ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sasrec_comes_back_but_cannot_be_served(tmp_path: Path) -> None:
    built = Built(
        "SASRec",
        train_neg_sample_args=None,
        user_inter_num_interval="[0,30]",
        MAX_ITEM_LIST_LENGTH=8,
        hidden_size=16,
        inner_size=16,
    )
    info = built.export(tmp_path / "artifact", values="int8", vectors=True)
    assert info["serving"] is None and "the scores of SASRec are not dot products" in info["serving_reason"]
    assert info["effect"]["max_score_difference"] > 0
    built.export(tmp_path / "artifact")
    artifact = read_artifact(tmp_path / "artifact")
    assert disagreement(built.scores(load_ticket(tmp_path / "artifact")), built.scores()) == 0
    consumed = interactions_of(built.config)
    for number, user in list(enumerate(artifact.users))[1:]:
        known = {item for item in consumed[user] if item in set(artifact.items)}
        assert {artifact.items[item] for item in artifact.seen.of(number)} == known


@pytest.fixture
def with_a_beginner(tiny_data: Path, tmp_path: Path) -> Path:
    """The generated data and a user with a single interaction."""
    folder = tmp_path / "data"
    shutil.copytree(tiny_data, folder)
    for suffix in ("inter", "user"):
        file = folder / DATASET / f"{DATASET}.{suffix}"
        lines = file.read_text().splitlines()
        file.write_text("\n".join([*lines, "\t".join(["beginner", *lines[1].split("\t")[1:]])]) + "\n")
    return folder


@pytest.mark.parametrize("model", slow_but(["SASRec"], ["BPR", "SASRec", "DIEN"]))
def test_what_users_have_seen_is_what_the_data_says(model: str, with_a_beginner: Path, tmp_path: Path) -> None:
    """For a user with one interaction too, of which a sequential model makes no sequence."""
    changes = {"MAX_ITEM_LIST_LENGTH": 4, "user_inter_num_interval": None}
    config = PruneConfig(model, DATASET, config_dict={**config_for(model, with_a_beginner), **changes})
    workshop = Workshop(config)
    tokens = {kind: list(workshop.dataset.field2id_token[f"{kind}_id"]) for kind in ("user", "item")}
    found = {
        user: {tokens["item"][item] for item in workshop.seen.of(number)}
        for number, user in enumerate(tokens["user"])
        if number
    }
    expected = interactions_of(config)
    assert len(expected["beginner"]) == 1 and found == expected


def test_what_users_have_seen_in_files_that_hold_sequences(tmp_path: Path) -> None:
    folder = tmp_path / "sets" / "sequences"
    folder.mkdir(parents=True)
    head = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    for part, rows in {"train": ["a\tx y\tz", "b\tx\ty"], "valid": ["a\tx y z\tv"], "test": ["c\tw\tx"]}.items():
        (folder / f"sequences.{part}.inter").write_text(head + "\n".join(rows) + "\n")
    settings = {
        "data_path": str(tmp_path / "sets"), "benchmark_filename": ["train", "valid", "test"], "gpu_id": "",
        "alias_of_item_id": ["item_id_list"], "train_neg_sample_args": None, "load_col": {
            "inter": ["user_id", "item_id_list", "item_id"]
        },
    }  # fmt: skip
    config = PruneConfig("SASRec", "sequences", config_dict=settings)
    dataset = create_dataset(config)
    seen = seen_by_users(dataset, config)
    users, items = (list(dataset.field2id_token[f"{kind}_id"]) for kind in ("user", "item"))
    found = {users[user]: {items[item] for item in seen.of(user)} for user in range(1, len(users))}
    assert found == {"a": set("xyzv"), "b": set("xy"), "c": set("wx")}


@pytest.mark.parametrize(
    "model", slow_but(["NeuMF", "DIN"], ["NeuMF", "KGIN", "KTUP", "DIN", "FM", "NNCF", "RippleNet"])
)
def test_models_of_every_kind_come_back(model: str, tiny_data: Path, tmp_path: Path) -> None:
    """Scored by pairs, drawn at random in evaluation, with features, with samples drawn in the constructor."""
    built = tiny(model, tiny_data)
    info = built.export(tmp_path / "artifact")
    assert info["effect"]["max_score_difference"] == 0.0 and info["serving"] is None
    found = built.scores(load_ticket(tmp_path / "artifact"))
    assert found.any() and disagreement(found, built.scores()) == 0


def test_a_weight_with_two_names_is_stored_once(tiny_data: Path, tmp_path: Path) -> None:
    class Tied(get_model("BPR")):  # type: ignore[misc]
        def __init__(self, config: Any, dataset: Any) -> None:
            super().__init__(config, dataset)
            self.output = self.item_embedding

    built = Built(Tied, DATASET, 0.5, **config_for("BPR", tiny_data))
    built.masks["output.weight"] = built.masks.pop("item_embedding.weight")
    info = built.export(tmp_path / "artifact")
    assert info["tensors"]["item_embedding.weight"] == {"same_as": "output.weight"}
    state = read_artifact(tmp_path / "artifact").state()
    assert np.array_equal(state["item_embedding.weight"], state["output.weight"])
    assert info["bytes"]["tables_dense"] == 4 * sum(parameter.numel() for parameter in built.model.parameters())


def test_a_constructor_that_opens_a_checkpoint_gets_the_artifacts_weights(tiny_data: Path, tmp_path: Path) -> None:
    first = tiny("RaCT", tiny_data)
    torch.save({"state_dict": first.model.state_dict()}, tmp_path / "stage.pth")
    built = tiny("RaCT", tiny_data, train_stage="finetune", pre_model_path=str(tmp_path / "stage.pth"))
    built.export(tmp_path / "artifact")
    (tmp_path / "stage.pth").write_bytes(pickle.dumps(Bomb(str(tmp_path / "pwned"))))
    assert disagreement(built.scores(load_ticket(tmp_path / "artifact")), built.scores()) == 0
    assert not (tmp_path / "pwned").exists()


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tiny_data: Path) -> Built:
    return tiny("BPR", tiny_data)


def test_a_weight_outside_its_mask_is_refused(small: Built, tmp_path: Path) -> None:
    name = "user_embedding.weight"
    small.model.user_embedding.weight.data[~small.masks[name]] += 1e-6
    pruned = int((~small.masks[name]).sum())
    with pytest.raises(ArtifactError, match=f"{name} cannot be exported: {pruned} pruned entries are not 0"):
        small.export(tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


def test_wrong_arguments_are_named(small: Built, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="mask 'users' fits no weight of BPR; it has user_embedding.weight"):
        small.export(tmp_path / "artifact", masks={"users": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ArtifactError, match="user_embedding.weight cannot be exported: mask of shape"):
        small.export(tmp_path / "artifact", masks={"user_embedding.weight": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ValueError, match="settings"):
        small.export(tmp_path / "artifact", info={"model": "BPR", "dataset": "tiny"})
    with pytest.raises(ValueError, match="fp32, fp16, int8"):
        small.export(tmp_path / "artifact", values="fp8")
    small.model.item_embedding.weight.data[5] = float("nan")
    with pytest.raises(ArtifactError, match="BPR scores NaN for"):
        small.export(tmp_path / "artifact", masks={})


def test_an_artifact_that_scores_otherwise_never_appears(
    small: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.export(tmp_path / "artifact")
    before = snapshot(tmp_path / "artifact")
    restore, score_users = EncodedTensor._restore, vectors.score_users

    def attempt(message: str) -> None:
        with pytest.raises(ArtifactError, match=message):
            small.export(tmp_path / "artifact")
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        assert snapshot(tmp_path / "artifact") == before

    monkeypatch.setattr(EncodedTensor, "_restore", lambda *args: restore(*args) * np.float32(1.001))
    attempt("scores from the decoded weights differ")
    monkeypatch.setattr(vectors, "score_users", lambda *args: score_users(*args) * np.float32(1.001))
    attempt("scores from the stored vectors differ")
    # written otherwise than encoded: the values in reverse order
    monkeypatch.setattr(
        "recbole_prune.artifact.save_safetensors",
        lambda arrays: save({n: a[::-1].copy() if n.endswith("values") else a for n, a in arrays.items()}),
    )
    attempt("is read back with other values")


def save(arrays: dict[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save as save_safetensors

    return save_safetensors(arrays)


# ---- load_ticket -----------------------------------------------------------------------------------------------------


def test_load_ticket_does_not_read_the_command_line(
    small: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.export(tmp_path / "artifact")
    words = ["program", "--model=SASRec", "--embedding_size=3", "--seed=7", "--prune_rat=1", "positional"]
    monkeypatch.setattr(sys, "argv", words)
    loaded = load_ticket(str(tmp_path / "artifact"))
    assert sys.argv is words
    assert disagreement(small.scores(loaded), small.scores()) == 0


class Bomb:
    """Unpickling it leaves a file."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.file,)


def test_load_ticket_runs_no_code_from_outside(small: Built, tmp_path: Path) -> None:
    small.export(tmp_path / "artifact")
    (tmp_path / "saved").mkdir()
    bomb = pickle.dumps(Bomb(str(tmp_path / "pwned")))
    for name in ("tiny-Dataset.pth", "tiny-for-BPR-dataloader.pth"):
        (tmp_path / "saved" / name).write_bytes(bomb)
    code = f"__import__('os').mkdir({str(tmp_path / 'pwned')!r})"
    harmful = {
        "loss_decimal_place": code,
        "checkpoint_dir": str(tmp_path / "saved"),
        "dataset_save_path": str(tmp_path / "saved" / "tiny-Dataset.pth"),
        "dataloaders_save_path": str(tmp_path / "saved" / "tiny-for-BPR-dataloader.pth"),
        "local_rank": 1, "world_size": 2, "ip": "192.0.2.1", "port": 1, "nproc": 2,
        "nobody_reads_this": code, "prune_rate": code, "pruner": code, "log_wandb": code,
    }  # fmt: skip
    reseal(tmp_path / "artifact", lambda document: document["settings"].update(harmful))
    assert disagreement(small.scores(load_ticket(tmp_path / "artifact")), small.scores()) == 0
    assert not (tmp_path / "pwned").exists()


def test_load_ticket_finds_moved_data_and_refuses_other_data(small: Built, tiny_data: Path, tmp_path: Path) -> None:
    small.export(tmp_path / "artifact")
    moved = tmp_path / "moved"
    (moved / DATASET).mkdir(parents=True)
    for file in (tiny_data / DATASET).iterdir():
        (moved / DATASET / file.name).write_bytes(file.read_bytes())
    reseal(tmp_path / "artifact", lambda document: document["settings"].update(data_path=str(tmp_path / "gone")))
    with pytest.raises(ConfigError, match=r"tiny is not in .*gone: name the folder that it lies in with data_path$"):
        load_ticket(tmp_path / "artifact")
    loaded = load_ticket(tmp_path / "artifact", data_path=moved)
    assert disagreement(small.scores(loaded), small.scores()) == 0

    lines = (moved / DATASET / f"{DATASET}.inter").read_text().splitlines()
    (moved / DATASET / f"{DATASET}.inter").write_text("\n".join([lines[0], lines[-1], *lines[1:-1]]) + "\n")
    with pytest.raises(ArtifactError, match=r"dataset tiny is not the one of .*: user 1 is '\w+' instead of '\w+'"):
        load_ticket(tmp_path / "artifact", data_path=moved)


def test_load_ticket_works_from_another_folder(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the data lay in RecBole's default place."""
    shutil.copytree(tiny_data, tmp_path / "work" / "dataset")
    monkeypatch.chdir(tmp_path / "work")
    settings = config_for("BPR", tiny_data)
    for number, data_path in enumerate(["dataset", "./dataset/", None]):
        settings.pop("data_path", None)
        small = Built("BPR", DATASET, 0.5, **settings, **({"data_path": data_path} if data_path else {}))
        small.export(tmp_path / f"artifact-{number}")
        expected = small.scores()
        monkeypatch.chdir(tmp_path)
        assert disagreement(small.scores(load_ticket(f"artifact-{number}")), expected) == 0
        monkeypatch.chdir(tmp_path / "work")


def test_load_ticket_downloads_nothing(small: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset that RecBole knows is not fetched into a folder of the machine that the artifact comes from."""
    small.export(tmp_path / "artifact")
    monkeypatch.setattr("recbole.data.dataset.dataset.Dataset._download", lambda *args: pytest.fail("downloads"))
    changes = {"data_path": str(tmp_path / "gone"), "dataset": "ml-1m"}
    reseal(tmp_path / "artifact", lambda document: document["settings"].update(changes))
    with pytest.raises(ConfigError, match=r"ml-1m is not in .*gone: name the folder that it lies in with data_path$"):
        load_ticket(tmp_path / "artifact")


def test_load_ticket_refuses_a_model_of_another_shape(small: Built, tmp_path: Path) -> None:
    small.export(tmp_path / "artifact")
    with pytest.raises(ArtifactError, match="do not fit BPR as it is built from dataset tiny.*user_embedding.weight"):
        load_ticket(tmp_path / "artifact", {"embedding_size": 5})
    reseal(tmp_path / "artifact", lambda document: document.pop("settings"))
    with pytest.raises(ArtifactError, match="ticket.json: settings must be an object, but is missing"):
        load_ticket(tmp_path / "artifact")


def test_dataset_that_is_not_built_yet(small: Built, tmp_path: Path) -> None:
    with preserved_random_streams():
        raw = create_dataset(small.config)
    small.export(tmp_path / "built")
    small.export(tmp_path / "raw", dataset=raw)
    assert snapshot(tmp_path / "raw") == snapshot(tmp_path / "built")
    assert isinstance(raw.inter_feat, pd.DataFrame)
