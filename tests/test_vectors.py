"""Where vectors and logits are: every model of RecBole against its own scores, and one propagation per step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import own_models
import pytest
import torch
from marks import slow_but
from recbole.data.interaction import Interaction
from recbole.utils import get_model, init_seed
from training_bench import Bench
from zoo import gradient_models, kind_of, missing_package, not_prunable_models, stages_of

from recbole_prune.anatomy import vectors as table
from recbole_prune.anatomy.caches import CACHES
from recbole_prune.anatomy.logits import batch_logits, pair_logits, reason_without_lists, score_rows
from recbole_prune.anatomy.vectors import (
    known_class,
    reason_without_vectors,
    scorer_of,
    shared_propagation,
    vectors_of,
)
from recbole_prune.errors import ConfigError
from recbole_prune.training.model import mask_aware

QUICK = ["BPR", "LightGCN", "NeuMF", "SASRec"]
ROWS, ITEMS = 5, 12

# facts of RecBole's source, kept apart from the table that is tested
WITHOUT_VECTORS = "NAIS DiffRec LDiffRec KGCN KGNNLS RippleNet RepeatNet GRU4RecCPR SASRecCPR DIN DIEN".split()
NOT_PLAIN_PRODUCTS = (
    "ENMF FISM ConvNCF NNCF NeuMF GCMC CDAE MultiDAE MultiVAE RaCT RecVAE MacridVAE KTUP CORE BERT4Rec TransRec".split()
)
SIGMOID_IN_FULL_SORT = ["DMF", "NAIS", "CDAE"]
SIGMOID_IN_PREDICT = ["DMF", "NAIS", "CDAE", "NeuMF", "NNCF", "DIN", "DIEN"]
PROBABILITIES = ["RepeatNet", "GRU4RecCPR", "SASRecCPR"]
# the models that draw random numbers where they score
RANDOM = ["KGIN", "MCCLK", "KTUP"]


def widened(model: Any) -> Any:
    """The model with larger weights, so that scores differ by more than rounding."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def built(name: str, data: Path) -> tuple[Any, Bench]:
    reason = missing_package(name)
    if reason:
        pytest.skip(f"{name}: {reason}")
    bench = Bench(name, data)
    return widened(bench.plain_model()), bench


def some_rows(bench: Bench, count: int = ROWS) -> Interaction:
    return next(iter(bench.train))[:count]


def own_scores(model: Any, rows: Interaction) -> torch.Tensor | None:
    """``full_sort_predict``, None where the model has none."""
    init_seed(7, True)
    for cache in CACHES:
        if hasattr(model, cache):
            setattr(model, cache, None)
    try:
        with torch.no_grad():
            return model.eval().full_sort_predict(rows).view(len(rows), -1)
    except NotImplementedError:
        return None


def own_predictions(model: Any, rows: Interaction, items: torch.Tensor) -> torch.Tensor:
    """``predict`` of every row with each of its items."""
    init_seed(7, True)
    pairs = rows.repeat_interleave(items.shape[1])
    pairs.update(Interaction({model.ITEM_ID: items.reshape(-1)}))
    with torch.no_grad():
        return model.eval().predict(pairs).view(items.shape)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * (1 + float(expected.abs().max())))


def test_no_model_is_missing() -> None:
    """A new class of RecBole or of ours is noticed here."""
    for name in gradient_models():
        if missing_package(name) is None:
            assert known_class(get_model(name)) is get_model(name), name
    assert set(table.SCORERS) == set(gradient_models())
    for name in not_prunable_models():
        assert missing_package(name) or name in reason_without_vectors(get_model(name))


def models_with_lists() -> list[str]:
    return [name for name in gradient_models() if kind_of(name) != "context"]


@pytest.mark.parametrize("name", slow_but(QUICK, models_with_lists()))
def test_vectors_and_logits_are_the_models_own(name: str, tiny_data: Path) -> None:
    model, bench = built(name, tiny_data)
    rows = some_rows(bench)
    count = bench.train._dataset.item_num
    items = torch.stack([torch.randperm(count - 1)[:ITEMS] + 1 for _ in range(ROWS)])
    full = own_scores(model, rows)
    model.eval()

    init_seed(7, True)
    logits = pair_logits(model, rows, items)
    assert logits.shape == (ROWS, ITEMS) and logits.requires_grad
    init_seed(7, True)
    everything = score_rows(model, rows)
    assert everything.shape == (ROWS, count) and not everything.requires_grad
    if name != "KTUP":  # its noise is drawn anew for every pair
        assert close(everything.gather(1, items), logits.detach())
        assert float(everything.std()) > 1e-3
    if full is not None:
        expected = logits.sigmoid() if name in SIGMOID_IN_FULL_SORT else logits
        expected = logits.exp() - 1e-8 if name in PROBABILITIES else expected
        assert close(expected.detach(), full.gather(1, items))
    if name not in ("GRU4RecCPR", "SASRecCPR", "CORE", "SHAN"):  # no predict(), or another score than in ranking
        expected = logits.sigmoid() if name in SIGMOID_IN_PREDICT else logits
        expected = logits.sigmoid().sigmoid() if name == "FISM" else expected
        expected = logits.exp() - 1e-8 if name in PROBABILITIES else expected
        assert close(expected.detach(), own_predictions(model, rows, items))
    init_seed(7, True)
    alone = batch_logits(model, rows)
    assert alone.shape == (ROWS,)
    init_seed(7, True)
    assert close(alone.detach(), pair_logits(model, rows, rows[model.ITEM_ID].unsqueeze(1))[:, 0].detach())

    check_vectors(name, model, rows, items, full)
    check_gradients(model, rows, items)


def check_vectors(name: str, model: Any, rows: Interaction, items: torch.Tensor, full: torch.Tensor | None) -> None:
    vectors = vectors_of(model)
    assert (vectors is None) == (name in WITHOUT_VECTORS)
    if vectors is None:
        assert reason_without_vectors(type(model)).startswith(f"{name} ")
        return
    assert reason_without_vectors(type(model)) == ""
    assert vectors.dot == (name not in NOT_PLAIN_PRODUCTS)
    assert vectors.of_rows == (kind_of(name) == "sequential")
    init_seed(7, True)
    with torch.no_grad(), shared_propagation(model):
        users, of_items = vectors.user_vectors(model, rows), vectors.item_vectors(model, items)
        whole = vectors.item_table(model)
    assert (users.shape[1], of_items.shape[2]) == vectors.widths(model)
    assert of_items.shape[:2] == items.shape
    assert torch.equal(of_items, whole[items]) or close(of_items, whole[items])
    if vectors.shared_space:
        assert users.shape[1] == of_items.shape[2]
        expected = own_predictions(model, rows, items) if full is None else full.gather(1, items)
        agree = close(torch.einsum("bd,bkd->bk", users, of_items), expected)
        agree |= name == "DMF" and close(torch.einsum("bd,bkd->bk", users, of_items).sigmoid(), expected)
        assert agree == vectors.dot
    init_seed(7, True)
    all_users, all_items = vectors.tables(model)
    assert not all_items.requires_grad and (name in RANDOM or close(all_items, whole))
    assert (all_users is None) == vectors.of_rows
    assert bool(all_items.isfinite().all())
    if all_users is not None:
        assert not all_users.requires_grad and bool(all_users.isfinite().all())
        ids = rows[model.USER_ID]
        assert name in RANDOM or close(all_users[ids], users)
        init_seed(7, True)
        assert close(vectors.user_vectors(model, ids).detach(), users)


def check_gradients(model: Any, rows: Interaction, items: torch.Tensor) -> None:
    """Gradients reach every embedding table that the score reads; teachers' scores leave none."""
    model.zero_grad()
    model.train()
    if hasattr(model, "e_step"):
        model.e_step()
    pair_logits(model, rows, items).square().sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any("emb" in name or "linear" in name or "coder" in name or "mlp" in name or "item_matrix" in name
               for name in reached), reached
    vectors = vectors_of(model)
    if vectors is not None:
        model.zero_grad()
        (vectors.user_vectors(model, rows).sum() + vectors.item_vectors(model, items).sum()).backward()
        assert sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None) > 0
