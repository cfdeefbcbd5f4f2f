"""The list of patches and their state in this process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, NamedTuple, Optional

from recbole_prune.compat import (
    hooks,
    late_imports,
    models,
    needless,
    numerics,
    optional_packages,
    pandas3,
    plain_tables,
    torch_load,
)

Install = Callable[[hooks.Report], Optional[Callable[[], bool]]]


@dataclass(frozen=True)
class Patch:
    """State of one patch in this process.

    Attributes:
        name: short name, unique.
        cause: what breaks in RecBole, and where.
        active: whether RecBole's behaviour is changed.
        why: what was found, or at which point it will be decided.
    """

    name: str
    cause: str
    active: bool
    why: str


class _Definition(NamedTuple):
    """A patch: ``install`` looks for the defect, patches if it is there, and reports; see :func:`apply`."""

    name: str
    cause: str
    install: Install


_DEFINITIONS = (
    _Definition(
        "numpy aliases",
        cause="Config reads np.float_, np.complex_ and np.unicode_ (gone from numpy 2); datasets, layers and metrics "
        "use np.float, np.bool and np.long (gone from numpy 1.24)",
        install=numerics.restore_numpy_aliases,
    ),
    _Definition(
        "scipy dok_matrix._update",
        cause="GCMC, LightGCN, NCL, NGCF, SpectralCF, KGIN and MCCLK build their graph with dok_matrix._update "
        "(gone from scipy 1.13)",
        install=numerics.restore_dok_update,
    ),
    _Definition(
        "torch.load",
        cause="checkpoints of RecBole are pickles, which torch >= 2.6 refuses by default: resuming, evaluating the "
        "best model and pretrained weights fail",
        install=torch_load.allow_recbole_checkpoints,
    ),
    _Definition(
        "pandas fillna",
        cause="datasets fill missing values with fillna(inplace=True) on a column, which has no effect under "
        "copy-on-write (pandas 3): the padding row and missing values stay NaN, silently",
        install=pandas3.fill_missing_values,
    ),
    _Definition(
        "pandas agg(len)",
        cause="datasets count sequence lengths with Series.agg(len), the number of rows in pandas 3",
        install=pandas3.count_elements,
    ),
    _Definition(
        "pandas string columns",
        cause="columns read with dtype=str have a string type in pandas 3, datasets expect Python objects",
        install=pandas3.read_objects,
    ),
    _Definition(
        "ray stand-in",
        cause="recbole.quick_start imports ray.tune, which it needs for tune.report in objective_function only",
        install=optional_packages.replace_ray,
    ),
    _Definition(
        "torch_scatter stand-in",
        cause="KGIN and MCCLK import torch_scatter in every forward pass",
        install=optional_packages.replace_torch_scatter,
    ),
    _Definition(
        "kmeans_pytorch stand-in",
        cause="LDiffRec imports kmeans_pytorch, in RecBole 1.2.0 together with all general models",
        install=optional_packages.replace_kmeans_pytorch,
    ),
    _Definition(
        "NCL without faiss",
        cause="NCL.run_kmeans imports faiss",
        install=models.cluster_ncl_without_faiss,
    ),
    _Definition(
        "KGAT without dgl",
        cause="KGAT builds its first attention matrix with dgl < 1.0 (edge_subgraph with preserve_nodes)",
        install=models.build_kgat_without_dgl,
    ),
    _Definition(
        "KSR dtype",
        cause="KSR keeps its relation matrix in float64 beside float32 weights",
        install=models.cast_ksr_relations,
    ),
    _Definition(
        "SINE anomaly detection",
        cause="SINE, imported with every sequential model, turns on autograd's anomaly detection, which slows down "
        "every training of the process",
        install=models.keep_anomaly_detection,
    ),
    _Definition(
        "NNCF knn",
        cause="NNCF with neigh_info_method knn passes the method to compute_similarity, which takes a block size",
        install=models.pass_nncf_method,
    ),
    _Definition(
        "XGBoost and LightGBM defaults",
        cause="their property files are named in lower case, Config looks for the class name",
        install=models.load_tree_defaults,
    ),
    _Definition(
        "needless warnings",
        cause="torch, pandas and numpy warn about what RecBole's own lines call and how, which its user cannot change",
        install=needless.ignore_needless_warnings,
    ),
    _Definition(
        "reading in C",
        cause="datasets are read by pandas' parser in Python, a second for 300,000 interactions",
        install=plain_tables.read_plain_files_in_c,
    ),
    _Definition(
        "late scikit-learn",
        cause="RecBole imports scikit-learn, which takes a second, for three metrics and two models only",
        install=late_imports.import_sklearn_late,
    ),
    _Definition(
        "late torch._dynamo",
        cause="optimizers of torch >= 2.1 import what compiles, which takes more than a second, to keep it from them",
        install=late_imports.import_dynamo_late,
    ),
)

_STATE: dict[str, Patch] = {}
_DECISIONS: list[Callable[[], bool]] = []
_FAILURES: dict[str, str] = {}


def _reporter(name: str) -> hooks.Report:
    def report(active: bool, why: str) -> None:
        _STATE[name] = replace(_STATE[name], active=active, why=why)

    return report


def apply() -> list[Patch]:
    """Install all patches that this process needs, once; later calls change nothing.

    Returns:
        The state of every patch, as :func:`status`.
    """
    for name, cause, install in _DEFINITIONS:
        if name in _STATE:
            continue
        _STATE[name] = Patch(name, cause, active=False, why="not decided yet: RecBole has not used this part")
        decision = install(_reporter(name))
        if decision is not None:
            _DECISIONS.append(decision)
    return status()


def status() -> list[Patch]:
    """State of every patch; empty before :func:`apply`."""
    return list(_STATE.values())


def resolve() -> list[Patch]:
    """Apply the patches and decide those that wait for a module or a package, by importing these (seconds).

    Returns:
        The state of every patch, as :func:`status`.
    """
    apply()
    for module in hooks.hooked_modules():
        problem = hooks.import_error(module)
        if problem is not None:
            _FAILURES[module] = problem
    for decision in _DECISIONS:
        decision()
    return status()


def import_failures() -> dict[str, str]:
    """Modules of RecBole that :func:`resolve` could not import in spite of the patches, and why."""
    return dict(_FAILURES)
