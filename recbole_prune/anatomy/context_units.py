"""The unit groups of context-aware models (methods/attention_distillation_pruning.md, 7.0 and 7.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_prune.anatomy.unit_blocks import inputs, left, linears, neurons, width
from recbole_prune.anatomy.units import Along, Anatomy, Counts, Finder


def tables(model: Any) -> list[Along]:
    """The columns of all tables that a context-aware model looks fields up in; they have one width."""
    roots = ("token_embedding_table", "token_seq_embedding_table", "float_embedding_table", "float_seq_embedding_table")
    return [
        Along(name, 1)
        for name, parameter in model.named_parameters()
        if name.startswith(roots) and parameter.dim() == 2 and parameter.shape[1] == model.embedding_size
    ]


def _deep(reader: str = "", *, expressed: bool = True) -> Finder:
    """Tables whose vectors, one after another, a network reads; ``reader`` reads the network."""

    def find(model: Any) -> Anatomy:
        layers = linears(model, "mlp_layers")
        first = inputs(layers[0], repeats=model.num_feature_field)
        dimensions = width("width", model.embedding_size, *tables(model), first)
        hidden = list(neurons(model, "mlp_layers", [inputs(reader)] if reader else []))

        def smaller(counts: Counts) -> dict[str, object] | None:
            sizes = [counts[group.name] for group in hidden]
            return {"embedding_size": counts["width"], "mlp_hidden_size": sizes} if expressed else None

        return Anatomy([dimensions, *hidden], {"embedding_size": left("width")}, smaller)

    return find


CONTEXT: Mapping[str, Finder] = {
    "DeepFM": _deep("deep_predict_layer"),
}
