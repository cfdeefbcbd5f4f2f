"""The table of pruners. Adding a method: one file here, one property file, one line in this table."""

from __future__ import annotations

from importlib import import_module

from recbole_prune.pruners.base import Pruner

PRUNERS = {
    "none": "dense:NoPruning",
    "imp": "magnitude:IterativeMagnitudePruning",
    "omp": "magnitude:OneShotMagnitudePruning",
    "random": "random_mask:RandomPruning",
    "magprune": "post_training:PostTrainingMagnitudePruning",
    "static": "dynamic_sparse:StaticSparseTraining",
    "dsl": "dynamic_sparse:DynamicSparseTraining",
    "rigl": "dynamic_sparse:DynamicSparseTraining",
    "set": "dynamic_sparse:DynamicSparseTraining",
    "lcm": "smaller_tables:LinearCompression",
    "small_dense": "smaller_tables:SmallerDenseTables",
}


def get_pruner(name: str) -> type[Pruner]:
    """The class of a pruner by its name in ``--pruner=``."""
    module, _, attribute = PRUNERS[name].partition(":")
    pruner: type[Pruner] = getattr(import_module(f"{__name__}.{module}"), attribute)
    return pruner
