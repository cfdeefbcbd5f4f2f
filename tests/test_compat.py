"""RecBole works on the installed libraries and other code is left alone."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compat_helpers import REPOSITORY, build, make_config, run_python
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.dataset import Dataset
from recbole.trainer import Trainer
from scipy.sparse import dok_matrix

from recbole_prune import compat
from recbole_prune.compat import pandas3

LOAD_FEATURES = {
    "inter": ["user_id", "item_id", "rating"],
    "user": ["user_id", "age", "gender"],
    "item": ["item_id", "price", "class", "vector"],
}


def write_features(folder: Path) -> None:
    """Six users and eight items with a gap of each kind: an empty cell per column, a user and an item without a row."""
    target = folder / "gaps"
    target.mkdir(parents=True)
    pairs = [(user, item, 1 + (user + item) % 5) for user in range(6) for item in range(8) if (user + item) % 3]
    rows = [f"u{user}\ti{item}\t{rating}" for user, item, rating in pairs]
    (target / "gaps.inter").write_text("\n".join(["user_id:token\titem_id:token\trating:float", *rows]) + "\n")
    ages, genders = ["20", "", "30", "40", "50"], ["M", "F", "", "M", "F"]
    rows = [f"u{user}\t{ages[user]}\t{genders[user]}" for user in range(5)]
    (target / "gaps.user").write_text("\n".join(["user_id:token\tage:float\tgender:token", *rows]) + "\n")
    prices = ["1", "2", "", "4", "5", "6", "7"]
    classes = ["a b", "a", "b c", "", "c", "a b c", "c"]
    vectors = ["0.5 1", "2 3", "4 5", "6 7", "", "8 9", "1 1"]
    rows = [f"i{item}\t{prices[item]}\t{classes[item]}\t{vectors[item]}" for item in range(7)]
    head = "item_id:token\tprice:float\tclass:token_seq\tvector:float_seq"
    (target / "gaps.item").write_text("\n".join([head, *rows]) + "\n")


class TestFeatures:
    """Datasets with features: what pandas 3 corrupts silently."""

    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Any:
        write_features(tmp_path)
        # users and items without a row of features are kept
        settings = {"load_col": LOAD_FEATURES, "filter_inter_by_user_or_item": False}
        return create_dataset(make_config("BPR", "gaps", tmp_path, **settings)).build()[0]

    def values(self, dataset: Any, feature: str, key: str, field: str) -> dict[str, Any]:
        """Token of the key -> value of the field."""
        table = getattr(dataset, feature)
        return {str(dataset.id2token(key, int(i))): value for i, value in zip(table[key], table[field].tolist())}

    def test_floats_and_padding_get_the_mean(self, dataset: Any) -> None:
        ages = self.values(dataset, "user_feat", "user_id", "age")
        mean = (20 + 30 + 40 + 50) / 4
        assert ages == {"[PAD]": mean, "u0": 20, "u1": mean, "u2": 30, "u3": 40, "u4": 50, "u5": mean}

    def test_tokens_and_padding_get_zero(self, dataset: Any) -> None:
        genders = self.values(dataset, "user_feat", "user_id", "gender")
        tokens = {user: str(dataset.id2token("gender", code)) for user, code in genders.items()}
        assert tokens == {
            "[PAD]": "[PAD]", "u0": "M", "u1": "F", "u2": "[PAD]", "u3": "M", "u4": "F", "u5": "[PAD]"
        }  # fmt: skip
        assert dataset.user_feat["gender"].dtype == torch.int64

    def test_token_sequences(self, dataset: Any) -> None:
        codes = self.values(dataset, "item_feat", "item_id", "class")
        tokens = {
            item: [str(dataset.id2token("class", code)) for code in sequence if code]
            for item, sequence in codes.items()
        }
        assert tokens == {
            "[PAD]": [], "i0": ["a", "b"], "i1": ["a"], "i2": ["b", "c"], "i3": [], "i4": ["c"],
            "i5": ["a", "b", "c"], "i6": ["c"], "i7": [],
        }  # fmt: skip

    def test_float_sequences(self, dataset: Any) -> None:
        vectors = self.values(dataset, "item_feat", "item_id", "vector")
        assert vectors["[PAD]"] == vectors["i4"] == vectors["i7"] == [0.0, 0.0]
        assert vectors["i0"] == [0.5, 1.0]
        assert vectors["i6"] == [1.0, 1.0]

    def test_without_the_patch_they_are_corrupt(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if pandas3._fills_columns_in_place():
            pytest.skip("this pandas fills in place")
        patched = vars(Dataset)["_fill_nan"]
        monkeypatch.setattr(Dataset, "_fill_nan", patched.__wrapped__)
        write_features(tmp_path)
        table = create_dataset(make_config("BPR", "gaps", tmp_path, load_col=LOAD_FEATURES)).build()[0].user_feat
        assert table["age"].isnan().any()
        assert table["gender"].min() < 0


def torch_refuses_pickles(file: str) -> bool:
    """Whether torch itself, without a patch, refuses a checkpoint of RecBole by default."""
    try:
        torch.serialization.load(file)
    except pickle.UnpicklingError:
        return True
    return False


class TestCheckpoints:
    """RecBole reads its own checkpoints, other code reads with torch's defaults."""

    @pytest.fixture
    def trained(self, tiny_data: Path) -> tuple[Trainer, Any]:
        config, model, train, test = build("BPR", tiny_data)
        trainer = Trainer(config, model)
        trainer.fit(train, saved=True, verbose=False)
        return trainer, test

    def test_evaluate_restores_the_best_weights(self, trained: tuple[Trainer, Any]) -> None:
        trainer, test = trained
        expected = trainer.evaluate(test, load_best_model=False)
        with torch.no_grad():
            for weight in trainer.model.parameters():
                weight.zero_()
        assert trainer.evaluate(test, load_best_model=False) != expected
        assert trainer.evaluate(test, load_best_model=True) == expected

    def test_resume_restores_weights(self, trained: tuple[Trainer, Any]) -> None:
        trainer, _ = trained
        weight = trainer.model.item_embedding.weight
        saved = weight.detach().clone()
        weight.data.zero_()
        trainer.resume_checkpoint(trainer.saved_model_file)
        assert torch.equal(weight, saved)

    @pytest.mark.parametrize("caller", ["__main__", "user_code", "recbole_prune.artifact", "recbolefork"])
    def test_other_code_keeps_the_default(self, trained: tuple[Trainer, Any], caller: str) -> None:
        if not torch_refuses_pickles(trained[0].saved_model_file):
            pytest.skip("this torch loads pickles by default")
        names = {"__name__": caller, "torch": torch, "file": trained[0].saved_model_file}
        with pytest.raises(pickle.UnpicklingError):
            exec("torch.load(file)", names)
        exec("loaded = torch.load(file, weights_only=False)", names)
        assert "state_dict" in names["loaded"]

    def test_an_explicit_choice_of_recbole_is_kept(self, trained: tuple[Trainer, Any]) -> None:
        names = {"__name__": "recbole.model.some", "torch": torch, "file": trained[0].saved_model_file}
        exec("loaded = torch.load(file)", names)
        assert "state_dict" in names["loaded"]
        with pytest.raises(pickle.UnpicklingError):
            exec("torch.load(file, weights_only=True)", names)


def test_lightgcn_graph_is_the_normalised_adjacency(tiny_data: Path) -> None:
    _, model, train, _ = build("LightGCN", tiny_data, n_layers=1)
    users, items = train.dataset.user_num, train.dataset.item_num
    adjacency = np.zeros((users + items, users + items))
    rows = train.dataset.inter_feat["user_id"].numpy()
    columns = train.dataset.inter_feat["item_id"].numpy() + users
    adjacency[rows, columns] = adjacency[columns, rows] = 1
    scale = (adjacency.sum(axis=1) + 1e-7) ** -0.5
    np.testing.assert_allclose(model.norm_adj_matrix.to_dense().numpy(), scale[:, None] * adjacency * scale, rtol=1e-5)


def test_apply_twice_changes_nothing() -> None:
    import recbole.data.dataset.dataset as dataset_module
    from recbole.model.knowledge_aware_recommender.kgat import KGAT

    def state() -> list[Any]:
        return [
            torch.load, dok_matrix.__dict__.get("_update"), np.float, Config.compatibility_settings,
            Config._load_internal_config_dict, dataset_module.pd, dataset_module.Dataset._fill_nan,
            vars(dataset_module).get("len"), KGAT.__init__, KGAT.init_graph, list(sys.meta_path),
        ]  # fmt: skip

    before, patches = state(), compat.status()
    assert compat.apply() == patches
    assert state() == before
    assert len({patch.name for patch in patches}) == len(patches)
    assert all(patch.cause and patch.why for patch in patches)


@pytest.mark.multiprocess
class TestFreshProcess:
    @pytest.mark.slow
    def test_the_readmes_line_then_quick_start(self, tmp_path: Path, tiny_data: Path) -> None:
        readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
        (line,) = [line.strip() for line in readme.splitlines() if "from recbole_prune import compat" in line]
        output = run_python(
            f"""
            import sys
            sys.argv = ["script"]
            {line}
            assert not [name for name in sys.modules if name.split(".")[0] in ("recbole", "ray")]
            import recbole.quick_start, torch, glob
            stubs = [n for n in ("ray", "ray.tune") if n in sys.modules and sys.modules[n].__spec__.loader is None]
            assert not stubs, stubs
            settings = {{"data_path": {str(tiny_data)!r}, "gpu_id": "", "epochs": 1, "embedding_size": 8,
                        "show_progress": False, "state": "ERROR"}}
            recbole.quick_start.run_recbole("BPR", "tiny", config_dict=settings)
            file, = glob.glob("saved/BPR-*.pth")
            config, model, *_ = recbole.quick_start.load_data_and_model(file)
            for load in (torch.load, torch.serialization.load):  # ours and torch's own
                try:
                    load(file)
                    print("read")
                except Exception as error:
                    print(type(error).__name__)
            print(type(model).__name__, config["embedding_size"])
            """,
            tmp_path,
        )
        patched, own, *model = output.split()[-4:]
        assert patched == own
        assert model == ["BPR", "8"]

    @pytest.mark.slow
    def test_recbole_imported_first(self, tmp_path: Path, tiny_data: Path) -> None:
        run_python(
            f"""
            import sys
            sys.argv = ["script"]
            import recbole.data, recbole.config, recbole.model.knowledge_aware_recommender.kgat
            import recbole_prune.compat as compat
            compat.apply()
            recbole.config.Config("BPR", "tiny", config_dict={{"data_path": {str(tiny_data)!r}, "gpu_id": ""}})
            compat.resolve()
            assert not compat.import_failures(), compat.import_failures()
            assert not any("not decided" in patch.why for patch in compat.status())
            """,
            tmp_path,
        )
