"""ConCF on a model: what a batch adds, who ranks when, and that nothing of it stays."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from distilling import Classroom, require_equal
from teachers import refusal
from torch.nn import functional
from training_bench import scramble_random_streams
from zoo import DATASET, config_for

from recbole_prune.anatomy.caches import CACHES
from recbole_prune.anatomy.logits import pair_logits
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.data.random_streams import have_moved, random_state
from recbole_prune.distillers import get_distiller
from recbole_prune.distillers.heads import HEADS
from recbole_prune.distillers.losses.listwise import plackett_luce
from recbole_prune.distillers.teaching import Teaching
from recbole_prune.errors import TrainingError
from recbole_prune.run.workshop import Workshop
from recbole_prune.training.session import Session

SMALL = {"distill_list_length": 30, "distill_interesting": 12, "distill_refresh": 1, "distill_window": 1}
OTHERS = [name for name in HEADS if name != "bpr"]


class Class:
    """A student of BPR, or of another model, with its heads, in a training that has not begun."""

    def __init__(self, data: Path, model: str = "BPR", **changes: Any) -> None:
        settings = {**config_for(model, data), "distiller": "concf", "epochs": 9, **SMALL, **changes}
        self.workshop = Workshop(PruneConfig(model, DATASET, config_dict=settings))
        self.part: Any = Teaching(self.workshop).distiller()
        self.model = self.workshop.build_model()
        self.part.attach(self.model)
        self.trainer = self.workshop.trainer(
            self.model, Session("a lesson", self.workshop.loaders, parts=[self.part], fused=False)
        )
        self.trainer.epoch = 0
        self.part.begin(self.trainer)
        self.model.train()

    def batch(self) -> Any:
        self.workshop.reseed()
        return next(iter(self.workshop.train_data)).to(self.model.device)

    def end_epoch(self) -> None:
        self.trainer.epochs_done += 1
        self.part.end_epoch(self.trainer)


@pytest.fixture(scope="module")
def lesson(tiny_data: Path) -> Class:
    """Two rankings have been made, so the consensus teaches."""
    made = Class(tiny_data)
    made.end_epoch()
    assert made.part._consensus.lists is None
    made.end_epoch()
    return made


def test_the_model_learns_by_its_own_loss_its_weight_times(lesson: Class) -> None:
    """``sum_x w_x L_x``, sums over a batch by its rows, and ``alpha sum_x clip(w_x) L_CL,x``."""
    part, model, batch = lesson.part, lesson.model, lesson.batch()
    own = lesson.workshop.build_model()
    own.load_state_dict(model.state_dict())
    weights = torch.tensor([1.5, 0.5, 2.5, 0.4, 0.6, 0.5])
    part._balance._weights.data.copy_(weights)
    part._helpers.eval()  # no dropout
    added: dict[str, torch.Tensor] = {}
    losses = type(part).losses

    def seen(*arguments: Any) -> Any:
        added.update(losses(*arguments))
        return added

    part.losses = lambda *arguments: seen(part, *arguments)
    total = model.calculate_loss(batch)
    del part.losses
    assert set(added) == {*(f"concf_{name}" for name in OTHERS), "concf_consensus"}
    expected = 1.5 * own.calculate_loss(batch) + sum(added.values())
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    shared, listed, places = part._share(model, batch)
    users, items, others = (batch[name] for name in ("user_id", "item_id", "neg_item_id"))
    head = part._helpers["mse"]
    u, i, j = (head.users(vectors) for vectors in (
        model.user_embedding(users), model.item_embedding(items), model.item_embedding(others)))  # fmt: skip
    errors = (head.top(u * i) - 1).square() + head.top(u * j).square()
    assert added["concf_mse"].item() == pytest.approx(0.4 * errors.sum().item() / len(batch), rel=1e-4)
    agreed = part._consensus_losses(
        pair_logits(model, shared.user_ids, listed), scores_of(part, shared), listed, places
    )
    assert set(agreed) == {"own", *OTHERS} - {"item_multinomial"}
    clipped = dict(zip(("own", *OTHERS), weights.clamp(0.5, 2)))
    expected = 0.005 / len(batch) * sum(clipped[name] * loss for name, loss in agreed.items())
    assert added["concf_consensus"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert part._balance.weights.sum().item() == pytest.approx(6) and not torch.equal(part._balance.weights, weights)
    part._helpers.train()
    part._balance._weights.data.fill_(1)


def scores_of(part: Any, shared: Any) -> dict[str, Any]:
    arguments = shared.user_ids, shared.user_vectors, shared.item_ids, shared.item_vectors
    return {name: head.scores(*arguments) for name, head in part._heads.items()}


def test_the_consensus_loss_is_the_listwise_one_of_every_head(lesson: Class) -> None:
    part, model = lesson.part, lesson.model
    shared, listed, places = part._share(model, lesson.batch())
    lists = torch.from_numpy(part._consensus.lists[shared.user_ids.numpy()].astype(np.int64))
    assert torch.equal(listed, lists) and listed.shape[1] == 30 and torch.equal(shared.item_ids[places], listed)
    part._helpers.eval()
    own = pair_logits(model, shared.user_ids, listed)
    found = part._consensus_losses(own, scores_of(part, shared), listed, places)
    assert found["own"].item() == pytest.approx(plackett_luce(own[:, :12], own[:, 12:]).sum().item())
    cml = part._helpers["cml"]
    ball = [functional.normalize(v) * v.norm(dim=1, keepdim=True).clamp(max=1) for v in (
        cml.top(cml.users(model.user_embedding(shared.user_ids))),
        cml.top(cml.users(model.item_embedding.weight)))]  # fmt: skip
    distances = -10 * torch.cdist(*ball).square().gather(1, listed)
    expected = plackett_luce(distances[:, :12], distances[:, 12:]).sum()
    assert found["cml"].item() == pytest.approx(expected.item(), rel=1e-5)
    part._helpers.train()


def test_official_scores_are_cut(lesson: Class, monkeypatch: pytest.MonkeyPatch) -> None:
    part = lesson.part
    shared, listed, places = part._share(lesson.model, lesson.batch())
    own = 1000 * torch.randn(listed.shape)
    scores = scores_of(part, shared)
    free = part._consensus_losses(own, scores, listed, places)
    monkeypatch.setattr(part, "_official", True)
    cut = part._consensus_losses(own, scores, listed, places)
    bounded = own.clamp(-40, 40)
    assert cut["own"].item() == pytest.approx(plackett_luce(bounded[:, :12], bounded[:, 12:]).sum().item())
    assert cut["own"] < free["own"] and cut["mse"] == free["mse"]


def test_gradients_of_the_balance_stay_out_of_the_step(lesson: Class) -> None:
    """A step on the total is a step on the weighted sum of the losses, as if weights were numbers."""
    model, part = lesson.model, lesson.part
    own = lesson.workshop.build_model()
    own.load_state_dict(model.state_dict())
    part.own_loss = 1.0
    table = own.user_embedding.weight
    batch = lesson.batch()
    (2.0 * own.calculate_loss(batch)).backward()
    part._balance._weights.data.copy_(torch.tensor([2.0, *[0.8] * 5]))
    model.zero_grad()
    terms = type(part).losses
    part.losses = lambda *arguments: {name: 0 * loss for name, loss in terms(part, *arguments).items()}
    model.calculate_loss(batch).backward()
    del part.losses
    assert torch.allclose(model.user_embedding.weight.grad, table.grad, atol=1e-7)
    part._balance._weights.data.fill_(1)


@pytest.mark.parametrize("model", ["BPR", "LightGCN"])
def test_ranking_moves_no_stream_and_leaves_nothing(model: str, tiny_data: Path) -> None:
    made = Class(tiny_data, model)
    rankings: list[Any] = []
    made.part._consensus.add = rankings.append
    scramble_random_streams()
    before = random_state()
    weights = {name: value.clone() for name, value in made.model.state_dict().items()}
    made.end_epoch()
    assert not have_moved(before)
    assert all(module.training for module in (*made.model.modules(), *made.part._helpers.modules()))
    assert all(getattr(made.model, name, None) is None for name in CACHES)
    assert all(torch.equal(value, weights[name]) for name, value in made.model.state_dict().items())
    [[own, *others]] = rankings
    assert len(others) == len(OTHERS)
    consumed, users = made.part.pupils.consumed, np.arange(1, made.part.pupils.user_count)
    for lists in (own, *others):
        assert lists.dtype == np.uint16 and lists.shape == (len(users) + 1, 30) and not lists[0].any()
        assert (lists[1:] > 0).all() and not consumed.contains(users.repeat(30), lists[1:].astype(int).ravel()).any()
    scores = made.workshop.build_model().eval()
    scores.load_state_dict(made.model.state_dict())
    row = scores.full_sort_predict({"user_id": torch.tensor([5])}).detach().view(-1)
    row[[0, *consumed[5]]] = -torch.inf
    assert own[5].tolist() == row.topk(30)[1].tolist()


def test_heads_that_diverged_are_named(tiny_data: Path) -> None:
    made = Class(tiny_data)
    with torch.no_grad():
        made.model.item_embedding.weight[3] = torch.nan
    message = refusal(made.end_epoch, TrainingError)
    assert "by the head own" in message and "learning_rate" in message


def test_without_heads_scores_are_the_same(lesson: Class) -> None:
    """The model with its heads, and one that only has its weights."""
    alone = lesson.workshop.build_model().eval()
    alone.load_state_dict(lesson.model.state_dict())
    assert not [name for name in lesson.model.state_dict() if "head" in name or "top" in name]
    lesson.model.eval()
    rows = {"user_id": torch.arange(1, 40)}
    assert torch.equal(lesson.model.full_sort_predict(rows), alone.full_sort_predict(rows))
    lesson.model.train()


def test_heads_by_default_and_by_name(tiny_data: Path) -> None:
    assert list(Class(tiny_data).part._helpers) == OTHERS
    assert list(Class(tiny_data, "NeuMF").part._helpers) == [name for name in HEADS if name != "bce"]
    part = Class(tiny_data, distill_heads="mse, multinomial").part
    assert list(part._helpers) == ["mse", "multinomial"]
    assert part.report(None)["concf"] == {"heads": {"own": 1.0, "mse": 1.0, "multinomial": 1.0}}


def test_it_is_said_if_no_consensus_is_ever_reached(tiny_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    # the last ranking that teaches comes after epoch 7 of 9, 0 for the first
    for window, said in ((7, False), (8, True)):
        caplog.clear()
        Class(tiny_data, distill_window=window)
        assert ("their consensus does not" in caplog.text) == said


def test_lists_that_nobody_reads_fit_any_data(tiny_data: Path) -> None:
    """Without the consensus there are no lists, so few items are enough, and no key can be in the way."""
    few: Any = SimpleNamespace(item_count=20)
    student, check = Class(tiny_data).model, get_distiller("concf").check
    for weight in (0.005, 0.0):
        changes = {"distiller": "concf", "distill_weight": weight}
        settings = PruneConfig("BPR", DATASET, config_dict={**config_for("BPR", tiny_data), **changes}).settings
        if weight:
            assert "distill_interesting=50 is not allowed" in refusal(lambda s=settings: check(s, few, student))
        else:
            check(settings, few, student)


@pytest.mark.slow
def test_killed_with_a_consensus_it_goes_on_as_if_nothing_had_been(tiny_data: Path, tmp_path: Path) -> None:
    room = Classroom("BPR", tiny_data, tmp_path)
    settings = room.lesson("concf", **SMALL, epochs=4, train_batch_size=512)
    whole = room.run(**settings).read()
    assert "concf_consensus" in whole.terms()[3] and "concf_consensus" not in whole.terms()[1]
    room.kill(settings, epoch=3, batch=1)
    require_equal(whole, room.run(**settings))


@pytest.mark.slow
def test_beside_a_pruner(tiny_data: Path, tmp_path: Path) -> None:
    """The table says that nothing got smaller by the heads; what is pruned is 0, and as much as asked for."""
    room = Classroom("BPR", tiny_data, tmp_path)
    taught = room.run(
        **room.lesson("concf", **SMALL, distill_alone=True), epochs=4, pruner="dsl", prune_update_interval=2,
        prune_target_sparsity=0.5, prune_storage="compact",
    )  # fmt: skip
    assert [record["sparsity"] for record in taught.records] == pytest.approx([0, 0.5], abs=1e-3)
    assert all(record["concf"]["heads"] and "teacher" not in record for record in taught.records)
    assert "taught 1" in taught.result["table"] and " alone " in taught.result["table"]
    assert "same size as alone" in taught.result["table"].replace("\n", " ")
    assert not [line for line in taught.result["table"].splitlines() if line.strip().startswith("teacher")]
