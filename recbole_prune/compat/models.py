"""Models and property files of RecBole that do not work on any stack, or only with packages hard to install."""

from __future__ import annotations

import functools
import inspect
import os
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_matrix

from recbole_prune.compat import hooks

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset, KnowledgeBasedDataset
    from recbole.model.abstract_recommender import AbstractRecommender
    from recbole.model.general_recommender import NCL
    from recbole.model.knowledge_aware_recommender import KGAT
    from recbole.model.sequential_recommender import KSR

_MODELS = "recbole.model"


def cluster_ncl_without_faiss(report: hooks.Report) -> Callable[[], bool]:
    """Let ``NCL.run_kmeans`` cluster with scikit-learn where faiss cannot be imported."""
    needed = hooks.decide(report, lambda: hooks.import_error("faiss"), "faiss works")
    if not hooks.is_installed("faiss"):
        needed()

    def replace_run_kmeans(module: ModuleType) -> None:
        original = module.NCL.run_kmeans

        @functools.wraps(original)
        def run_kmeans(self: NCL, x: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
            return _run_kmeans(x, self.k, self.device) if needed() else original(self, x)

        module.NCL.run_kmeans = run_kmeans

    hooks.after_import(f"{_MODELS}.general_recommender.ncl", "NCL without faiss", replace_run_kmeans)
    return needed


def _run_kmeans(x: np.ndarray, clusters: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised centroids, shape ``(clusters, width)``, and the cluster of each row of ``x``, shape ``(rows,)``."""
    from sklearn.cluster import KMeans

    # the settings of faiss.Kmeans: 25 iterations, one run from random points, seed 1234
    fitted = KMeans(clusters, init="random", n_init=1, max_iter=25, random_state=1234).fit(x)
    centroids = torch.from_numpy(fitted.cluster_centers_).float().to(device)
    return F.normalize(centroids, p=2, dim=1), torch.from_numpy(fitted.labels_).long().to(device)


def _dgl_error() -> str | None:
    problem = hooks.import_error("dgl")
    if problem is None:
        import dgl

        if "preserve_nodes" not in inspect.signature(dgl.edge_subgraph).parameters:
            return "dgl.edge_subgraph has no preserve_nodes (dgl >= 1.0)"
    return problem


class _WithoutDgl:
    """A knowledge-based dataset that answers None when asked for the collaborative graph in dgl's form."""

    def __init__(self, dataset: KnowledgeBasedDataset) -> None:
        self._dataset = dataset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def ckg_graph(self, form: str = "coo", value_field: str | None = None) -> Any:
        return None if form == "dgl" else self._dataset.ckg_graph(form=form, value_field=value_field)


def build_kgat_without_dgl(report: hooks.Report) -> Callable[[], bool]:
    """Let KGAT compute its first attention matrix with scipy where dgl < 1.0 cannot be imported."""
    needed = hooks.decide(report, _dgl_error, "dgl works")
    if not hooks.is_installed("dgl"):
        needed()

    def replace_graph(module: ModuleType) -> None:
        kgat = module.KGAT
        original_init, original_graph = kgat.__init__, kgat.init_graph

        @functools.wraps(original_init)
        def __init__(self: KGAT, config: Config, dataset: KnowledgeBasedDataset) -> None:
            original_init(self, config, _WithoutDgl(dataset) if needed() else dataset)

        @functools.wraps(original_graph)
        def init_graph(self: KGAT) -> torch.Tensor:
            return original_graph(self) if self.ckg is not None else _attention_matrix(self)

        kgat.__init__, kgat.init_graph = __init__, init_graph

    hooks.after_import(f"{_MODELS}.knowledge_aware_recommender.kgat", "KGAT without dgl", replace_graph)
    return needed


def _attention_matrix(kgat: KGAT) -> torch.Tensor:
    """Sum over relations of the row-normalised adjacency, as ``KGAT.init_graph`` makes it with dgl.

    An edge (h, r, t) weighs 1 / (number of edges of relation r that leave h); relation 0 is padding.
    """
    heads, tails, relations = (x.cpu().numpy() for x in (kgat.all_hs, kgat.all_ts, kgat.all_rs))
    real = relations > 0
    heads, tails, relations = heads[real], tails[real], relations[real].astype(np.int64)
    _, group, count = np.unique(heads * kgat.n_relations + relations, return_inverse=True, return_counts=True)
    weights = 1.0 / count[group.reshape(-1)]
    matrix = coo_matrix((weights, (heads, tails)), shape=tuple(kgat.matrix_size)).tocsr().tocoo()
    indices = torch.from_numpy(np.stack([matrix.row, matrix.col]).astype(np.int64))
    values = torch.from_numpy(matrix.data.astype(np.float32))
    return torch.sparse_coo_tensor(indices, values, kgat.matrix_size).to(kgat.device)


def cast_ksr_relations(report: hooks.Report) -> None:
    """Cast ``KSR.relation_Matrix`` to the type of the weights after construction."""

    def wrap_init(module: ModuleType) -> None:
        ksr = module.KSR
        original = ksr.__init__

        @functools.wraps(original)
        def __init__(self: KSR, config: Config, dataset: Dataset) -> None:
            original(self, config, dataset)
            self.relation_Matrix = self.relation_Matrix.to(self.entity_embedding.weight.dtype)

        ksr.__init__ = __init__

    hooks.after_import(f"{_MODELS}.sequential_recommender.ksr", "KSR dtype", wrap_init)
    report(True, "on every stack; without effect on a matrix that has the type of the weights")


def keep_anomaly_detection(report: hooks.Report) -> None:
    """Leave autograd's anomaly detection as it was before SINE is imported."""
    hooks.around_import(
        f"{_MODELS}.sequential_recommender.sine",
        "SINE anomaly detection",
        lambda: torch.autograd.set_detect_anomaly(torch.is_anomaly_enabled()),
    )
    report(True, "on every stack; what you turn on yourself stays on")


def pass_nncf_method(report: hooks.Report) -> None:
    """Give NNCF a ``ComputeSimilarity`` whose ``compute_similarity`` accepts the method, as NNCF calls it."""

    def replace_similarity(module: ModuleType) -> None:
        current = module.ComputeSimilarity
        if "method" in inspect.signature(current.compute_similarity).parameters:
            report(False, "not needed: compute_similarity takes the method (RecBole 1.2.0)")
            return

        class ComputeSimilarity:
            def __init__(self, *args: object, **kwargs: object) -> None:
                self.arguments = args, kwargs

            def compute_similarity(self, method: str) -> Any:
                args, kwargs = self.arguments
                return current(*args, method=method, **kwargs).compute_similarity()

        vars(module)["ComputeSimilarity"] = ComputeSimilarity
        report(True, "compute_similarity takes a block size where NNCF passes the method")

    hooks.after_import(f"{_MODELS}.general_recommender.nncf", "NNCF knn", replace_similarity)


def load_tree_defaults(report: hooks.Report) -> None:
    """Let Config find ``properties/model/xgboost.yaml`` and ``lightgbm.yaml`` by the class names."""

    def wrap_loader(module: ModuleType) -> None:
        config = module.Config
        folder = os.path.join(os.path.dirname(os.path.realpath(module.__file__ or "")), "../properties/model")
        if all(os.path.isfile(os.path.join(folder, f"{model}.yaml")) for model in ("XGBoost", "LightGBM")):
            report(False, "not needed: the property files are found")
            return
        original = config._load_internal_config_dict

        @functools.wraps(original)
        def _load_internal_config_dict(
            self: Config, model: str, model_class: type[AbstractRecommender], dataset: str
        ) -> None:
            original(self, model, model_class, dataset)
            if model in ("XGBoost", "LightGBM"):
                loaded = dict(self.internal_config_dict)
                path = os.path.join(folder, f"{model.lower()}.yaml")
                if os.path.isfile(path):
                    self._update_internal_config_dict(path)
                    self.internal_config_dict.update(loaded)  # a model's file ranks below the dataset's

        config._load_internal_config_dict = _load_internal_config_dict
        report(True, "the file system distinguishes xgboost.yaml from XGBoost.yaml")

    hooks.after_import("recbole.config.configurator", "XGBoost and LightGBM defaults", wrap_loader)
