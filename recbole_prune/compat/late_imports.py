"""Imports that take seconds at every start and that a run rarely needs: made when something of them is used."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import ModuleType
from typing import Any, Callable

import torch

from recbole_prune.compat import hooks

_DYNAMO = "torch._dynamo"
# what modules of RecBole that every run imports take from scikit-learn
_SKLEARN: dict[str, dict[str, tuple[str, ...]]] = {
    "recbole.evaluator.metrics": {"sklearn.metrics": ("auc", "mean_absolute_error", "mean_squared_error")},
    "recbole.model.general_recommender.nceplrec": {"sklearn.utils.extmath": ("randomized_svd",)},
    "recbole.model.general_recommender.slimelastic": {
        "sklearn.linear_model": ("ElasticNet",),
        "sklearn.exceptions": ("ConvergenceWarning",),
    },
}


def import_sklearn_late(report: hooks.Report) -> None:
    """Give RecBole's metrics, NCEPLRec and SLIMElastic functions that import scikit-learn when they are called."""
    if "sklearn" in sys.modules:
        report(False, "not needed: scikit-learn is imported already")
        return
    for importer, packages in _SKLEARN.items():
        modules = {
            package: hooks.make_module(package, **{name: _late(package, name) for name in names})
            for package, names in packages.items()
        }
        hooks.around_import(importer, "late scikit-learn", partial(_unless_imported, modules))
    report(True, "AUC, MAE, RMSE, NCEPLRec and SLIMElastic import it when they are computed")


def _unless_imported(modules: dict[str, ModuleType]) -> AbstractContextManager[None]:
    return nullcontext() if "sklearn" in sys.modules else hooks.stand_in(modules)


def _late(module: str, name: str) -> object:
    def real() -> Any:
        return getattr(importlib.import_module(module), name)

    if name.endswith("Warning"):
        return _LateCategory(name, (Warning,), {"__doc__": f"``{module}.{name}``.", "real": staticmethod(real)})

    def function(*args: object, **kwargs: object) -> object:
        return real()(*args, **kwargs)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"``{module}.{name}``, imported now."
    return function


class _LateCategory(type):
    """A category of warnings whose members are those of another, which is looked up when a warning is filtered."""

    real: Callable[[], type]

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.real())


def import_dynamo_late(report: hooks.Report) -> None:
    """Let torch's optimizers find a ``torch._dynamo`` that has the two functions that they call outside of compiling.

    Everything else that is asked of it loads the real one, which takes its place.
    """
    if _DYNAMO in sys.modules or not hasattr(torch, "_compile"):
        report(False, "not needed: torch._dynamo is imported already, or torch does not import it late")
        return
    stand_in = _LateDynamo(_DYNAMO)
    sys.modules[_DYNAMO] = stand_in
    report(True, "what compiles loads it")


class _LateDynamo(ModuleType):
    """``torch._dynamo`` until something else than its ``disable`` and ``graph_break`` is needed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)

    @staticmethod
    def disable(fn: Callable[..., Any], recursive: bool = True, **options: object) -> Callable[..., Any]:
        """Nothing is compiled, so nothing is to be kept from it."""
        return fn

    @staticmethod
    def graph_break(msg: str = "") -> None:
        """Nothing is traced, so there is nothing to break."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # who looks through all modules needs none of them
            raise AttributeError(name)
        if sys.modules.get(_DYNAMO) is self:
            del sys.modules[_DYNAMO]
        return getattr(importlib.import_module(_DYNAMO), name)
