"""The consensus of several rankings: published numbers, and the same from whole matrices of ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from recbole_prune.distillers.consensus_lists import (
    Consensus,
    Decay,
    consensus_of,
    importance,
    ranks_in,
    spread_of,
)
from recbole_prune.teachers import ranked_lists

USUAL = Decay(10.0, 100.0)
USERS, ITEMS, LENGTH, HEADS = 6, 40, 12, 3


def test_importance_as_published() -> None:
    """methods/distillation_ranking.md, section 6, Check: two heads, four items."""
    ranks = torch.tensor([[0.0, 5, 99, 100], [3, 0, 250, 40]], dtype=torch.float64)
    spread = torch.tensor([[2.0, 0, 10, 4], [0, 6, 3, 50]], dtype=torch.float64)
    never, always = torch.full_like(ranks, torch.inf), torch.full_like(ranks, 1e9)
    by_rank, by_spread = importance(ranks, never, 100, USUAL), importance(ranks, spread, 100, Decay(1e-9, 100.0))
    by_spread[ranks == 0] -= 1  # e^0 of the rank
    assert by_rank.sum(0).tolist() == pytest.approx([1.740818, 1.606531, 0.000050, 0.018316], abs=5e-7)
    assert by_spread.sum(0).tolist() == pytest.approx([1.980199, 1.941765, 0.904837, 0.606531], abs=5e-7)
    found = importance(ranks, spread, 100, USUAL)
    assert found.sum(0).tolist() == pytest.approx([3.721017, 3.548295, 0.904888, 0.624846], abs=1e-6)
    assert found[0, 2].item() == pytest.approx(0.904887, abs=1e-6) and found[0, 2] > found[1, 3]
    assert importance(ranks, always, 100, USUAL)[0, 3] == 0, "from rank 100 on nothing counts"


def test_how_steady_a_rank_is_as_published() -> None:
    """Ranks 10, 12, 9, 30, 11 at five evaluations; what a list has not counts as its length."""
    lists = [np.roll(np.arange(1, 101, dtype=np.uint16), place)[None] for place in (10, 12, 9, 30, 11)]
    spread = spread_of(torch.tensor([[1]]), lists)
    assert spread.item() == pytest.approx(7.863841, abs=1e-6)
    assert importance(torch.tensor([[1e9]]).double(), spread, 10**10, USUAL).item() == pytest.approx(0.924374, abs=1e-6)
    assert spread_of(torch.tensor([[999]]), lists).item() == 0
    assert ranks_in(torch.tensor([[5, 3, 9, 0]]), torch.tensor([[9, 4, 5]])).tolist() == [[2, 4, 0]]


def random_lists(stream: np.random.Generator, heads: int = HEADS) -> list[np.ndarray]:
    """Lists of different lengths, without an order among the heads."""
    found = []
    for _ in range(heads):
        lists = np.stack([stream.permutation(np.arange(1, ITEMS))[:LENGTH] for _ in range(USERS)]).astype(np.uint16)
        lists[0] = 0  # padding
        lists[2, LENGTH // 2 :] = 0
        found.append(lists)
    return found


def by_matrices(heads: Sequence[np.ndarray], history: Sequence[Sequence[np.ndarray]], decay: Decay) -> np.ndarray:
    """The same from ranks of all items for all users."""

    def matrix(lists: np.ndarray) -> np.ndarray:
        ranks = np.full((USERS, ITEMS), LENGTH, dtype=np.float64)
        for user, row in enumerate(lists):
            for rank, item in enumerate(row):
                if item:
                    ranks[user, item] = rank
        return ranks

    total = np.zeros((USERS, ITEMS))
    for x, lists in enumerate(heads):
        ranks = matrix(lists)
        spread = np.std([matrix(past[x]) for past in history], axis=0) if history else np.zeros_like(ranks)
        total += np.where(ranks < LENGTH, np.exp(-ranks / decay.ranks) + np.exp(-spread / decay.spread), 0)
    order = np.argsort(-total, axis=1, kind="stable")[:, :LENGTH]
    return np.where(np.take_along_axis(total, order, 1) > 0, order, 0)


@pytest.mark.parametrize("steps", [0, 3])
def test_short_lists_say_what_whole_matrices_say(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = np.random.default_rng(4)
    heads, history = random_lists(stream), [random_lists(stream) for _ in range(steps)]
    history += [heads] if steps else []
    decay = Decay(3.0, 5.0)
    expected = by_matrices(heads, history, decay)
    found = consensus_of(heads, history, decay)
    assert found.dtype == np.uint16 and np.array_equal(found, expected) and not found[0].any()
    monkeypatch.setattr(ranked_lists, "_ENTRIES_AT_ONCE", 1)
    assert np.array_equal(consensus_of(heads, history, decay), expected), "a user at a time"


def test_the_consensus_of_heads_that_agree_is_their_list() -> None:
    [lists] = random_lists(np.random.default_rng(1), heads=1)
    heads = [lists] * 4
    assert np.array_equal(consensus_of(heads, [heads] * 3, USUAL), lists)


def test_it_begins_after_a_window_and_has_the_ranks_of_today() -> None:
    stream = np.random.default_rng(2)
    rankings, consensus = [random_lists(stream) for _ in range(5)], Consensus(2, USUAL, official=False)
    for number, ranking in enumerate(rankings):
        consensus.add(ranking)
        expected = None if number < 2 else by_matrices(ranking, rankings[number - 1 : number + 1], USUAL)
        assert (consensus.lists is None) if expected is None else np.array_equal(consensus.lists, expected)


def test_the_official_one_is_a_ranking_late_and_finds_spreads_once() -> None:
    stream = np.random.default_rng(3)
    rankings, consensus = [random_lists(stream) for _ in range(5)], Consensus(2, USUAL, official=True)
    expected = [
        None, None, by_matrices(rankings[1], [], USUAL), by_matrices(rankings[2], rankings[1:3], USUAL),
        by_matrices(rankings[3], rankings[1:3], USUAL),
    ]  # fmt: skip
    for ranking, lists in zip(rankings, expected):
        consensus.add(ranking)
        assert (consensus.lists is None) if lists is None else np.array_equal(consensus.lists, lists)


@pytest.mark.parametrize("official", [False, True])
def test_a_copy_goes_on_alike(official: bool) -> None:
    stream = np.random.default_rng(5)
    one, other = Consensus(2, USUAL, official), Consensus(2, USUAL, official)
    for ranking in [random_lists(stream) for _ in range(4)]:
        one.add(ranking)
        other.restore(one.state())
        state = other.state()
        other = Consensus(2, USUAL, official)
        other.restore(state)
    later = random_lists(stream)
    one.add(later)
    other.add(later)
    assert one.lists is not None and np.array_equal(one.lists, other.lists)
