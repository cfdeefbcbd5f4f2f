"""FreqD: the numbers of methods/more_methods.md A5, its graphs, and that only a batch and its neighbours are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marks import slow_but
from teachers import Beginner, checkpoint

from recbole_prune.data.used_ids import UsedIds
from recbole_prune.distillers.graph_hints import Links, cosine_loss, neighbour_graph

# what each of four users has; user 0 and item 0 are no padding here
HISTORIES = [[0, 1, 2], [0, 1, 4], [2, 3], [3, 4, 5]]
STUDENT = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [1.0, -1.0]])
TEACHER = torch.tensor([[2.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, 0.0]])


def used(histories: list[list[int]], values: int) -> UsedIds:
    keys = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    return UsedIds(keys, np.array(sum(histories, []), np.int64), len(histories), values)


def test_the_graph_of_the_check() -> None:
    graph = neighbour_graph(used(HISTORIES, 6), 1).toarray()
    expected = np.zeros((4, 4))
    for one, other, value in ((0, 1, 0.666667), (0, 2, 0.577350), (1, 3, 0.577350)):
        expected[one, other] = expected[other, one] = value
    assert graph == pytest.approx(expected, abs=1e-6)


def cosines(share: float) -> torch.Tensor:
    links = Links.of(neighbour_graph(used(HISTORIES, 6), 1), torch.arange(4))
    places = torch.arange(4), links.others
    return 1 - cosine_loss(*(links.smoothed(vectors, *places, share) for vectors in (STUDENT, TEACHER)))


def test_losses_of_the_check() -> None:
    found = cosines(0.5)
    assert found.tolist() == pytest.approx([0.975492, 0.844934, 0.910694, 0.656035], abs=1e-6)
    assert (1 - found[[0, 2]]).sum().item() == pytest.approx(0.113814, abs=1e-6)
    assert (1 - cosines(0.0)[[0, 2]]).sum().item() == pytest.approx(0.398466, abs=1e-6)


def test_rows_are_short_where_nothing_is_in_common() -> None:
    graph = neighbour_graph(used([[0], [0], [1], [], [2, 0]], 3), 5)
    assert graph.diagonal().tolist() == [0] * 5 and (graph != graph.T).nnz == 0
    assert [sorted(graph[row].indices.tolist()) for row in range(5)] == [[1, 4], [0, 4], [], [], [0, 1]]
    assert graph[0, 1] == pytest.approx(0.5)


def test_graphs_are_those_of_all_counts() -> None:
    stream = np.random.default_rng(0)
    histories = [sorted(set(stream.integers(0, 30, 8).tolist())) for _ in range(700)]
    common = np.array([[len(set(one) & set(other)) for other in histories[:700]] for one in histories[:3]])
    links = neighbour_graph(used(histories, 30), 4)
    for row in range(3):
        common[row, row] = 0
        first = sorted(range(700), key=lambda other: (-common[row, other], other))[:4]
        assert set(first) <= set(links[row].indices.tolist())


def test_vectors_of_zeros_have_no_cosine_and_no_gradient() -> None:
    student = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]], requires_grad=True)
    loss = cosine_loss(student, torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]))
    assert loss.tolist() == pytest.approx([1.0, 1.0, 1 - 0.5**0.5])
    loss.sum().backward()
    assert student.grad is not None and student.grad[:2].tolist() == [[0, 0], [0, 0]]
    assert student.grad[2].tolist() == pytest.approx([0.0, -(0.5**0.5)])


def test_links_are_dropped_and_scaled() -> None:
    links = Links(torch.zeros(20_000).long(), torch.arange(20_000), torch.ones(20_000))
    torch.manual_seed(0)
    kept = links.kept(0.5)
    assert len(kept.others) == pytest.approx(10_000, abs=400) and (kept.weights == 2).all()
    assert (kept.others.diff() > 0).all() and links.kept(1.0) is links


@pytest.mark.parametrize("model", slow_but(["BPR"], ["BPR", "LightGCN", "MultiVAE"]))
def test_a_batch_and_its_neighbours_are_read(
    tiny_data: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand from whole matrices; the student's tables are not propagated."""
    trained, file = checkpoint(tiny_data, tmp_path, model)
    lesson = Beginner("freqd", tiny_data, file, tmp_path, model, distill_link_keep=1.0, distill_dropout=0.0)
    part, student, batch = lesson.part, lesson.student, lesson.batch()
    if model == "MultiVAE":
        batch = type(batch)({"user_id": batch["user_id"].unique()[:6]})
    asked: dict[str, list[int]] = {"user": [], "item": []}
    vectors = part._vectors

    def seen(model: Any, side: str, ids: torch.Tensor) -> torch.Tensor:
        asked[side] += ids.tolist()
        found: torch.Tensor = vectors(model, side, ids)
        return found

    monkeypatch.setattr(part, "_vectors", seen)
    torch.manual_seed(0)
    _, total = part.terms(student, batch)["freqd"]
    there, expected = part.pupils.entities(batch), 0.0
    if model == "MultiVAE":
        assert total > 0
        return
    for side, sets in (("user", [(1.0, there.users)]), ("item", [(0.5, there.positives), (0.5, there.negatives)])):
        table = getattr(student, f"{side}_embedding").weight
        theirs = lesson.teacher.tables[side == "item"]
        graph = torch.from_numpy(part._graphs[side].toarray())
        smooth = [0.5 * one + 0.5 * graph @ one for one in (part._helpers[side](table), theirs)]
        for weight, ids in sets:
            expected += weight * cosine_loss(smooth[0][ids], smooth[1][ids]).sum().item()
        near = {*there.users.tolist()} if side == "user" else {*there.positives.tolist()}
        for one in list(near):
            near |= set(part._graphs[side][one].indices.tolist())
        assert set(asked[side]) == near and 0 not in near
    assert total.item() == pytest.approx(expected, rel=1e-4)
    losses = part.losses(student, batch)
    losses["freqd"].backward()
    assert all(parameter.grad is not None for parameter in part.parameters().values())
