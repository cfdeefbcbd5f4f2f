"""The table of pruners. Adding a method: one file here, one property file, one line in this table."""

from __future__ import annotations

from recbole_prune.methods import MethodTable
from recbole_prune.pruners.base import Pruner

PRUNERS: MethodTable[Pruner] = MethodTable(
    __name__,
    {
        "none": ".dense:NoPruning",
        "imp": ".magnitude:IterativeMagnitudePruning",
        "omp": ".magnitude:OneShotMagnitudePruning",
        "random": ".random_mask:RandomPruning",
        "pep": ".learned_thresholds:LearnedThresholds",
        "magprune": ".post_training:PostTrainingMagnitudePruning",
        "static": ".dynamic_sparse:StaticSparseTraining",
        "dsl": ".dynamic_sparse:DynamicSparseTraining",
        "rigl": ".dynamic_sparse:DynamicSparseTraining",
        "set": ".dynamic_sparse:SparseEvolutionaryTraining",
        "lcm": ".smaller_tables:LinearCompression",
        "structured": ".structured:StructuredPruning",
        "sp_sad": ".attention_guided:PruningUnderDistillation",
        "lth_sad": ".attention_guided:PruningUnderDistillation",
        "ss_sad": ".attention_guided:SparseStudent",
        "small_dense": ".smaller_tables:SmallerDenseTables",
    },
)

# the class of a pruner by its name in ``--pruner=``
get_pruner = PRUNERS.class_of
