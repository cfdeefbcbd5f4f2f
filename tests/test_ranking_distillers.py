"""RRD and IR-RRD on a student whose logits are all equal, as at the start of a training: losses follow from counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teachers import Beginner, checkpoint

from recbole_prune.distillers.batch_lists import where_listed
from recbole_prune.sparse.missing_ids import spread_over_ids

EQUAL_20 = 67.985023  # of 20 items above 20 others, all scores equal: log(40! / 20!)


@pytest.fixture(scope="module")
def lesson(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes an IR-RRD student of only zeros."""
    folder = tmp_path_factory.mktemp("teacher")
    _, file = checkpoint(tiny_data, folder)

    def make(**changes: Any) -> Beginner:
        lists = {"distill_interesting": 20, "distill_uninteresting": 20, "distill_list_length": 25}
        counts = {"distill_item_interesting": 6, "distill_item_uninteresting": 5}
        made = Beginner("ir_rrd", tiny_data, file, folder, **lists, **counts, **changes)
        for weight in made.student.parameters():
            torch.nn.init.zeros_(weight)
        return made

    return make


def of_item(part: Any, item: int) -> float:
    """The listwise loss of equal scores: ``sum log n`` over ``n = L + 1 .. L + K``."""
    listed, below = np.split(part._item_lists[item].numpy(), [part._item_interesting])
    ranked, others = int((listed >= 0).sum()), int((below >= 0).sum())
    return float(np.log(np.arange(others + 1, others + ranked + 1)).sum())


def test_the_first_losses_follow_from_counts(lesson: Any) -> None:
    """``lambda |U_b| 67.985`` of the users; of the items those that occur in the lists of the users."""
    beginner = lesson(distill_item_batch="listed")
    batch, part = beginner.batch(), beginner.part
    terms = part.terms(beginner.student, batch)
    users = batch["user_id"].unique()
    assert terms["rrd"][0] == 0.001 and terms["rrd"][1].item() == pytest.approx(len(users) * EQUAL_20, rel=1e-5)
    listed = part._source.of(batch)
    occurring = set(listed.interesting.flatten().tolist()) | set(listed.uninteresting.flatten().tolist())
    expected = sum(of_item(part, item) for item in occurring)
    assert terms["ir"][0] == 0.0005 and terms["ir"][1].item() == pytest.approx(expected, rel=1e-5)
    losses = part.losses(beginner.student, batch)
    assert losses["rrd"].item() == pytest.approx(0.001 / len(batch) * len(users) * EQUAL_20, rel=1e-5)


@pytest.mark.slow
def test_shares_of_an_epoch_are_all_items_once(lesson: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    beginner = lesson()
    part, count = beginner.part, len(beginner.trained.train_data)
    shares: list[list[int]] = []
    share = part._share

    def seen(device: torch.device) -> torch.Tensor:
        found: torch.Tensor = share(device)
        shares.append(found.tolist())
        return found

    monkeypatch.setattr(part, "_share", seen)
    orders = []
    for epoch in range(2):
        part.epoch, part._batch = epoch, 0
        part.begin_epoch()
        shares.clear()
        batches = beginner.trained.train_data
        full = max(map(len, batches))
        losses = [part.losses(beginner.student, batch)["ir"].item() for batch in batches]
        assert max(losses) < 1.5 * min(losses), "a smaller last batch counts for no more"
        total = sum(losses) * full
        items = range(1, beginner.teacher.pupils.item_count)
        assert len(shares) == count > 1 and sorted(sum(shares, [])) == list(items)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        expected = sum(of_item(part, item) for item in items)
        assert total == pytest.approx(0.0005 * count * expected, rel=1e-4), "as all items in every batch"
        orders.append(list(shares))
    assert orders[0] != orders[1]


def test_what_stands_for_nothing_is_not_one_and_the_same_item() -> None:
    """A GPU adds up the gradients of an item one after the other, so thousands of the same would be waited for."""
    ids = torch.full((40, 50), -1)
    ids[:, :10] = torch.arange(100, 500).view(40, 10)
    spread = spread_over_ids(ids)
    assert torch.equal(spread[:, :10], ids[:, :10])
    assert spread.min() >= 0 and spread.max() < 500, "ids that there are"
    assert spread.flatten().bincount().max() <= 1 + 40 * 50 // 500
    assert (spread_over_ids(torch.full((2, 3), -1)) == 0).all()


def test_nothing_has_no_score() -> None:
    ids = torch.tensor([[3, -1], [-1, 0]])
    scores = where_listed(lambda found: found.float(), ids)
    assert torch.equal(scores.isnan(), ids < 0) and scores[0, 0] == 3 and scores[1, 1] == 0
    assert where_listed(lambda found: found.float(), torch.full((2, 3), -1)).isnan().all()
