"""Where vectors and logits are: every model of RecBole against its own scores, and one propagation per step."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import own_models
import pytest
import torch
from marks import slow_but
from recbole.data.interaction import Interaction
from recbole.utils import KGDataLoaderState, get_model
from training_bench import Bench
from zoo import NEW_IN_1_2_1, gradient_models, kind_of, missing_package, not_prunable_models

from recbole_prune.anatomy import shared_calls, vector_scorers
from recbole_prune.anatomy import vectors as table
from recbole_prune.anatomy.caches import CACHES
from recbole_prune.anatomy.logits import batch_logits, pair_logits, product_tables, row_logits, score_rows, user_logits
from recbole_prune.anatomy.vectors import (
    field_vectors,
    known_class,
    reason_without_fields,
    reason_without_lists,
    reason_without_vectors,
    scorer_of,
    shared_propagation,
    vectors_of,
)
from recbole_prune.data.random_streams import random_state, set_random_state
from recbole_prune.errors import ConfigError
from recbole_prune.scoring.known_scores import contradiction
from recbole_prune.training.model import mask_aware

QUICK = ["BPR", "LightGCN", "NeuMF", "SASRec"]
ROWS, ITEMS = 5, 12
STREAMS = random_state()
COUNTS = (121, 241)  # users and items of the data, with padding

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
    if hasattr(bench.train, "set_mode"):
        bench.train.set_mode(KGDataLoaderState.RS)
    return next(iter(bench.train))[:count]


def own_scores(model: Any, rows: Interaction) -> torch.Tensor | None:
    """``full_sort_predict``, None where the model has none."""
    set_random_state(STREAMS)
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
    set_random_state(STREAMS)
    pairs = rows.repeat_interleave(items.shape[1])
    pairs.update(Interaction({model.ITEM_ID: items.reshape(-1)}))
    with torch.no_grad():
        return model.eval().predict(pairs).view(items.shape)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    found, expected = found.detach(), expected.detach()
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * (1 + float(expected.abs().max())))


def test_no_model_is_missing() -> None:
    """A new class of RecBole or of ours is noticed here."""
    for name in gradient_models():
        if missing_package(name) is None:
            assert known_class(get_model(name)) is get_model(name), name
    assert set(table.SCORERS) - NEW_IN_1_2_1 == set(gradient_models()) - NEW_IN_1_2_1
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

    set_random_state(STREAMS)
    logits = pair_logits(model, rows, items)
    assert logits.shape == (ROWS, ITEMS) and logits.requires_grad
    set_random_state(STREAMS)
    everything = score_rows(model, rows)
    assert everything.shape == (ROWS, count) and not everything.requires_grad
    set_random_state(STREAMS)
    assert close(row_logits(model, rows), everything)
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
    rows.update(Interaction({model.ITEM_ID: items[:, 0]}))  # loaders of whole users have no items
    set_random_state(STREAMS)
    alone = batch_logits(model, rows)
    assert alone.shape == (ROWS,)
    set_random_state(STREAMS)
    assert close(alone.detach(), pair_logits(model, rows, items[:, :1])[:, 0].detach())

    assert contradiction(model, rows) == ""
    if kind_of(name) != "sequential" and name not in RANDOM:
        check_user_logits(name, model, rows[model.USER_ID], items[0])
    check_vectors(name, model, rows, items, full)
    check_gradients(model, rows, items)


def check_user_logits(name: str, model: Any, users: torch.Tensor, items: torch.Tensor) -> None:
    """The logits of users for items are those of items for users; padding and repeated users are as good as others."""
    among = torch.stack([users.roll(place) for place in range(len(items))])
    among[0, 1] = among[0, 0]
    with torch.no_grad():
        found = user_logits(model, items, among)
        expected = pair_logits(model, among.reshape(-1), items.repeat_interleave(len(users)).unsqueeze(1))
        with mock.patch.object(vector_scorers, "_DRAWS_OF_USER", 0):  # nearly all users may occur
            of_all = user_logits(model, items, among)
            tables = product_tables(model, among.numel())
    assert found.shape == among.shape
    assert close(found, expected.view(among.shape)) and close(of_all, found)
    vectors = vectors_of(model)
    assert (tables is None) == (vectors is None or not vectors.dot)
    if tables is not None:
        assert close(torch.einsum("nd,nkd->nk", tables[1][items], tables[0][among]), found)


def check_vectors(name: str, model: Any, rows: Interaction, items: torch.Tensor, full: torch.Tensor | None) -> None:
    vectors = vectors_of(model)
    assert (vectors is None) == (name in WITHOUT_VECTORS)
    if vectors is None:
        assert reason_without_vectors(type(model)).startswith(f"{name} ")
        return
    assert reason_without_vectors(type(model)) == "" and "not context-aware" in reason_without_fields(type(model))
    assert vectors.dot == (name not in NOT_PLAIN_PRODUCTS)
    assert vectors.of_rows == (kind_of(name) == "sequential")
    set_random_state(STREAMS)
    with torch.no_grad(), shared_propagation(model):
        users, of_items = vectors.user_vectors(model, rows), vectors.item_vectors(model, items)
        whole = vectors.item_table(model)
    assert (users.shape[1], of_items.shape[2]) == vectors.widths(model)
    assert of_items.shape[:2] == items.shape
    assert vectors.item_vectors(model, items[0, :0]).shape == (0, of_items.shape[2]), "a batch without negatives"
    assert torch.equal(of_items, whole[items]) or close(of_items, whole[items])
    if vectors.shared_space:
        assert users.shape[1] == of_items.shape[2]
        expected = own_predictions(model, rows, items) if full is None else full.gather(1, items)
        agree = close(torch.einsum("bd,bkd->bk", users, of_items), expected)
        agree |= name == "DMF" and close(torch.einsum("bd,bkd->bk", users, of_items).sigmoid(), expected)
        assert agree == vectors.dot
    set_random_state(STREAMS)
    all_users, all_items = vectors.tables(model)
    assert not all_items.requires_grad and (name in RANDOM or close(all_items, whole))
    assert (all_users is None) == vectors.of_rows
    assert bool(all_items.isfinite().all())
    if all_users is not None:
        assert not all_users.requires_grad and bool(all_users.isfinite().all())
        ids = rows[model.USER_ID]
        assert name in RANDOM or close(all_users[ids], users)
        set_random_state(STREAMS)
        assert close(vectors.user_vectors(model, ids).detach(), users)


def check_gradients(model: Any, rows: Interaction, items: torch.Tensor) -> None:
    """Gradients reach every embedding table that the score reads; teachers' scores leave none."""
    model.zero_grad()
    model.train()
    if hasattr(model, "e_step"):
        model.e_step()
    pair_logits(model, rows, items).square().sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    wide = [p for p in model.parameters() if p.ndim == 2 and max(p.shape) >= min(COUNTS) and p.requires_grad]
    assert any(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in wide), reached
    vectors = vectors_of(model)
    if vectors is not None:
        model.zero_grad()
        (vectors.user_vectors(model, rows).sum() + vectors.item_vectors(model, items).sum()).backward()
        assert sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None) > 0


CONTEXT = [name for name in gradient_models() if kind_of(name) == "context"]


@pytest.mark.parametrize("name", slow_but(["DeepFM", "DCNV2"], CONTEXT))
def test_logits_of_batches_of_fields(name: str, tiny_data: Path) -> None:
    """A sigmoid stands between them and ``predict``; rows have neither vectors nor lists of items."""
    model, bench = built(name, tiny_data)
    model.eval()
    rows = some_rows(bench, 8)
    logits = batch_logits(model, rows)
    with torch.no_grad():
        assert close(logits.sigmoid(), model.predict(rows).reshape(8))
    assert logits.shape == (8,) and float(logits.std()) > 1e-3
    assert contradiction(model, rows) == ""
    logits.square().sum().backward()
    assert any(float(p.grad.abs().sum()) > 0 for p in model.parameters() if p.grad is not None and p.ndim == 2)
    token_table = model.token_embedding_table.embedding.weight
    # the score reads these vectors and no others
    assert (reason_without_fields(type(model)) == "") == (token_table.grad is not None)
    if token_table.grad is not None:
        token_table.grad = None
        fields = field_vectors(model, rows)
        assert fields.shape == (8, model.num_feature_field * model.embedding_size)
        fields.sum().backward()
        assert int((token_table.grad.abs().sum(1) > 0).sum()) > 8
    assert vectors_of(model) is None
    assert "bundles of fields" in reason_without_vectors(type(model))
    with pytest.raises(ConfigError, match=f"{name} reads bundles of fields, so its rows have no lists of items"):
        pair_logits(model, rows, torch.ones(8, 1, dtype=torch.long))


SETTINGS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "NeuMF without factorisation": ("NeuMF", {"mf_train": False}, False),
    "CFKG with distances": ("CFKG", {"loss_function": "transe"}, False),
    "MKR by a network": ("MKR", {"use_inner_product": False}, False),
    "MCCLK with a sigmoid": ("MCCLK", {"loss_type": "BCE"}, True),
    "CDAE with relu": ("CDAE", {"out_activation": "relu"}, False),
    "SimpleX with attention": ("SimpleX", {"aggregator": "user_attention"}, True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_change_a_score(name: str, tiny_data: Path) -> None:
    model_name, settings, dot = SETTINGS[name]
    bench = Bench(model_name, tiny_data, **settings)
    model = widened(bench.plain_model()).eval()
    rows, items = some_rows(bench), torch.arange(1, 1 + ITEMS).expand(ROWS, -1)
    vectors, scorer = vectors_of(model), scorer_of(model)
    assert vectors is not None and scorer is not None and vectors.dot == dot
    set_random_state(STREAMS)
    logits = pair_logits(model, rows, items)
    scores = own_predictions(model, rows, items)
    expected = {"MKR": logits.sigmoid(), "MCCLK": logits.sigmoid(), "NeuMF": logits.sigmoid(), "CDAE": logits.relu()}
    assert close(expected.get(model_name, logits), scores)
    assert contradiction(model, rows) == ""
    assert float(logits.std()) > 1e-3
    with shared_propagation(model):
        set_random_state(STREAMS)
        users, of_items = vectors.user_vectors(model, rows), vectors.item_vectors(model, items)
    if dot:
        assert close(torch.einsum("bd,bkd->bk", users, of_items), logits)
    assert (users.shape[1], of_items.shape[2]) == vectors.widths(model)


def counted(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[Any]:
    """The results of every call of a method from now on."""
    results: list[Any] = []
    method = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        results.append(method(*arguments, **named))
        return results[-1]

    monkeypatch.setattr(owner, name, call)
    return results


def added(model: Any, rows: Interaction) -> dict[str, torch.Tensor]:
    """A term of vectors and one of logits."""
    vectors = vectors_of(model)
    assert vectors is not None
    items = torch.arange(1, 9).expand(len(rows), -1)
    users, of_items = vectors.user_vectors(model, rows), vectors.item_vectors(model, items)
    return {"v": users.square().sum() + of_items.square().sum(), "l": pair_logits(model, rows, items).square().sum()}


SHARING = {
    "LightGCN": "forward",
    "SASRec": "forward",
    "NCL": "forward",
    "SGL": "forward",
    "MultiVAE": "forward",
    "CDAE": "forward",
    "GRU4Rec": "forward",
    "FEARec": "forward",
    "GCMC": "GcEncoder.forward",
    "KGIN": "forward",
}


@pytest.mark.parametrize("name", slow_but(["LightGCN", "MultiVAE"], SHARING))
def test_one_propagation_per_step(name: str, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added to a loss propagates no more; the loss itself draws and computes what it does alone."""
    # with these FEARec calls forward twice with the same rows, for two draws of dropout
    contrast = {"contrast": "us_x", "sim": "dot", "tau": 1.0, "lmd": 0.1, "lmd_sem": 0.1}
    bench = Bench(name, tiny_data, **(contrast if name == "FEARec" else {}))
    model = mask_aware_model(bench)
    rows = some_rows(bench, 64)
    owner = model.get_submodule(SHARING[name].rpartition(".")[0])
    results = counted(monkeypatch, type(owner), "forward")

    set_random_state(STREAMS)
    alone = total(model.calculate_loss(rows))
    stream = torch.get_rng_state()
    calls = len(results)
    results.clear()

    seen: dict[str, torch.Tensor] = {}

    def losses(batch: Interaction) -> dict[str, torch.Tensor]:
        seen.update(added(model, batch))
        return seen

    model.added_losses = losses
    set_random_state(STREAMS)
    together = total(model.calculate_loss(rows))
    assert len(results) == calls
    assert torch.equal(torch.get_rng_state(), stream)
    assert torch.equal(together, alone + seen["v"] + seen["l"])

    assert "forward" not in vars(owner) and not shared_calls._open
    assert all(getattr(model, cache, None) is None for cache in CACHES)
    assert not any(module._forward_hooks for module in model.modules())
    added(model, rows)
    assert len(results) > calls  # nothing is remembered any more


def mask_aware_model(bench: Bench) -> Any:
    model = bench.model()
    model.train()
    if hasattr(model, "e_step"):
        model.e_step()
    return model


def total(losses: Any) -> torch.Tensor:
    return sum(losses) if isinstance(losses, tuple) else losses


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", slow_but(["LightGCN"], ["LightGCN", "GCMC", "DGCF", "MultiDAE"]))
def test_gradients_of_shared_calls_are_the_sum_of_separate_ones(name: str, tiny_data: Path) -> None:
    bench = Bench(name, tiny_data, dropout_prob=0.0, cor_weight=0.0)
    model = mask_aware_model(bench)
    rows = some_rows(bench, 64)
    separate = gradients(model, total(model.calculate_loss(rows)))
    for key, value in gradients(model, sum(added(model, rows).values())).items():
        separate[key] = separate[key] + value
    model.added_losses = lambda batch: added(model, batch)
    together = gradients(model, total(model.calculate_loss(rows)))
    assert together.keys() == separate.keys()
    for key, value in together.items():
        assert torch.allclose(value, separate[key], rtol=1e-4, atol=1e-5 * (1 + float(value.abs().max()))), key


def test_a_failed_step_leaves_nothing(tiny_data: Path) -> None:
    bench = Bench("LightGCN", tiny_data)
    model = bench.plain_model()
    with pytest.raises(IndexError), shared_propagation(model), shared_propagation(model):
        model.forward()[3]
    assert "forward" not in vars(model) and not shared_calls._open


def test_training_and_evaluation_do_not_share(tiny_data: Path) -> None:
    """Tables of a teacher, and a full pass of a student in its step, have neither gradients nor dropout."""
    bench = Bench("NGCF", tiny_data, message_dropout=0.5)
    model = bench.plain_model().train()
    vectors = vectors_of(model)
    assert vectors is not None
    model.eval()
    if not close(model.forward()[0], model.forward()[0]):
        pytest.skip("NGCF of RecBole 1.2.0 drops out in evaluation too")
    model.train()
    with shared_propagation(model):
        dropped = model.forward()[0]
        users, _ = vectors.tables(model)
        ranked = score_rows(model, torch.arange(1, 4))
        assert vectors.user_vectors(model, torch.arange(1, 4)).requires_grad
    assert model.training and users is not None and not users.requires_grad and not ranked.requires_grad
    assert not torch.allclose(dropped, users)
    assert all(getattr(model, cache, None) is None for cache in CACHES)
    model.eval()
    assert close(users, model.forward()[0])


def test_a_teacher_in_chunks_propagates_once(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("LightGCN", tiny_data)
    model = bench.plain_model().eval()
    results = counted(monkeypatch, type(model), "forward")
    with torch.no_grad(), shared_propagation(model):
        chunks = [score_rows(model, part) for part in torch.arange(1, 100).split(10)]
    assert len(results) == 1
    assert close(torch.cat(chunks), own_scores(model, Interaction({"user_id": torch.arange(1, 100)})))


@pytest.mark.parametrize("name", ["EASE", "Pop"])
def test_other_teachers_score_as_they_rank(name: str, tiny_data: Path) -> None:
    bench = Bench(name, tiny_data)
    model = bench.plain_model()
    if name == "Pop":
        model.calculate_loss(some_rows(bench, 64))
    scores = score_rows(model, torch.arange(1, 4))
    assert scores.shape == (3, bench.train._dataset.item_num)
    assert torch.equal(scores, model.full_sort_predict(Interaction({"user_id": torch.arange(1, 4)})).reshape(3, -1))
    with pytest.raises(ConfigError, match=f"^{name} is no model of RecBole's that trains by gradient"):
        pair_logits(model, torch.arange(1, 4), torch.ones(3, 1, dtype=torch.long))


def test_a_context_aware_teacher_reads_features_of_users_and_items(tiny_data: Path) -> None:
    model, bench = built("DeepFM", tiny_data)
    dataset = bench.train._dataset
    rows = dataset.join(Interaction({"user_id": torch.tensor([3, 5]), "item_id": torch.tensor([1, 1])}))
    scores = score_rows(model, rows, dataset.get_item_feature())
    pair = dataset.join(Interaction({"user_id": torch.tensor([5]), "item_id": torch.tensor([7])}))
    assert scores.shape == (2, dataset.item_num)
    assert close(scores[1, 7], batch_logits(model.eval(), pair)[0])
    with pytest.raises(ConfigError, match="DeepFM scores pairs and needs the features of the items"):
        score_rows(model, rows)


def test_subclasses_are_known_and_others_are_not(tiny_data: Path) -> None:
    bench = Bench("LightGCN", tiny_data)
    deeper = bench.plain_model(own_models.Deeper)
    vectors = vectors_of(deeper)
    assert vectors is not None and vectors.dot and reason_without_vectors(own_models.Deeper) == ""
    rows = Interaction({"user_id": torch.arange(1, 9)})
    assert close(score_rows(deeper, rows), own_scores(deeper, rows))
    assert contradiction(deeper, rows) == ""
    assert known_class(mask_aware(own_models.Deeper)) is get_model("LightGCN")
    assert known_class(mask_aware(own_models.Biased)) is None
    namesake = type("LightGCN", (own_models.Biased,), {})
    assert known_class(namesake) is None
    for reason in (r(namesake) for r in (reason_without_vectors, reason_without_lists, reason_without_fields)):
        assert reason.startswith("LightGCN is no model of RecBole's") and "inherits from none" in reason


def test_a_subclass_that_scores_otherwise_is_noticed(tiny_data: Path) -> None:
    model = widened(Bench("BPR", tiny_data).plain_model(own_models.BPR)).train()
    rows = Interaction({"user_id": torch.arange(1, 9)})
    stream = torch.get_rng_state()
    assert contradiction(model, rows).startswith("the scores of own_models.BPR are not those of RecBole's BPR")
    assert model.training and torch.equal(torch.get_rng_state(), stream)
    assert contradiction(Bench("BPR", tiny_data).plain_model(own_models.Biased), rows).startswith("Biased is no model")


@pytest.mark.parametrize("name", slow_but(["BPR"], ["BPR", "LightGCN", "FISM", "SASRec", "KSR"]))
def test_compact_tables_give_the_same_logits_and_gradients(name: str, tiny_data: Path) -> None:
    bench = Bench(name, tiny_data)
    masks, found = bench.masks(0.3), {}
    for storage in ("masked", "compact"):
        model = bench.model(masks, storage).eval()
        rows, items = some_rows(bench), torch.arange(1, 1 + ITEMS).expand(ROWS, -1)
        logits = pair_logits(model, rows, items)
        logits.square().sum().backward()
        few = pair_logits(model, rows, items[:, :2])  # by the rows of the items, not the whole table
        vectors = vectors_of(model)
        assert vectors is not None
        grad = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
        found[storage] = logits, few, score_rows(model, rows), vectors.tables(model)[1], torch.tensor([grad])
    for masked, compact in zip(*found.values()):
        assert close(masked, compact)
    assert close(found["masked"][0][:, :2], found["masked"][1])
