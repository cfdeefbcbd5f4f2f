"""The table of distillers. Adding a method: one file here, one property file, one line in this table.

A distiller adds what a teacher knows to the losses of a training. It never touches masks.

The table names the files of methods. The others are what these have in common: ``base.py``, what every distiller is;
``teaching.py``, what a run asks of it; ``losses/``, formulas; the rest: lists, draws and networks to learn with.
Where teachers come from and what they say is the room ``teachers``.
"""

from __future__ import annotations

from recbole_prune.distillers.base import Distiller
from recbole_prune.methods import MethodTable

DISTILLERS: MethodTable[Distiller] = MethodTable(
    __name__,
    {
        "hint": ".latent:Hints",
        "de": ".latent:DistillationExperts",
        "phr": ".latent:PersonalisedHints",
        "ftd": ".latent:FullTopology",
        "htd": ".latent:HierarchicalTopology",
        "rd": ".ranking:RankingDistillation",
        "cd": ".collaborative:CollaborativeDistillation",
        "rrd": ".ranking:RelaxedRanking",
        "ir_rrd": ".ranking:ItemSideRanking",
        "de_rrd": ".ranking:ExpertsAndRanking",
        "hetcomp": ".heterogeneous:HeterogeneousCompression",
        "kd": ".logits:SoftTargets",
        "dcd": ".dual_correction:DualCorrection",
        "unkd": ".debiased:UnbiasedDistillation",
        "freqd": ".graph_hints:GraphHints",
        "rce_kd": ".rce:RejuvenatedCrossEntropy",
        "concf": ".consensus:ConsensusLearning",
        "sad": ".attention:AttentionDistillation",
    },
)

# the class of a distiller by its name in ``--distiller=``
get_distiller = DISTILLERS.class_of
