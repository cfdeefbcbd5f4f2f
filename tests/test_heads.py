"""The heads of ConCF against their formulas, pairs of any batch, and a likelihood that is never there as a whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from torch.nn import functional

from recbole_prune.data.used_ids import UsedIds
from recbole_prune.distillers.heads import HEADS, Head, Sharing, in_unit_ball
from recbole_prune.distillers.losses import multinomial
from recbole_prune.distillers.losses.multinomial import multinomial_loss
from recbole_prune.distillers.pairs import draw_others, pairs_of

USERS, ITEMS, WIDTH = 9, 14, 8


@pytest.fixture
def shared() -> Sharing:
    """Some users and items of a small data set, and pairs of them."""
    stream, generator = np.random.default_rng(6), torch.Generator().manual_seed(6)
    matrix = stream.random((USERS, ITEMS)) < 0.4
    matrix[0] = matrix[:, 0] = False
    users, items = np.nonzero(matrix)
    places = {name: torch.from_numpy(stream.integers(0, n, 12)) for name, n in (("u", 4), ("p", 6), ("n", 6))}
    return Sharing(
        user_ids=torch.tensor([7, 2, 5, 1]), item_ids=torch.tensor([1, 3, 4, 8, 9, 12, 13]),
        user_vectors=2 * torch.randn(4, WIDTH, generator=generator),
        item_vectors=2 * torch.randn(7, WIDTH, generator=generator),
        users=places["u"], positives=places["p"], negatives=places["n"],
        consumed=UsedIds(users, items, USERS, ITEMS), consumers=UsedIds(items, users, ITEMS, USERS),
    )  # fmt: skip


def made(name: str, one_space: bool = True) -> Head:
    """A head without dropout, large weights so that the unit ball matters."""
    torch.manual_seed(2)
    head = HEADS[name]((WIDTH, WIDTH), one_space, (USERS, ITEMS)).eval()
    for weight in head.parameters():
        torch.nn.init.normal_(weight, std=0.8)
    return head


def of(head: Head, shared: Sharing) -> Any:
    return head.scores(shared.user_ids, shared.user_vectors, shared.item_ids, shared.item_vectors)


def literal(name: str, head: Any, shared: Sharing) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of all users and items by which lists go, and the loss, as methods/distillation_ranking.md has them."""
    if name in ("bpr", "cml"):
        users, items = head.top(head.users(shared.user_vectors)), head.top(head.items(shared.item_vectors))
    if name == "bpr":
        scores = users @ items.t()
    elif name == "cml":
        users, items = (x / x.norm(dim=1, keepdim=True).clamp(min=1) for x in (users, items))
        scores = -10 * (users[:, None] - items[None]).pow(2).sum(2)
    elif name in ("bce", "mse"):
        products = head.users(shared.user_vectors)[:, None] * head.items(shared.item_vectors)[None]
        scores = head.top(products).squeeze(2)
    elif name == "multinomial":
        whole = head.top(head.users(shared.user_vectors))
        scores = whole[:, shared.item_ids - 1]
        chances, rows = whole.log_softmax(1), shared.user_ids
        used = shared.consumed
    else:
        whole = head.top(head.items(shared.item_vectors))
        scores = whole[:, shared.user_ids - 1].t()
        places = sorted({*shared.positives.tolist(), *shared.negatives.tolist()})
        chances, rows, used = whole[places].log_softmax(1), shared.item_ids[places], shared.consumers
    if "multinomial" in name:
        taken = [chances[row, value - 1] for row, key in enumerate(rows.tolist()) for value in used[key]]
        return scores, -torch.stack(taken).sum()
    liked, other = scores[shared.users, shared.positives], scores[shared.users, shared.negatives]
    losses = {
        "bpr": -(liked - other).sigmoid().log(),
        "cml": (1 + liked / -10 - other / -10).clamp(min=0),
        "bce": functional.softplus(-liked) + functional.softplus(other),
        "mse": (liked - 1) ** 2 + other**2,
    }
    return scores, losses[name].sum()


@pytest.mark.parametrize("name", HEADS)
def test_scores_and_losses_are_those_of_the_formulas(name: str, shared: Sharing) -> None:
    head = made(name)
    scores, loss = literal(name, head, shared)
    found = of(head, shared)
    assert torch.allclose(found.of_all(torch.arange(4)), scores, atol=1e-4)
    assert torch.allclose(found.of_all(torch.tensor([2])), scores[[2]], atol=1e-4)
    places = torch.tensor([[0, 5, 5], [1, 2, 3], [6, 0, 1], [4, 4, 2]])
    assert torch.allclose(found.of_lists(places), scores.gather(1, places), atol=1e-4)
    weights = list(head.parameters())
    gradients = [torch.autograd.grad(total, weights) for total in (head.loss(found, shared), loss)]
    assert head.loss(found, shared).item() == pytest.approx(loss.item(), rel=1e-5)
    for one, other in zip(*gradients):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def test_one_network_for_users_and_items_of_one_space() -> None:
    same, apart = made("bce"), made("bce", one_space=False)
    assert same.users is same.items and apart.users is not apart.items
    assert [tuple(w.shape) for w in same.users.parameters()] == [(4, 8), (4,), (2, 4), (2,)], "d, d / 2, d / 4"
    assert [type(layer).__name__ for layer in same.users] == ["Linear", "Dropout", "ReLU", "Linear"]
    assert not hasattr(made("multinomial"), "items") and not hasattr(made("item_multinomial"), "users")


def test_longer_vectors_are_shortened_to_the_unit_ball_and_others_stay() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], requires_grad=True)
    found = in_unit_ball(vectors)
    assert torch.allclose(found, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    found.sum().backward()
    assert vectors.grad.isfinite().all()


@pytest.mark.parametrize("at_once", [1, 40, 1 << 20])
def test_a_likelihood_by_parts_is_the_whole_one(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multinomial, "_LOGITS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(shape, generator=generator, requires_grad=True) for shape in ((7, 3), (11, 3), (11,))]
    rows, classes = torch.nonzero(torch.rand(7, 11, generator=generator) < 0.3, as_tuple=True)
    whole = -(tensors[0] @ tensors[1].t() + tensors[2]).log_softmax(1)[rows, classes].sum()
    found = multinomial_loss(*tensors, rows, classes)
    assert found.item() == pytest.approx(whole.item(), rel=1e-6)
    for one, other in zip(torch.autograd.grad(3 * found, tensors), torch.autograd.grad(3 * whole, tensors)):
        assert torch.allclose(one, other, atol=1e-5)
    nothing = torch.empty(0, dtype=torch.long)
    assert multinomial_loss(*tensors, nothing, nothing).item() == 0


def pupils() -> Any:
    """User 3 has all items, user 1 all but two."""
    pairs = [(1, item) for item in range(1, 7)] + [(2, 1), (2, 5)] + [(3, item) for item in range(1, 9)]
    users, items = map(np.array, zip(*pairs))
    fields = {"user_field": "user_id", "item_field": "item_id", "negative_field": "neg_item_id"}
    dataset = SimpleNamespace(config={"LABEL_FIELD": "label"})
    return SimpleNamespace(consumed=UsedIds(users, items, 4, 9), item_count=9, dataset=dataset, **fields)


def test_pairs_of_every_kind_of_batch() -> None:
    known, stream = pupils(), np.random.default_rng(0)
    ids = {"user_id": torch.tensor([1, 2, 3, 1]), "item_id": torch.tensor([2, 5, 1, 7])}
    pairwise = Interaction({**ids, "neg_item_id": torch.tensor([8, 3, 4, 7])})
    assert [part.tolist() for part in pairs_of(known, pairwise, stream)] == [[1, 2, 3, 1], [2, 5, 1, 7], [8, 3, 4, 7]]
    labelled = Interaction({**ids, "label": torch.tensor([1.0, 1.0, 1.0, 0.0])})
    users, items, others = (part.tolist() for part in pairs_of(known, labelled, stream))
    assert (users, items) == ([1, 2], [2, 5]), "positive rows, but none of a user who has all"
    whole = Interaction({"user_id": torch.tensor([2, 3, 1])})
    users, items, others = (part.tolist() for part in pairs_of(known, whole, stream))
    assert list(zip(users, items)) == [(2, 1), (2, 5), *((1, item) for item in range(1, 7))]
    assert not known.consumed.contains(np.array(users), np.array(others)).any() and min(others) > 0


def test_others_are_drawn_uniformly() -> None:
    drawn = draw_others(pupils().consumed, np.full(30_000, 2), np.random.default_rng(3))
    counts = np.bincount(drawn, minlength=9)
    assert not counts[[0, 1, 5]].any()
    assert counts[[2, 3, 4, 6, 7, 8]] / 30_000 == pytest.approx(np.full(6, 1 / 6), abs=0.01)
