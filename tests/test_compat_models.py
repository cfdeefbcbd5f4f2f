"""The stand-ins for optional packages and the repairs of single models, against direct computations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from compat_helpers import Reports, build, make_config
from recbole.utils import KGDataLoaderState

from recbole_prune.compat import hooks, models, optional_packages

KNOWLEDGE = {
    "load_col": {
        "inter": ["user_id", "item_id"],
        "kg": ["head_id", "relation_id", "tail_id"],
        "link": ["item_id", "entity_id"],
    },
    "kg_embedding_size": 8,
}


@pytest.fixture
def own_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks registered by the test are forgotten afterwards."""
    monkeypatch.setattr(hooks, "_AFTER", {})
    monkeypatch.setattr(hooks, "_AROUND", {})


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

    @pytest.mark.slow
    @pytest.mark.multiprocess
    def test_importing_sine_leaves_anomaly_detection_as_it_is(self) -> None:
        program = (
            "import os, torch\n"
            "from recbole_prune import compat; compat.apply()\n"
            "import recbole.model.abstract_recommender\n"
            "for before in (False, True):\n"
            "    if not os.fork():\n"
            "        torch.autograd.set_detect_anomaly(before)\n"
            "        import recbole.model.sequential_recommender.sine\n"
            "        print(before, torch.is_anomaly_enabled(), flush=True)\n"
            "        os._exit(0)\n"
            "    os.wait()"
        )
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
        assert done.stdout.splitlines()[-2:] == ["False False", "True True"], done.stderr

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
