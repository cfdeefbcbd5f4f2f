"""Stand-ins for packages that RecBole imports and that often cannot be installed: ray, torch_scatter, kmeans_pytorch.

They exist only while RecBole's own code runs that needs them; other code never meets them in ``sys.modules``.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Callable, TypeVar

import torch
from torch import Tensor

from recbole_prune.compat import hooks

_MODELS = "recbole.model"
_Result = TypeVar("_Result")


def _decide_on(package: str, report: hooks.Report) -> Callable[[], bool]:
    """Whether to stand in for ``package``: decided now if it is absent, else by importing it on first use."""
    needed = hooks.decide(report, lambda: hooks.import_error(package), f"{package} works")
    if not hooks.is_installed(package.split(".")[0]):
        needed()
    return needed


def _while_needed(
    needed: Callable[[], bool], modules: dict[str, ModuleType]
) -> Callable[[], AbstractContextManager[None]]:
    return lambda: hooks.stand_in(modules) if needed() else nullcontext()


def _in_context(
    function: Callable[..., _Result], context: Callable[[], AbstractContextManager[None]]
) -> Callable[..., _Result]:
    @functools.wraps(function)
    def wrapper(*args: object, **kwargs: object) -> _Result:
        with context():
            return function(*args, **kwargs)

    return wrapper


def replace_ray(report: hooks.Report) -> Callable[[], bool]:
    """Import ``recbole.quick_start`` with a ``ray.tune`` whose ``report`` does nothing, if the real one fails."""

    def report_nothing(*args: object, **kwargs: object) -> None:
        """``ray.tune.report`` outside of a ray session."""

    needed = _decide_on("ray.tune", report)
    tune = hooks.make_module("ray.tune", report=report_nothing)
    ray = hooks.make_module("ray", tune=tune)
    context = _while_needed(needed, {"ray": ray, "ray.tune": tune})
    hooks.around_import("recbole.quick_start.quick_start", "ray stand-in", context)
    return needed


def replace_torch_scatter(report: hooks.Report) -> Callable[[], bool]:
    """Let the aggregators of KGIN and MCCLK use :func:`scatter_mean` and :func:`scatter_softmax` of this module."""
    needed = _decide_on("torch_scatter", report)
    module = hooks.make_module("torch_scatter", scatter_mean=scatter_mean, scatter_softmax=scatter_softmax)
    context = _while_needed(needed, {"torch_scatter": module})

    def wrap_forward(model_module: ModuleType) -> None:
        aggregator = model_module.Aggregator
        aggregator.forward = _in_context(aggregator.forward, context)

    for name in ("kgin", "mcclk"):
        hooks.after_import(f"{_MODELS}.knowledge_aware_recommender.{name}", "torch_scatter stand-in", wrap_forward)
    return needed


def _group_index(src: Tensor, index: Tensor, dim: int) -> Tensor:
    if index.dim() != 1 or index.numel() != src.size(dim):
        raise ValueError(
            f"index must be one-dimensional with {src.size(dim)} entries (the size of src in dimension {dim}), "
            f"but has the shape {tuple(index.shape)}"
        )
    shape = [1] * src.dim()
    shape[dim] = -1
    return index.view(shape).expand_as(src)


def _group_count(index: Tensor, dim_size: int | None) -> int:
    if dim_size is not None:
        return dim_size
    return int(index.max()) + 1 if index.numel() else 0


def scatter_mean(src: Tensor, index: Tensor, dim: int = -1, dim_size: int | None = None) -> Tensor:
    """Mean over the slices of ``src`` that share an index, as ``torch_scatter.scatter_mean`` for a 1-D index.

    Args:
        src: values, of any shape, floating-point.
        index: group of each slice along ``dim``, shape ``(src.size(dim),)``.
        dim: the dimension along which slices are grouped.
        dim_size: number of groups; by default the largest index plus one.

    Returns:
        Tensor of the shape of ``src`` with ``dim_size`` in place of its size in ``dim``; empty groups are 0.
    """
    _group_index(src, index, dim)
    shape = list(src.shape)
    shape[dim] = _group_count(index, dim_size)
    total = src.new_zeros(shape).index_add(dim, index, src)
    count = torch.bincount(index, minlength=shape[dim]).clamp(min=1).to(src.dtype)
    broadcast = [1] * src.dim()
    broadcast[dim] = -1
    return total / count.view(broadcast)


def scatter_softmax(src: Tensor, index: Tensor, dim: int = -1, dim_size: int | None = None) -> Tensor:
    """Softmax within the groups that share an index, as ``torch_scatter.scatter_softmax`` for a 1-D index.

    Args:
        src: values, of any shape, floating-point.
        index: group of each slice along ``dim``, shape ``(src.size(dim),)``.
        dim: the dimension along which slices are grouped.
        dim_size: number of groups; by default the largest index plus one.

    Returns:
        Tensor of the shape of ``src``; it sums to 1 within each group.
    """
    group = _group_index(src, index, dim)
    shape = list(src.shape)
    shape[dim] = _group_count(index, dim_size)
    values = src.detach()
    largest = values.new_zeros(shape).scatter_reduce(dim, group, values, "amax", include_self=False)
    exponential = (src - largest.index_select(dim, index)).exp()
    total = exponential.new_zeros(shape).index_add(dim, index, exponential)
    return exponential / total.index_select(dim, index)


def replace_kmeans_pytorch(report: hooks.Report) -> Callable[[], bool]:
    """Let LDiffRec use :func:`kmeans` of this module."""
    needed = _decide_on("kmeans_pytorch", report)
    context = _while_needed(needed, {"kmeans_pytorch": hooks.make_module("kmeans_pytorch", kmeans=kmeans)})
    name = f"{_MODELS}.general_recommender.ldiffrec"

    def wrap_init(module: ModuleType) -> None:
        encoder = module.AutoEncoder
        encoder.__init__ = _in_context(encoder.__init__, context)

    hooks.around_import(name, "kmeans_pytorch stand-in", context)
    hooks.after_import(name, "kmeans_pytorch stand-in", wrap_init)
    return needed


def kmeans(
    X: Tensor, num_clusters: int, distance: str = "euclidean", device: torch.device | str = "cpu", **unused: object
) -> tuple[Tensor, Tensor]:
    """k-means clusters by scikit-learn, with the arguments and results of ``kmeans_pytorch.kmeans``.

    Args:
        X: points, shape ``(n_points, n_features)``.
        num_clusters: number of clusters.
        distance: only ``euclidean``.
        device: ignored, the computation runs on the CPU.

    Returns:
        The cluster of each point, shape ``(n_points,)``, and the centres, shape ``(num_clusters, n_features)``;
        both on the CPU.
    """
    if distance != "euclidean":
        raise ValueError(f"distance is {distance!r}, but this stand-in for kmeans_pytorch has only 'euclidean'")
    from sklearn.cluster import KMeans

    # numpy's global generator is seeded by RecBole's init_seed, so that a run can be repeated
    fitted = KMeans(num_clusters, n_init=1).fit(torch.as_tensor(X).detach().cpu().numpy())
    return torch.from_numpy(fitted.labels_).long(), torch.from_numpy(fitted.cluster_centers_).float()
