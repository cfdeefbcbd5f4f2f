"""RecBole works on the installed libraries, other code is left alone, and nothing is patched without its defect."""

from __future__ import annotations

import builtins
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.sparse import dok_matrix

from recbole_prune import compat
from recbole_prune.compat import hooks, models, numerics, optional_packages, pandas3, torch_load

compat.apply()

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.data.dataset import Dataset  # noqa: E402
from recbole.trainer import Trainer  # noqa: E402
from recbole.utils import KGDataLoaderState, get_model, init_seed  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]
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


def make_config(model: Any, dataset: str, folder: Path, **settings: Any) -> Config:
    base: dict[str, Any] = {
        "data_path": str(folder),
        "gpu_id": "",
        "checkpoint_dir": "saved",
        "show_progress": False,
        "epochs": 1,
        "embedding_size": 8,
        "train_batch_size": 512,
    }
    return Config(model, dataset, config_dict={**base, **settings})


def build(name: str, folder: Path, **settings: Any) -> tuple[Config, Any, Any, Any]:
    """Config, model, training data and test data of a model on the data set ``tiny``."""
    config = make_config(name, "tiny", folder, **settings)
    init_seed(config["seed"], True)
    train, _, test = data_preparation(config, create_dataset(config))
    return config, get_model(name)(config, train._dataset), train, test


def run_python(code: str, folder: Path) -> str:
    """Output of ``code`` in a fresh interpreter that finds this package; the test fails if the code does."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path[1:]]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Reports(list[tuple[bool, str]]):
    """Takes the place of the reporter of a patch."""

    def __call__(self, active: bool, why: str) -> None:
        self.append((active, why))


@pytest.fixture
def own_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks registered by the test are forgotten afterwards."""
    monkeypatch.setattr(hooks, "_AFTER", {})
    monkeypatch.setattr(hooks, "_AROUND", {})


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


KNOWLEDGE = {
    "load_col": {
        "inter": ["user_id", "item_id"],
        "kg": ["head_id", "relation_id", "tail_id"],
        "link": ["item_id", "entity_id"],
    },
    "kg_embedding_size": 8,
}


def first_batch(train: Any) -> Any:
    train.set_mode(KGDataLoaderState.RS)
    return next(iter(train))


class TestKGAT:
    def attention_by_loop(self, edges: np.ndarray, size: int) -> np.ndarray:
        """What ``KGAT.init_graph`` sums up: the row-normalised adjacency of each relation but 0, edge by edge."""
        matrix = np.zeros((size, size))
        for head, relation, tail in edges:
            if relation != 0:
                leaving = sum(1 for h, r, _ in edges if h == head and r == relation)
                matrix[head, tail] += 1 / leaving
        return matrix

    @pytest.mark.parametrize("seed", range(3))
    def test_attention_of_a_multigraph(self, seed: int) -> None:
        edges = np.random.default_rng(seed).integers([0, 0, 0], [6, 4, 6], size=(60, 3))
        heads, relations, tails = (torch.from_numpy(column.copy()) for column in edges.T)
        kgat = SimpleNamespace(
            all_hs=heads, all_rs=relations, all_ts=tails, n_relations=4, matrix_size=(7, 7), device="cpu"
        )
        expected = self.attention_by_loop(edges, 7)
        matrix = models._attention_matrix(kgat)
        np.testing.assert_allclose(matrix.to_dense().numpy(), expected, rtol=1e-6)
        assert matrix.coalesce().values().numel() == np.count_nonzero(expected)
        assert matrix.dtype == torch.float32

    def test_model_trains_with_it(self, tiny_data: Path) -> None:
        if hooks.is_installed("dgl"):
            pytest.skip("dgl is installed")
        _, model, train, _ = build("KGAT", tiny_data, layers=[8], **KNOWLEDGE)
        # the weights that leave a node add up to the number of its relations
        heads_and_relations = {(int(h), int(r)) for h, r in zip(model.all_hs, model.all_rs)}
        relations = torch.bincount(
            torch.tensor([head for head, _ in heads_and_relations]), minlength=model.A_in.size(0)
        )
        torch.testing.assert_close(model.A_in.to_dense().sum(dim=1), relations.float())
        model.calculate_loss(first_batch(train)).backward()
        assert model.user_embedding.weight.grad.abs().sum() > 0

    def test_other_users_of_dgl_are_not_deceived(self) -> None:
        dataset = SimpleNamespace(item_num=7, ckg_graph=lambda form, value_field: (form, value_field))
        view = models._WithoutDgl(dataset)
        assert view.ckg_graph(form="dgl", value_field="relation_id") is None
        assert view.ckg_graph(form="coo", value_field="relation_id") == ("coo", "relation_id")
        assert view.item_num == 7


class TestScatter:
    def cases(self) -> tuple[torch.Tensor, torch.Tensor]:
        random = torch.Generator().manual_seed(0)
        src = torch.randn(40, 5, dtype=torch.float64, generator=random)
        index = torch.randint(0, 9, (40,), generator=random)
        index[index == 4] = 5  # group 4 is empty
        return src, index

    def test_mean(self) -> None:
        src, index = self.cases()
        result = optional_packages.scatter_mean(src=src, index=index, dim=0, dim_size=11)
        assert result.shape == (11, 5)
        for group in range(11):
            members = [src[row] for row in range(40) if index[row] == group]
            expected = torch.stack(members).mean(dim=0) if members else torch.zeros(5, dtype=torch.float64)
            torch.testing.assert_close(result[group], expected)

    def test_softmax(self) -> None:
        src, index = self.cases()
        result = optional_packages.scatter_softmax(src * 300, index=index, dim=0)
        for row in range(40):
            members = torch.stack([src[other] * 300 for other in range(40) if index[other] == index[row]])
            position = sum(1 for other in range(row) if index[other] == index[row])
            torch.testing.assert_close(result[row], torch.softmax(members, dim=0)[position])

    def test_last_dimension(self) -> None:
        src, index = self.cases()
        mean, softmax = optional_packages.scatter_mean, optional_packages.scatter_softmax
        torch.testing.assert_close(mean(src.T, index), mean(src, index, dim=0).T)
        torch.testing.assert_close(softmax(src.T, index), softmax(src, index, dim=0).T)

    @pytest.mark.parametrize("name", ["scatter_mean", "scatter_softmax"])
    def test_gradient(self, name: str) -> None:
        src, index = self.cases()
        function = getattr(optional_packages, name)
        assert torch.autograd.gradcheck(lambda x: function(x, index, dim=0), (src[:, :2].clone().requires_grad_(),))

    @pytest.mark.parametrize("name", ["scatter_mean", "scatter_softmax"])
    def test_no_edges(self, name: str) -> None:
        result = getattr(optional_packages, name)(
            torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), dim=0, dim_size=2
        )
        assert result.shape == ((2, 3) if name == "scatter_mean" else (0, 3))
        assert not result.any()

    def test_wrong_index(self) -> None:
        with pytest.raises(ValueError, match=r"40 entries .* shape \(3,\)"):
            optional_packages.scatter_mean(self.cases()[0], torch.zeros(3, dtype=torch.long), dim=0)

    @pytest.mark.parametrize("name", ["KGIN", "MCCLK"])
    def test_models_use_them_and_leave_no_trace(self, name: str, tiny_data: Path) -> None:
        if hooks.is_installed("torch_scatter"):
            pytest.skip("torch_scatter is installed")
        settings = {"context_hops": 1, "n_factors": 2, "layer_num_kg": 1, "layer_num": 1, "k": 3, **KNOWLEDGE}
        _, model, train, _ = build(name, tiny_data, **settings)
        loss = model.calculate_loss(first_batch(train))
        assert torch.isfinite(sum(loss) if isinstance(loss, tuple) else loss)
        assert "torch_scatter" not in sys.modules


def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Four well separated groups of ten points and the group of each point."""
    random = np.random.default_rng(0)
    centres = np.array([[10, 0], [0, 10], [-10, 0], [0, -10]], dtype=np.float32)
    group = np.repeat(np.arange(4), 10)
    return (centres[group] + random.normal(scale=0.1, size=(40, 2))).astype(np.float32), group


def same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    return len(set(zip(first.tolist(), second.tolist()))) == len(set(first.tolist())) == len(set(second.tolist()))


class TestKMeans:
    def test_ncl(self) -> None:
        points, _ = blobs()
        centroids, cluster = models._run_kmeans(points, 4, torch.device("cpu"))
        assert centroids.shape == (4, 2) and centroids.dtype == torch.float32
        assert cluster.shape == (40,) and cluster.dtype == torch.int64
        torch.testing.assert_close(centroids.norm(dim=1), torch.ones(4))
        for number in range(4):
            mean = torch.from_numpy(points[(cluster == number).numpy()].mean(axis=0))
            torch.testing.assert_close(centroids[number], mean / mean.norm(), rtol=1e-3, atol=1e-3)

    def test_ncl_model_takes_it(self, tiny_data: Path) -> None:
        if hooks.is_installed("faiss"):
            pytest.skip("faiss is installed")
        _, model, _, _ = build("NCL", tiny_data, num_clusters=5, n_layers=2, hyper_layers=1)
        model.e_step()
        assert model.user_centroids.shape == (5, 8)
        assert model.user_2cluster.shape == (model.n_users,)
        assert int(model.item_2cluster.min()) >= 0 and int(model.item_2cluster.max()) < 5

    def test_kmeans_pytorch(self) -> None:
        points, group = blobs()
        np.random.seed(0)
        cluster, centres = optional_packages.kmeans(X=torch.from_numpy(points), num_clusters=4, device="cpu")
        assert same_partition(cluster.numpy(), group)
        assert centres.shape == (4, 2)
        with pytest.raises(ValueError, match="'cosine'"):
            optional_packages.kmeans(X=torch.zeros(4, 2), num_clusters=2, distance="cosine")

    def test_ldiffrec_with_categories(self, tiny_data: Path) -> None:
        if hooks.is_installed("kmeans_pytorch"):
            pytest.skip("kmeans_pytorch is installed")
        from recbole.model.general_recommender.ldiffrec import AutoEncoder

        points, group = blobs()
        encoder = AutoEncoder(torch.from_numpy(points), 4, [16, 8], [16], "cpu", "tanh")
        expected = sorted(sorted(np.flatnonzero(group == number) + 1) for number in range(4))
        assert sorted(sorted(category.tolist()) for category in encoder.category_idx) == expected
        assert "kmeans_pytorch" not in sys.modules


class TestModelBugs:
    def test_nncf_neighbours_by_similarity(self, tiny_data: Path) -> None:
        _, model, _, _ = build(
            "NNCF", tiny_data, neigh_info_method="knn", neigh_num=4, ui_embedding_size=8, neigh_embedding_size=8,
            num_conv_kernel=2, conv_kernel_size=2, pool_kernel_size=2, mlp_hidden_size=[8],
        )  # fmt: skip
        assert model.u_neigh.shape == (model.n_users, 4)
        assert model.i_neigh.shape == (model.n_items, 4)
        assert int(model.u_neigh.max()) < model.n_items
        assert int(model.i_neigh.max()) < model.n_users

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_ksr_relations_get_the_type_of_the_weights(self, dtype: torch.dtype, own_hooks: None) -> None:
        relations = torch.ones(3, 2, dtype=dtype)

        class KSR:
            def __init__(self, config: Any, dataset: Any) -> None:
                self.relation_Matrix = relations
                self.entity_embedding = torch.nn.Embedding(4, 2)

        module = hooks.make_module("recbole.model.sequential_recommender.ksr", KSR=KSR)
        with hooks.stand_in({module.__name__: module}):
            models.cast_ksr_relations(Reports())
        result = KSR(None, None).relation_Matrix
        assert result.dtype == torch.float32
        assert (result is relations) == (dtype == torch.float32)

    @pytest.mark.parametrize(("name", "key"), [("XGBoost", "xgb_num_boost_round"), ("LightGBM", "lgb_num_boost_round")])
    def test_tree_defaults(self, name: str, key: str, tiny_data: Path) -> None:
        from recbole.utils import InputType, ModelType

        model = type(name, (), {"type": ModelType.DECISIONTREE, "input_type": InputType.POINTWISE})
        config = make_config(model, "tiny", tiny_data)
        assert config[key] in (100, 300)
        assert config[f"{key[:3]}_params"]["learning_rate" if name == "LightGBM" else "max_depth"] in (0.1, 3)
        assert config["metrics"] == ["AUC", "LogLoss"]  # the settings of the model's kind are kept
        assert make_config(model, "tiny", tiny_data, **{key: 7})[key] == 7
        assert key not in make_config("BPR", "tiny", tiny_data)

    def test_tree_defaults_rank_below_the_other_files(self, tmp_path: Path, own_hooks: None) -> None:
        (tmp_path / "config").mkdir()
        (tmp_path / "properties/model").mkdir(parents=True)
        (tmp_path / "properties/model/xgboost.yaml").write_text("rounds: 3\ndepth: 4\n")

        class Own:
            def _load_internal_config_dict(self, model: str, model_class: Any, dataset: str) -> None:
                self.internal_config_dict = {"rounds": 9}  # from the file of the data set

            def _update_internal_config_dict(self, file: str) -> None:
                self.internal_config_dict.update(yaml.safe_load(Path(file).read_text()))

        path = str(tmp_path / "config/configurator.py")
        module = hooks.make_module("recbole.config.configurator", Config=Own, __file__=path)
        with hooks.stand_in({module.__name__: module}):
            models.load_tree_defaults(Reports())
        config = Own()
        config._load_internal_config_dict("XGBoost", None, "tiny")
        assert config.internal_config_dict == {"rounds": 9, "depth": 4}


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
    def test_apply_then_quick_start(self, tmp_path: Path, tiny_data: Path) -> None:
        output = run_python(
            f"""
            import sys
            sys.argv = ["script"]
            import recbole_prune.compat as compat
            compat.apply()
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


class TestInactiveWithoutDefect:
    """Each patch leaves alone what works; the working library is simulated where it is not installed."""

    def test_numpy(self, monkeypatch: pytest.MonkeyPatch, own_hooks: None) -> None:
        for name in ("float_", "complex_", "unicode_", "bool", "int", "float", "complex", "object", "str", "long"):
            monkeypatch.setattr(np, name, getattr(np, name, object()), raising=False)
        monkeypatch.setattr(np, "unicode", np.str_, raising=False)
        numerics.restore_numpy_aliases(reports := Reports())
        assert [active for active, _ in reports] == [False]
        assert not hooks.hooked_modules()

    @pytest.mark.parametrize("name", ["int", "float", "object", "str"])
    def test_numpy_keeps_what_is_there(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        own = object()
        monkeypatch.setattr(np, name, own, raising=False)
        numerics._set_missing_aliases()
        assert getattr(np, name) is own

    def test_scipy(self) -> None:
        before = dok_matrix._update
        numerics.restore_dok_update(reports := Reports())
        assert [active for active, _ in reports] == [False]
        assert dok_matrix._update is before

    def test_torch_load(self, monkeypatch: pytest.MonkeyPatch) -> None:
        patched = torch.load

        def permissive(*args: Any, **kwargs: Any) -> Any:
            return patched(*args, weights_only=False, **kwargs)

        monkeypatch.setattr(torch, "load", permissive)
        torch_load.allow_recbole_checkpoints(reports := Reports())
        assert [active for active, _ in reports] == [False]
        assert torch.load is permissive

    def test_pandas_fillna(self, monkeypatch: pytest.MonkeyPatch, own_hooks: None) -> None:
        monkeypatch.setattr(pandas3, "_fills_columns_in_place", lambda: True)
        pandas3.fill_missing_values(reports := Reports())
        assert [active for active, _ in reports] == [False]
        assert not hooks.hooked_modules()

    def test_pandas_len(self, monkeypatch: pytest.MonkeyPatch, own_hooks: None) -> None:
        monkeypatch.setattr(pd.Series, "agg", pd.Series.map)
        pandas3.count_elements(reports := Reports())
        assert [active for active, _ in reports] == [False]
        assert not hooks.hooked_modules()

    def test_pandas_strings(self, own_hooks: None) -> None:
        try:
            before = pd.get_option("future.infer_string")
        except KeyError:
            pandas3.read_objects(reports := Reports())
        else:
            pd.set_option("future.infer_string", False)
            try:
                pandas3.read_objects(reports := Reports())
            finally:
                pd.set_option("future.infer_string", before)
        assert [active for active, _ in reports] == [False]
        assert not hooks.hooked_modules()

    @pytest.mark.parametrize(
        ("install", "package"),
        [
            (optional_packages.replace_ray, "ray"),
            (optional_packages.replace_torch_scatter, "torch_scatter"),
            (optional_packages.replace_kmeans_pytorch, "kmeans_pytorch"),
            (models.cluster_ncl_without_faiss, "faiss"),
        ],
    )
    def test_working_packages_are_used(
        self, install: Callable[[hooks.Report], Callable[[], bool]], package: str, own_hooks: None
    ) -> None:
        real = hooks.make_module(package)
        parts = {"ray.tune": hooks.make_module("ray.tune")} if package == "ray" else {}
        with hooks.stand_in({package: real, **parts}):
            decide = install(reports := Reports())
            assert not reports  # a package that is installed is imported on first use only
            assert not decide()
        assert reports == [(False, f"not needed: {package}{'.tune' if parts else ''} works")]

    @pytest.mark.parametrize(
        ("edge_subgraph", "problem"),
        [
            (lambda graph, edges, preserve_nodes=False: None, None),
            (lambda graph, edges, relabel_nodes=True: None, "has no preserve_nodes"),
        ],
    )
    def test_dgl(self, edge_subgraph: Any, problem: str | None, own_hooks: None) -> None:
        with hooks.stand_in({"dgl": hooks.make_module("dgl", edge_subgraph=edge_subgraph)}):
            needed = models.build_kgat_without_dgl(reports := Reports())()
        ((active, why),) = reports
        assert needed == active == (problem is not None)
        assert (problem or "not needed") in why

    def test_nncf(self, own_hooks: None) -> None:
        class ComputeSimilarity:
            def compute_similarity(self, method: str, block_size: int = 100) -> None:
                """As in RecBole 1.2.0."""

        name = "recbole.model.general_recommender.nncf"
        module = hooks.make_module(name, ComputeSimilarity=ComputeSimilarity)
        with hooks.stand_in({name: module}):
            models.pass_nncf_method(reports := Reports())
        assert [active for active, _ in reports] == [False]
        assert vars(module)["ComputeSimilarity"] is ComputeSimilarity

    def test_tree_defaults(self, tmp_path: Path, own_hooks: None) -> None:
        (tmp_path / "config").mkdir()
        (tmp_path / "properties/model").mkdir(parents=True)
        for model in ("XGBoost", "LightGBM"):
            (tmp_path / f"properties/model/{model}.yaml").touch()

        class Own:
            def _load_internal_config_dict(self) -> None:
                """Finds the files."""

        before = vars(Own)["_load_internal_config_dict"]
        name = "recbole.config.configurator"
        module = hooks.make_module(name, Config=Own, __file__=str(tmp_path / "config/configurator.py"))
        with hooks.stand_in({name: module}):
            models.load_tree_defaults(reports := Reports())
        assert [active for active, _ in reports] == [False]
        assert vars(Own)["_load_internal_config_dict"] is before


class TestHooks:
    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_hooks: None) -> str:
        """A module that imports a package which is not there."""
        (tmp_path / "needy_module.py").write_text("import absent_package\nvalue = absent_package.value\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "needy_module", raising=False)
        return "needy_module"

    def test_stand_in_lasts_for_the_import_only(self, module: str) -> None:
        with pytest.raises(ModuleNotFoundError):
            __import__(module)
        absent = hooks.make_module("absent_package", value=3)
        hooks.around_import(module, "test", lambda: hooks.stand_in({"absent_package": absent}))
        assert __import__(module).value == 3
        assert "absent_package" not in sys.modules
        assert not hooks.is_installed("absent_package")

    def test_actions_run_once_per_execution(self, module: str) -> None:
        import importlib

        seen: list[str] = []
        absent = hooks.make_module("absent_package", value=3)
        hooks.around_import(module, "test", lambda: hooks.stand_in({"absent_package": absent}))
        hooks.after_import(module, "first", lambda loaded: seen.append("first"))
        assert not seen
        loaded = importlib.import_module(module)
        assert seen == ["first"]
        for _ in range(2):  # a patch that comes late acts at once, and only once
            hooks.after_import(module, "late", lambda loaded: seen.append("late"))
        assert seen == ["first", "late"]
        importlib.reload(loaded)
        assert seen == ["first", "late", "first", "late"]

    def test_stand_in_restores_on_error(self) -> None:
        real = sys.modules["pandas"]
        replaced = hooks.make_module("pandas")

        def fail() -> None:
            with hooks.stand_in({"pandas": replaced}):
                assert sys.modules["pandas"] is replaced
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert sys.modules["pandas"] is real

    def test_overlay(self) -> None:
        overlay = hooks.Overlay(builtins, len=lambda values: -1)
        assert overlay.len([1]) == -1 and builtins.len([1]) == 1
        assert overlay.sum is builtins.sum
        with pytest.raises(AttributeError):
            overlay.no_such_name  # noqa: B018

    def test_import_error_names_the_cause(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "broken_module.py").write_text("raise AttributeError('np.bool8 is gone')\n")
        (tmp_path / "needing_module.py").write_text("import no_such_package\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        assert hooks.import_error("json") is None
        assert hooks.import_error("no_such_package") == "no_such_package is not installed"
        assert hooks.import_error("needing_module") == "needing_module needs no_such_package, which is not installed"
        assert hooks.import_error("broken_module") == "import broken_module raises AttributeError: np.bool8 is gone"
