"""What heads can share with a model: its own loss and theirs reach the same tensors, and its objective is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from recbole.utils import KGDataLoaderState, get_model
from training_bench import Bench
from zoo import gradient_models, kind_of, missing_package

from recbole_prune.anatomy.losses import recommendation_loss
from recbole_prune.anatomy.shared_parts import (
    SharedTables,
    own_objective,
    reason_without_parts,
    shared_parts,
    sources_of,
)
from recbole_prune.anatomy.vectors import shared_propagation

QUICK = ["BPR", "LightGCN", "NeuMF", "MultiVAE"]
OF_USERS = [name for name in gradient_models() if kind_of(name) in ("general", "knowledge")]
# facts of RecBole's source: nothing stands for a user or for an item
WITHOUT_PARTS = ["NAIS", "DiffRec", "LDiffRec", "RippleNet"]


def built(name: str, data: Path) -> tuple[Any, Any]:
    """A model in training, and a batch."""
    if missing_package(name):
        pytest.skip(missing_package(name))
    bench = Bench(name, data)
    if hasattr(bench.train, "set_mode"):
        bench.train.set_mode(KGDataLoaderState.RSKG)
    model = bench.plain_model().train()
    if hasattr(model, "e_step"):
        model.e_step()
    return model, next(iter(bench.train))


@pytest.mark.parametrize("name", slow_but(QUICK, [name for name in OF_USERS if name not in WITHOUT_PARTS]))
def test_own_loss_and_heads_meet(name: str, tiny_data: Path) -> None:
    """Both have a gradient at the same tensors, and none is sent anywhere else by the way."""
    model, batch = built(name, tiny_data)
    assert reason_without_parts(type(model)) == ""
    parts, users, items = shared_parts(model), batch[model.USER_ID], torch.arange(1, 30)
    with shared_propagation(model):
        flag = {"encoder_flag": False} if name == "RecVAE" else {}
        losses = getattr(model, recommendation_loss(type(model)))(batch, **flag)
        own = sum(losses) if isinstance(losses, tuple) else losses
        of_users, of_items = parts.user_vectors(model, users), parts.item_vectors(model, items)
        assert of_users.shape == (len(users), parts.widths(model)[0])
        assert of_items.shape == (len(items), parts.widths(model)[1])
        for vectors, sources in zip((of_users, of_items), sources_of(model, users)):
            for loss in (own, vectors.square().sum()):
                found = torch.autograd.grad(loss, sources, retain_graph=True, allow_unused=True)
                assert any(gradient is not None and bool(gradient.any()) for gradient in found), sources
    assert all(weight.grad is None for weight in model.parameters())


def test_the_gradient_at_the_sources_is_that_of_the_tables(tiny_data: Path) -> None:
    """BPR: as the method's source has it, the gradient with respect to the user table and the item table."""
    model, batch = built("BPR", tiny_data)
    users, items = sources_of(model, batch["user_id"])
    assert users == [model.user_embedding.weight] and items == [model.item_embedding.weight]


def test_tables_are_shared_where_scores_are_no_products(tiny_data: Path) -> None:
    model, _ = built("NeuMF", tiny_data)
    parts = shared_parts(model)
    assert isinstance(parts, SharedTables) and parts.users == ("user_mf_embedding", "user_mlp_embedding")
    assert torch.equal(parts.user_vectors(model, torch.tensor([3]))[0, :16], model.user_mf_embedding.weight[3])
    model.mf_train = False
    assert shared_parts(model).items == ("item_mlp_embedding",)


@pytest.mark.parametrize("name", [*WITHOUT_PARTS, "DeepFM"])
def test_a_class_without_is_told_in_a_sentence(name: str) -> None:
    assert reason_without_parts(get_model(name)).startswith(f"{name} ")


def test_own_objectives(tiny_data: Path) -> None:
    found = {name: own_objective(built(name, tiny_data)[0]) for name in QUICK}
    assert found == {"BPR": "bpr", "LightGCN": "bpr", "NeuMF": "bce", "MultiVAE": "multinomial"}
