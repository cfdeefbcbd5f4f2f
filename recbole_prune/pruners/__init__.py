"""The table of pruners. Adding a method: one file here, one property file, one line in this table."""

from __future__ import annotations

from importlib import import_module

from recbole_prune.pruners.base import Pruner

# where each class stands: a module of this package begins with a dot, one from elsewhere has its full name
PRUNERS = {
    "none": ".dense:NoPruning",
    "imp": ".magnitude:IterativeMagnitudePruning",
    "omp": ".magnitude:OneShotMagnitudePruning",
    "random": ".random_mask:RandomPruning",
    "magprune": ".post_training:PostTrainingMagnitudePruning",
    "static": ".dynamic_sparse:StaticSparseTraining",
    "dsl": ".dynamic_sparse:DynamicSparseTraining",
    "rigl": ".dynamic_sparse:DynamicSparseTraining",
    "set": ".dynamic_sparse:SparseEvolutionaryTraining",
    "lcm": ".smaller_tables:LinearCompression",
    "small_dense": ".smaller_tables:SmallerDenseTables",
}


def get_pruner(name: str) -> type[Pruner]:
    """The class of a pruner by its name in ``--pruner=``."""
    module, _, attribute = PRUNERS[name].partition(":")
    pruner: type[Pruner] = getattr(import_module(module, __name__), attribute)
    return pruner
