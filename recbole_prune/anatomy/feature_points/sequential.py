"""The feature points of RecBole's sequential models: one entry per class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable

import torch
from recbole.data.interaction import Interaction

from recbole_prune.anatomy.feature_points.features import MAP, SEQUENCE, VECTOR, Calls, FeaturePoints, Point
from recbole_prune.anatomy.feature_points.places import NoPadding, activations, encoder_layers, output, results

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

Build = Callable[["AbstractRecommender"], FeaturePoints]


def hidden(path: str, *, pick: int | None = None, argument: int = 0, name: str = "") -> Point:
    """What a module gives for every place of a sequence.

    Args:
        path: of the module.
        pick: which part of its result.
        argument: which argument of the model's ``forward`` the sequence is.
        name: of the point; "" for the path.
    """
    return output(path, SEQUENCE, pick=pick, valid=NoPadding(argument), name=name)


def looked_up(table: str, field: str) -> Point:
    """Rows of a table for the ids in a field of the batch, which an attribute of the model names.

    Those of a positive item are followed by those of a negative one where the batch has some.
    """

    def read(model: AbstractRecommender, batch: Interaction) -> Calls:
        names = [getattr(model, field), *([model.NEG_ITEM_ID] if field == "ITEM_ID" else [])]
        return [getattr(model, table)(batch[name]) for name in names if name in batch]

    return Point(f"{table} of {field}", VECTOR, read)


def last_items(table: str) -> Point:
    """Rows of a table for the last items of sequences."""

    def read(model: AbstractRecommender, batch: Interaction) -> Calls:
        places = (batch[model.ITEM_SEQ_LEN] - 1).unsqueeze(1)
        return [getattr(model, table)(batch[model.ITEM_SEQ].gather(1, places).squeeze(1))]

    return Point(f"{table} of last items", VECTOR, read)


# the vector of a row that a model scores with
_ROW = output("forward()", name="forward")


def _fixed(*points: Point) -> Build:
    return lambda model: FeaturePoints(points)


def _encoder(path: str, *more: Point) -> Build:
    return lambda model: FeaturePoints((*encoder_layers(model, path), *more))


def _s3rec(model: AbstractRecommender) -> FeaturePoints:
    """Pretraining draws masks, and goes on from the masked sequence to its segments: the first call."""
    return FeaturePoints(encoder_layers(model, "trm_encoder", calls=slice(1)), drawn="forward")


def _fearec(model: AbstractRecommender) -> FeaturePoints:
    """Its loss goes through the sequence, again with other draws of dropout, and through one of the same next item."""

    def run(model: AbstractRecommender, batch: Interaction) -> object:
        return model.forward(batch[model.ITEM_SEQ], batch[model.ITEM_SEQ_LEN])

    return FeaturePoints(encoder_layers(model, "item_encoder", calls=slice(1)), run=run)


def _fdsa(model: AbstractRecommender) -> FeaturePoints:
    encoders = (encoder_layers(model, f"{side}_trm_encoder") for side in ("item", "feature"))
    attention = hidden("feature_att_layer", pick=0)
    return FeaturePoints((*(point for points in encoders for point in points), attention, output("concat_layer")))


def _core(model: AbstractRecommender) -> FeaturePoints:
    """Without a transformer (``dnn_type=ave``) there is the vector of the session only."""
    if model.dnn_type != "trm":
        return FeaturePoints((_ROW,))
    return FeaturePoints((*encoder_layers(model, "net.trm_encoder"), _ROW))


def _facets(model: AbstractRecommender) -> tuple[Point, ...]:
    """What each facet makes of the last place of a sequence."""
    count = len(model.project_arr)
    return tuple(output(f"project_arr.{number}", change=lambda values: values[:, -1]) for number in range(count))


def _sasreccpr(model: AbstractRecommender) -> FeaturePoints:
    return FeaturePoints((*encoder_layers(model, "trm_encoder"), *_facets(model)))


def _gru4reccpr(model: AbstractRecommender) -> FeaturePoints:
    return FeaturePoints((hidden("gru_layers", pick=0), hidden("dense"), *_facets(model)))


def _of_session_graph(model: AbstractRecommender, batch: Interaction) -> Calls:
    """The vectors of the distinct items of a sequence, put at the places of the sequence."""
    [nodes], [(places, *_)] = results(model, "gnn.forward"), results(model, "_get_slice")
    return [nodes.gather(1, places.unsqueeze(2).expand(-1, -1, nodes.shape[2]))]


_SESSION_GRAPH = Point("gnn", SEQUENCE, _of_session_graph, ("gnn.forward", "_get_slice", "forward"), NoPadding())


def _repeatnet(model: AbstractRecommender) -> FeaturePoints:
    """The attention of its three parts, whose ``forward`` it calls by name."""
    parts = ("repeat_explore_mechanism", "repeat_recommendation_decoder", "explore_recommendation_decoder")
    return FeaturePoints((hidden("gru", pick=0), *(hidden(f"{part}.tanh") for part in parts)))


def _ksr(model: AbstractRecommender) -> FeaturePoints:
    def of_items(model: AbstractRecommender, batch: Interaction) -> Calls:
        vectors = results(model, "dense_layer_i.forward")
        # a loss over all items puts them all through the layer
        return [vectors[0][batch[model.ITEM_ID]]] if model.loss_type == "CE" else vectors

    items = Point("dense_layer_i", VECTOR, of_items, ("dense_layer_i.forward",))
    return FeaturePoints((hidden("gru_layers", pick=0), output("dense"), output("dense_layer_u"), items))


def _nextitnet(model: AbstractRecommender) -> FeaturePoints:
    return FeaturePoints(tuple(hidden(f"residual_blocks.{number}") for number in range(len(model.residual_blocks))))


def _caser(model: AbstractRecommender) -> FeaturePoints:
    """The vertical filters have no places, only coordinates of the items' vectors, so what they give is a vector."""
    across = tuple(output(f"conv_h.{number}", MAP) for number in range(len(model.conv_h) if model.n_h else 0))
    down = (output("conv_v", change=lambda values: values.flatten(1)),) if model.n_v else ()
    return FeaturePoints((*across, *down, output("fc1"), output("fc2")))


def _din(model: AbstractRecommender) -> FeaturePoints:
    attention = activations(model, "attention.att_mlp_layers", SEQUENCE, valid=NoPadding(1))
    return FeaturePoints((*attention, *activations(model, "dnn_mlp_layers")))


def _dien(model: AbstractRecommender) -> FeaturePoints:
    interests = hidden("interset_extractor", pick=0, argument=1)
    return FeaturePoints((interests, output("interest_evolution"), *activations(model, "dnn_mlp_layers")))


def _sine(model: AbstractRecommender) -> FeaturePoints:
    def attention(model: AbstractRecommender, batch: Interaction) -> Calls:
        return [torch.tanh(model.item_embedding(batch[model.ITEM_SEQ]) @ model.w1)]

    return FeaturePoints((Point("tanh(x @ w1)", SEQUENCE, attention, ("forward",), NoPadding()), _ROW))


_MARKOV = (_ROW, looked_up("item_embedding", "ITEM_ID"))

SEQUENTIAL: dict[str, Build] = {
    **{name: _encoder("trm_encoder") for name in ("SASRec", "LightSANs")},
    "BERT4Rec": _encoder("trm_encoder", hidden("output_ffn")),
    "S3Rec": _s3rec,
    "SASRecF": _encoder("trm_encoder", hidden("concat_layer")),
    "FDSA": _fdsa,
    "FEARec": _fearec,
    "CORE": _core,
    "SASRecCPR": _sasreccpr,
    "GCSAN": _encoder("self_attention", _SESSION_GRAPH),
    "GRU4Rec": _fixed(hidden("gru_layers", pick=0), hidden("dense")),
    "GRU4RecF": _fixed(hidden("item_gru_layers", pick=0), hidden("feature_gru_layers", pick=0), hidden("dense_layer")),
    "GRU4RecKG": _fixed(hidden("item_gru_layers", pick=0), hidden("entity_gru_layers", pick=0), hidden("dense_layer")),
    "GRU4RecCPR": _gru4reccpr,
    "NARM": _fixed(hidden("gru", pick=0), output("b")),
    "RepeatNet": _repeatnet,
    "KSR": _ksr,
    "SRGNN": _fixed(_SESSION_GRAPH, hidden("linear_two"), output("linear_one"), output("linear_transform")),
    "STAMP": _fixed(output("mlp_a"), output("mlp_b")),
    "NextItNet": _nextitnet,
    "Caser": _caser,
    "DIN": _din,
    "DIEN": _dien,
    "HGN": _fixed(hidden("feature_gating()"), _ROW),
    "SHAN": _fixed(hidden("long_w"), _ROW),
    "HRM": _fixed(looked_up("user_embedding", "USER_ID"), *_MARKOV),
    "NPE": _fixed(looked_up("user_embedding", "USER_ID"), *_MARKOV),
    "FOSSIL": _fixed(*_MARKOV),
    "FPMC": _fixed(
        looked_up("UI_emb", "USER_ID"),
        looked_up("IU_emb", "ITEM_ID"),
        last_items("LI_emb"),
        looked_up("IL_emb", "ITEM_ID"),
    ),
    "TransRec": _fixed(looked_up("user_embedding", "USER_ID"), last_items("item_embedding"), _ROW),
    "SINE": _sine,
}
