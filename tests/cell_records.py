"""Records as ``compare --to`` writes them, for tests of tables."""

from __future__ import annotations

from typing import Any


def cell_record(**changes: Any) -> dict[str, Any]:
    """A record of a finished cell."""
    usual = {
        "model": "BPR",
        "dataset": "d",
        "pruner": "omp",
        "distiller": None,
        "prune_target_sparsity": 0.9,
        "budget": None,
        "seed": 1,
        "folder": "f",
        "values": "fp32",
        "valid_metric": "NDCG@10",
        "sparsity": 0.9,
        "valid_score": 0.5,
        "test": {"ndcg@10": 0.4},
        "train_seconds": 1.0,
        "best_epoch": 1,
        "bytes": 100,
        "failure": None,
    }
    return {**usual, **changes}
