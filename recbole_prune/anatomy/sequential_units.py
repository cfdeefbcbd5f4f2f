"""The unit groups of sequential models (methods/attention_distillation_pruning.md, 7.0 and 7.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_prune.anatomy.unit_blocks import (
    equal,
    inputs,
    left,
    outputs,
    recurrent_inputs,
    recurrent_units,
    transformer,
    width,
)
from recbole_prune.anatomy.units import Anatomy, Counts, Finder


def _gru4rec(model: Any) -> Anatomy:
    units = list(recurrent_units(model, "gru_layers", [inputs("dense")]))
    tables = width(
        "width",
        model.embedding_size,
        recurrent_inputs("gru_layers"),
        *outputs(model, "dense"),
        tables=("item_embedding",),
    )

    def smaller(counts: Counts) -> dict[str, object] | None:
        size = equal(counts, [group.name for group in units])
        return None if size is None else {"hidden_size": size, "embedding_size": counts["width"]}

    return Anatomy([tables, *units], {"embedding_size": left("width")}, smaller)


def _transformer(path: str = "trm_encoder") -> Finder:
    def find(model: Any) -> Anatomy:
        groups, sizes = transformer(model, path)
        inner = [group.name for group in groups if group.kind == "neuron"]

        def smaller(counts: Counts) -> dict[str, object] | None:
            size = equal(counts, inner)
            whole = all(counts[group.name] == group.count for group in groups if group.name not in inner)
            return {"inner_size": size} if whole and size is not None else None

        return Anatomy(groups, sizes, smaller)

    return find


SEQUENTIAL: Mapping[str, Finder] = {
    "GRU4Rec": _gru4rec,
    **{name: _transformer() for name in ("SASRec", "BERT4Rec")},
}
