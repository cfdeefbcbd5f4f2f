"""Feature points of every model of RecBole: each says something of every row of a batch in one loss, as promised."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from recbole.data.interaction import Interaction
from recbole.utils import KGDataLoaderState, get_model
from training_bench import Bench
from zoo import NEW_IN_1_2_1, gradient_models, missing_package, not_prunable_models

from recbole_prune.anatomy.feature_points.context import WITHOUT
from recbole_prune.anatomy.feature_points.features import FIELDS, MAP, NODES, SEQUENCE, VECTOR, Feature
from recbole_prune.anatomy.feature_points.table import (
    POINTS,
    drawn_by,
    feature_points,
    features_of,
    reason_without_features,
)
from recbole_prune.anatomy.losses import recommendation_loss
from recbole_prune.anatomy.vectors import shared_propagation
from recbole_prune.distillers.losses.attention import energy

QUICK = ["BPR", "NeuMF", "SASRec"]
DIMENSIONS = {MAP: 4, SEQUENCE: 3, FIELDS: 3, VECTOR: 2, NODES: 2}

# facts of RecBole's source with the settings of the zoo (methods/attention_distillation_pruning.md, section 7): kinds,
# and how many of each; batches of pairs say everything of both items
_TABLES = {VECTOR: 3}
KINDS: dict[str, dict[str, int]] = {
    **dict.fromkeys(("BPR", "LINE", "UltraGCN", "FISM", "CFKG", "SimpleX", "NeuMF"), _TABLES),
    **{name: {VECTOR: 4} for name in ("CKE", "KTUP", "FPMC")},
    "ENMF": {VECTOR: 2},
    "NAIS": {SEQUENCE: 1, VECTOR: 1},
    "ConvNCF": {MAP: 2, VECTOR: 1},
    "NNCF": {VECTOR: 6},
    "DMF": {VECTOR: 6},
    "CDAE": {VECTOR: 1},
    **{name: {VECTOR: 3} for name in ("MultiDAE", "MultiVAE", "RaCT", "HRM", "NPE", "TransRec", "DeepFM", "WideDeep")},
    **{name: {VECTOR: 3} for name in ("FNN", "PNN", "DCNV2")},
    "RecVAE": {VECTOR: 6},
    "MacridVAE": {VECTOR: 20},
    "DiffRec": {VECTOR: 1},
    "LDiffRec": {VECTOR: 1},
    "LightGCN": {NODES: 8, VECTOR: 1},
    **{name: {NODES: 10, VECTOR: 1} for name in ("NCL", "SGL", "NGCF")},
    "DGCF": {NODES: 2, VECTOR: 1},
    "GCMC": {NODES: 4, VECTOR: 1},
    "SpectralCF": {NODES: 12, VECTOR: 1},
    **{name: {SEQUENCE: 2} for name in ("SASRec", "LightSANs", "S3Rec", "FEARec", "GRU4Rec")},
    **{name: {SEQUENCE: 3} for name in ("BERT4Rec", "SASRecF", "GCSAN", "GRU4RecF", "GRU4RecKG")},
    "FDSA": {SEQUENCE: 5, VECTOR: 1},
    "CORE": {SEQUENCE: 2, VECTOR: 1},
    **{name: {SEQUENCE: 2, VECTOR: 5} for name in ("SASRecCPR", "GRU4RecCPR")},
    "NARM": {SEQUENCE: 1, VECTOR: 1},
    "RepeatNet": {SEQUENCE: 4},
    "KSR": {SEQUENCE: 1, VECTOR: 3},
    "SRGNN": {SEQUENCE: 2, VECTOR: 2},
    "STAMP": {VECTOR: 2},
    "NextItNet": {SEQUENCE: 10},
    "Caser": {MAP: 6, VECTOR: 3},
    "DIN": {SEQUENCE: 3, VECTOR: 3},
    "DIEN": {SEQUENCE: 1, VECTOR: 4},
    **{name: {SEQUENCE: 1, VECTOR: 1} for name in ("HGN", "SHAN", "SINE")},
    "FOSSIL": {VECTOR: 2},
    "FM": {FIELDS: 1, VECTOR: 1},
    "FwFM": {FIELDS: 1, VECTOR: 1},
    "FFM": {FIELDS: 1},
    "AFM": {FIELDS: 2},
    **{name: {VECTOR: 4} for name in ("NFM", "DCN", "xDeepFM")},
    "AutoInt": {FIELDS: 4, VECTOR: 2},
    "FiGNN": {FIELDS: 3},
    "DSSM": {VECTOR: 6},
    "EulerNet": {FIELDS: 1},
    "KGAT": {NODES: 6, VECTOR: 1},
    **{name: {VECTOR: 1} for name in ("KGCN", "KGNNLS")},
    "KGIN": {NODES: 6, VECTOR: 1},
    "MCCLK": {NODES: 5, VECTOR: 1},
    "MKR": {VECTOR: 2},
    "RippleNet": {VECTOR: 2},
}
# the losses that compare two items of each row
OF_PAIRS = {
    *("BPR LINE ConvNCF LightGCN NCL SGL NGCF DGCF GCMC SpectralCF SimpleX FPMC".split()),
    *("CFKG CKE KTUP KGAT KGCN KGNNLS KGIN MCCLK".split()),
}


def test_every_class_has_points_or_a_reason() -> None:
    trained = set(gradient_models())
    assert set(POINTS) - NEW_IN_1_2_1 == trained - set(WITHOUT) - NEW_IN_1_2_1 and set(KINDS) == set(POINTS)
    for name in (name for name in gradient_models() if missing_package(name) is None):
        reason = reason_without_features(get_model(name))
        assert bool(reason) == (name in WITHOUT) and (not reason or reason.startswith(f"{name} "))
    for name in not_prunable_models():
        assert missing_package(name) or "no model of RecBole's that trains by gradient" in reason_without_features(
            get_model(name)
        )


def built(name: str, data: Path, **settings: Any) -> tuple[Any, Interaction]:
    """A model in training, and a batch."""
    if missing_package(name):
        pytest.skip(missing_package(name))
    bench = Bench(name, data, **{"train_batch_size": 64 if name != "SimpleX" else 1024, **settings})
    if hasattr(bench.train, "set_mode"):
        bench.train.set_mode(KGDataLoaderState.RSKG)
    return bench.plain_model().train(), next(iter(bench.train))


def in_its_loss(model: Any, batch: Interaction) -> list[Feature]:
    """What a student's points say in its own loss."""
    if hasattr(model, "e_step"):
        model.e_step()
    points = feature_points(model)
    flag = {"encoder_flag": False} if type(model).__name__ == "RecVAE" else {}
    with shared_propagation(model, points.noted):
        getattr(model, recommendation_loss(type(model)))(batch, **flag)
        return points.read(model, batch)


def promised(features: list[Feature], name: str, rows: int) -> None:
    """Kinds, names and shapes are those of the table."""
    counts = {kind: sum(feature.kind == kind for feature in features) for kind in DIMENSIONS}
    assert {kind: count for kind, count in counts.items() if count} == KINDS[name]
    assert len({feature.name for feature in features}) == len(features)
    for feature in features:
        assert feature.values.dim() == DIMENSIONS[feature.kind], feature.name
        assert len(feature.values) == rows * (2 if name in OF_PAIRS else 1), feature.name
        assert feature.values.isfinite().all(), feature.name
        assert (feature.valid is not None) == (feature.kind == SEQUENCE), feature.name
        if feature.valid is not None:
            assert feature.valid.shape == feature.values.shape[:2] and feature.valid.any(1).all(), feature.name
            assert feature.valid.dtype == torch.bool


@pytest.mark.parametrize("name", slow_but(QUICK, KINDS))
def test_points_say_what_is_promised_in_one_loss(name: str, tiny_data: Path) -> None:
    if name in NEW_IN_1_2_1 and name not in gradient_models():
        pytest.skip("RecBole 1.2.0 lacks it")
    model, batch = built(name, tiny_data)
    twin = copy.deepcopy(model)
    features = in_its_loss(model, batch)
    promised(features, name, len(batch))
    assert all(feature.values.requires_grad for feature in features)
    assert "forward" not in vars(model) and not any("forward" in vars(part) for part in model.modules())
    before = dict(batch.interaction)
    of_teacher = features_of(twin, batch)
    promised(of_teacher, name, len(batch))
    assert [feature.name for feature in of_teacher] == [feature.name for feature in features]
    assert not any(feature.values.requires_grad for feature in of_teacher) and twin.training
    assert dict(batch.interaction).keys() == before.keys()


def test_tables_are_rows_of_the_batch(tiny_data: Path) -> None:
    """Positive items first, then negative ones; users once for each."""
    model, batch = built("BPR", tiny_data)
    users, items, products = in_its_loss(model, batch)
    ids = torch.cat([batch[model.ITEM_ID], batch[model.NEG_ITEM_ID]])
    assert torch.equal(items.values, model.item_embedding(ids))
    assert torch.equal(users.values, model.user_embedding(batch[model.USER_ID].repeat(2)))
    assert torch.equal(products.values, users.values * items.values)


@pytest.mark.slow
def test_layers_of_a_graph_are_those_of_its_mean(tiny_data: Path) -> None:
    model, batch = built("LightGCN", tiny_data)
    features = {feature.name: feature.values for feature in in_its_loss(model, batch)}
    for side in ("users", "items"):
        layers = torch.stack([features[f"layer {number} {side}"] for number in range(model.n_layers + 1)])
        torch.testing.assert_close(layers.mean(0), features[f"mean {side}"])


@pytest.mark.slow
def test_a_teacher_needs_no_field_on_which_no_layer_depends(tiny_data: Path) -> None:
    """Neither labels nor negative items."""
    for name, student in (("NeuMF", "BPR"), ("ConvNCF", "NeuMF")):
        model, (_, batch) = built(name, tiny_data)[0], built(student, tiny_data)
        features = features_of(model.eval(), batch)
        assert features and all(len(feature.values) % len(batch) == 0 for feature in features)
        with pytest.raises(KeyError):
            features_of(model, Interaction({model.USER_ID: batch[model.USER_ID]}))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), [("DiffRec", {}), ("S3Rec", {"train_stage": "pretrain"})])
def test_what_a_loss_draws_is_given_to_a_teacher_of_the_same_class(
    name: str, settings: dict[str, Any], tiny_data: Path
) -> None:
    model, batch = built(name, tiny_data, **settings)
    model.eval()  # no dropout: the same weights and inputs say the same
    points = feature_points(model)
    with shared_propagation(model, points.noted):
        model.calculate_loss(batch)
        features, drawn = points.read(model, batch), drawn_by(model)
    twin = copy.deepcopy(model)
    same, other = features_of(twin, batch, drawn=drawn), features_of(twin, batch)
    for mine, theirs, own in zip(features, same, other):
        torch.testing.assert_close(theirs.values, mine.values)
        assert not torch.equal(own.values, mine.values)


@pytest.mark.parametrize(
    "name", slow_but(["SASRec"], ["SASRec", "LightSANs", "FEARec", "FDSA", "CORE", "GRU4Rec", "SHAN"])
)
def test_places_of_sequences_differ_in_energy(name: str, tiny_data: Path) -> None:
    """Behind a layer normalisation they would not, and the loss would be 0 whatever the layers say."""
    model, batch = built(name, tiny_data)
    for feature in in_its_loss(model.eval(), batch):
        if feature.kind == SEQUENCE:
            assert feature.valid is not None
            energies = energy(feature)[feature.valid].detach()
            assert float(energies.std() / energies.mean()) > 1e-3, feature.name


@pytest.mark.slow
def test_settings_decide_which_points_there_are(tiny_data: Path) -> None:
    assert [each.name for each in in_its_loss(*built("CORE", tiny_data, dnn_type="ave"))] == ["forward"]
    alone = in_its_loss(*built("NeuMF", tiny_data, mf_train=False))
    assert [each.name for each in alone] == ["mlp_layers.mlp_layers.2", "mlp_layers.mlp_layers.5"]
    with_two = in_its_loss(*built("KGCN", tiny_data, n_iter=2))
    assert [len(each.values) for each in with_two] == [128, 128]
    assert len(in_its_loss(*built("DCNV2", tiny_data, mixed=True))) == 3
