"""The feature loss of SAD: oracles 1 to 5 and properties P1 to P7 of methods/attention_distillation_pruning.md."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from recbole_prune.anatomy.feature_points.features import FIELDS, MAP, NODES, SEQUENCE, VECTOR, Feature
from recbole_prune.distillers.losses.attention import (
    AttentionLoss,
    Shape,
    energy,
    of_length_one,
    pooled,
    relation,
    resized,
)
from recbole_prune.distillers.losses.divergence import bernoulli_divergence, softmax_divergence, squared_difference

EXACT = 1e-6


def a_map(*channels: Any) -> Feature:
    """A map of one row, channel by channel."""
    values = torch.tensor([channels], dtype=torch.float32)
    return Feature("map", MAP, values.unsqueeze(2) if values.dim() == 3 else values)


def loss_of(teacher: list[Feature], student: list[Feature], **words: Any) -> AttentionLoss:
    """A new loss for these features."""
    settings = {"width": 8, "project": False, "official": False, **words}
    return AttentionLoss([Shape.of(part) for part in teacher], [Shape.of(part) for part in student], **settings)


def set_to(layer: nn.Module, weight: Any) -> None:
    """Give a layer a weight, and take its batch norm away."""
    assert isinstance(layer, nn.Sequential)
    layer[1] = nn.Identity()
    with torch.no_grad():
        layer[0].weight.copy_(torch.tensor(weight, dtype=torch.float32).reshape(layer[0].weight.shape))


def checked(official: bool, second: bool) -> tuple[AttentionLoss, list[Feature], list[Feature]]:
    """The loss and the features of oracle 1, and of oracle 2 with a second feature of the teacher."""
    teacher = [a_map([1, 2], [3, 0])]
    student = [a_map([1, 1]), a_map([0, 2], [1, 0])]
    if second:
        teacher.append(Feature("square", MAP, torch.tensor([[[[2.0, 0.0], [1.0, 1.0]]]])))
    loss = loss_of(teacher, student, width=2, official=official)
    network = loss.network
    set_to(network.queries[0], [[1, 0], [0, 1]])
    set_to(network.keys[0], [[1], [0]])
    set_to(network.keys[1], [[1, 0], [0, 1]])
    bilinear = [[1, 0], [0, 1]]
    places = [[0.1, 0.2]]
    if second:
        set_to(network.queries[1], [[1], [-1]])
        bilinear += [[0.5, 0.5], [1, -1]]
        places += [[0, 0.3]]
    set_to(network.bilinear, bilinear)
    with torch.no_grad():
        network.of_teacher.copy_(torch.tensor(places))
        network.of_student.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    return loss, teacher, student


def test_oracle_1() -> None:
    loss, teacher, student = checked(official=True, second=False)
    shares = loss.network([pooled(part) for part in teacher], [pooled(part) for part in student])
    torch.testing.assert_close(shares, torch.tensor([[[0.354106, 0.645894]]]), atol=EXACT, rtol=0)
    assert pooled(teacher[0]).tolist() == [[1.5, 1.5]]
    torch.testing.assert_close(
        of_length_one(energy(teacher[0])), torch.tensor([[0.928477, 0.371391]]), atol=EXACT, rtol=0
    )
    torch.testing.assert_close(
        of_length_one(energy(student[1])), torch.tensor([[0.242536, 0.970143]]), atol=EXACT, rtol=0
    )
    distances = loss.distances(teacher, student)
    assert [distances[0, place].item() for place in (0, 1)] == pytest.approx([0.080855, 0.414509], abs=EXACT)
    assert loss(teacher, student).item() == pytest.approx(0.296361, abs=EXACT)
    of_sums, *features = checked(official=False, second=False)
    assert of_sums(*features).item() == pytest.approx(0.592721, abs=EXACT)


def test_oracle_2_enlarges_by_repetition() -> None:
    loss, teacher, student = checked(official=True, second=True)
    repeated = of_length_one(resized(energy(student[1]), torch.Size([2, 2])))
    torch.testing.assert_close(repeated, torch.tensor([[0.171499, 0.685994, 0.171499, 0.685994]]), atol=EXACT, rtol=0)
    shares = loss.network([pooled(part) for part in teacher], [pooled(part) for part in student])
    torch.testing.assert_close(shares[0, 1], torch.tensor([0.322466, 0.677534]), atol=EXACT, rtol=0)
    assert loss(teacher, student).item() == pytest.approx(0.559107, abs=EXACT)


def test_oracle_3_of_logits() -> None:
    student, teacher = torch.tensor([[1.0, 0, -1], [0, 2, 0]]), torch.tensor([[2.0, 0, -2], [1, 1, 0]])
    divergences = [softmax_divergence(student, teacher, scale).mean().item() for scale in (4.0, 1.0)]
    assert divergences == pytest.approx([0.331720, 0.246581], abs=EXACT)
    whole = cross_entropy(student, torch.tensor([0, 1])).item() + 0.9 * divergences[0]
    assert whole == pytest.approx(0.622124, abs=EXACT)
    logits = torch.tensor([0.5]), torch.tensor([2.0])
    assert [bernoulli_divergence(*logits, scale).item() for scale in (4.0, 1.0)] == pytest.approx(
        [0.271109, 0.168344], abs=EXACT
    )
    assert squared_difference(*logits).item() == pytest.approx(2.25)


def test_a_list_of_two_is_the_difference_of_its_logits() -> None:
    student, teacher = torch.randn(9, 2), torch.randn(9, 2)
    differences = ((logits[:, 0] - logits[:, 1]) for logits in (student, teacher))
    torch.testing.assert_close(softmax_divergence(student, teacher, 3.0), bernoulli_divergence(*differences, 3.0))


def test_logits_that_the_teacher_does_not_know_count_nothing() -> None:
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    teacher[1] = torch.nan
    for divergence in (softmax_divergence(student, teacher, 4.0), bernoulli_divergence(student, teacher, 4.0)):
        assert not divergence[1].any() and bool((divergence[::2] > 0).all())
        divergence.sum().backward()
    assert student.grad is not None and student.grad.isfinite().all() and not student.grad[1].any()


ORACLE_4 = torch.tensor([[1.0, 0], [1, 1], [0, 2]]), torch.tensor([[1.0], [2], [-1]])


def test_oracle_4_of_relations() -> None:
    teacher, student = map(relation, ORACLE_4)
    expected = [[0.707107, 0.707107, 0], [0.333333, 0.666667, 0.666667], [0, 0.447214, 0.894427]]
    torch.testing.assert_close(teacher, torch.tensor(expected), atol=EXACT, rtol=0)
    row = torch.tensor([0.408248, 0.816497, -0.408248])
    torch.testing.assert_close(student, torch.stack([row, row, -row]), atol=EXACT, rtol=0)
    features = [Feature("v", kind, rows) for kind, rows in zip((NODES, VECTOR), ORACLE_4)]
    loss = loss_of(features[:1], features[1:])
    distances = loss.distances(features[:1], features[1:])[0, 0]
    assert distances.tolist() == pytest.approx([0.267949, 1.183503, 2.0], abs=EXACT)
    assert loss(features[:1], features[1:]).item() == pytest.approx(1.150484, abs=EXACT)


def test_oracle_5_of_padding() -> None:
    values, there = torch.tensor([[[1.0, 0], [2, 1], [0, 3], [9, 9]]]), torch.tensor([[True, True, True, False]])
    sequence = Feature("s", SEQUENCE, values, there)
    assert energy(sequence).tolist() == [[0.5, 2.5, 4.5, 0]]
    assert of_length_one(energy(sequence)).tolist()[0] == pytest.approx([0.096674, 0.483368, 0.870063, 0], abs=EXACT)
    assert pooled(sequence).tolist()[0] == pytest.approx([1, 4 / 3])
    unmasked = sequence._replace(valid=None)
    assert of_length_one(energy(unmasked)).tolist()[0] == pytest.approx(
        [0.006160, 0.030801, 0.055443, 0.997968], abs=EXACT
    )
    assert pooled(unmasked).tolist()[0] == pytest.approx([3.0, 3.25])


# ---- properties ------------------------------------------------------------------------------------------------------


def some(rows: int = 6, width: int = 5) -> list[Feature]:
    """A feature of each kind."""
    torch.manual_seed(rows * width)
    there = torch.arange(7) < torch.randint(1, 8, (rows, 1))
    return [
        Feature("map", MAP, torch.randn(rows, width, 4, 3)),
        Feature("sequence", SEQUENCE, torch.randn(rows, 7, width), there),
        Feature("fields", FIELDS, torch.randn(rows, 9, width)),
        Feature("vector", VECTOR, torch.randn(rows, width)),
        Feature("nodes", NODES, torch.randn(rows, width)),
    ]


def learning(features: list[Feature]) -> list[Feature]:
    """Features of a student, which learn."""
    return [part._replace(values=part.values.clone().requires_grad_()) for part in features]


@pytest.mark.parametrize("project", [False, True])
def test_shares_are_one_together_and_the_loss_is_bounded(project: bool) -> None:
    """P1 and P2; only what can be compared has a share."""
    teacher, student = some(width=5), some(width=3)
    loss = loss_of(teacher, student, project=project)
    shares = loss.network([pooled(part) for part in teacher], [pooled(part) for part in student])
    torch.testing.assert_close(shares.sum(2), torch.ones(6, 5))
    expected = torch.eye(5, dtype=torch.bool)
    expected[3:, 3:] = True
    assert torch.equal(loss.network.pairs, expected) and not shares[:, ~expected].any()
    total = loss(teacher, student)
    assert 0 <= float(total) <= 4
    summed = loss_of(teacher, student, project=project, official=True)
    summed.official = False  # sums over places
    summed.load_state_dict(loss.state_dict())
    assert float(summed(teacher, student)) * 5 <= 4 * 5


def test_equal_features_are_at_no_distance() -> None:
    """P3."""
    features = some()
    distances = loss_of(features, features).distances(features, features)
    for place in range(5):
        assert float(distances[place, place].abs().max()) < 1e-10


@pytest.mark.parametrize("project", [False, True])
def test_gradients(project: bool) -> None:
    """P4: the student's features and everything that learns along; never the teacher's."""
    teacher = learning([*some(width=5), *some(rows=6, width=2)])
    student = learning([*some(width=3), *some(width=4)])
    loss = loss_of(teacher, student, project=project)
    constants = [part._replace(values=part.values.detach()) for part in teacher]
    loss(constants, student).backward()
    assert all(part.values.grad is None for part in teacher)
    assert all(part.values.grad is not None and bool(part.values.grad.any()) for part in student)
    network = loss.network
    for part in (
        network.of_teacher,
        network.of_student,
        *(each[0].weight for each in (*network.queries, *network.keys)),
    ):
        assert part.grad is not None and bool(part.grad.any())
    assert bool(network.bilinear[0].weight.grad.any())
    assert all(bool(each.weight.grad.any()) for each in loss.maps.values()) and bool(loss.maps) == project


def test_scales_and_rotations_do_not_matter() -> None:
    """P5 and P6, of distances: the shares depend on the features as they are."""
    features, others = some(), some(width=3)
    loss = loss_of(features, others)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5))
    scaled = [part._replace(values=3.5 * part.values) for part in features]
    turned = [*scaled[:3], *(part._replace(values=part.values @ rotation) for part in scaled[3:])]
    before, after = (loss.distances(part, others) for part in (features, turned))
    for pair, value in before.items():
        torch.testing.assert_close(after[pair], value, atol=1e-5, rtol=1e-4)


def test_padding_may_hold_anything() -> None:
    """P7: values and gradients."""
    teacher, student = some(), some(width=3)
    loss = loss_of(teacher, student)
    found = []
    for filling in (0.0, 1e9, torch.nan):
        filled = [
            part
            if part.valid is None
            else part._replace(values=part.values.masked_fill(~part.valid.unsqueeze(2), filling))
            for part in student
        ]
        mine = learning(filled)
        total = loss(teacher, mine)
        total.backward()
        found.append((float(total), mine[1].values.grad))
    assert found[0][0] == found[1][0] == found[2][0]
    for _, gradient in found:
        assert gradient is not None and torch.equal(gradient, found[0][1])  # type: ignore[arg-type]
        assert student[1].valid is not None and not gradient[~student[1].valid].any()


def test_a_plain_port_says_nothing_of_vectors() -> None:
    """As maps of one place they are all the same; by relations and projections they are not."""
    teacher, student = torch.randn(6, 5), torch.randn(6, 3)
    maps = [Feature("v", MAP, rows[:, :, None, None]) for rows in (teacher, student)]
    assert loss_of(maps[:1], maps[1:])(maps[:1], maps[1:]).item() == 0
    vectors = [Feature("v", VECTOR, rows) for rows in (teacher, student)]
    for project in (False, True):
        assert loss_of(vectors[:1], vectors[1:], project=project)(vectors[:1], vectors[1:]).item() > 0.01


def test_each_of_the_teachers_features_has_its_own_places() -> None:
    """Shapes A, B, A: the published index takes the last new one for the third feature."""
    wide, small = torch.randn(4, 2, 6, 6), torch.randn(4, 2, 3, 3)
    teacher = [Feature(name, MAP, values) for name, values in zip("aba", (wide, small, wide.flip(0)))]
    student = [Feature("s", MAP, torch.randn(4, 2, 6, 6))]
    distances = loss_of(teacher, student).distances(teacher, student)
    for place, part in enumerate(teacher):
        alone = loss_of([part], student).distances([part], student)[0, 0]
        torch.testing.assert_close(distances[place, 0], alone)


def test_neither_number_changes_the_loss() -> None:
    """A teacher's features twice, and every place twice: the published mean and sum change, the sum and mean do not."""
    teacher, student = some()[:1], some(width=3)[:1]
    longer = [
        [part._replace(values=part.values.repeat_interleave(2, dim=2)) for part in side] for side in (teacher, student)
    ]
    loss = loss_of(teacher, student)
    torch.testing.assert_close(loss(*longer), loss(teacher, student))
    twice = loss_of(teacher * 2, student)
    torch.testing.assert_close(twice(teacher * 2, student), loss(teacher, student))
    loss.official = twice.official = True
    torch.testing.assert_close(loss(*longer), loss(teacher, student) / 2)
    torch.testing.assert_close(twice(teacher * 2, student), 2 * loss(teacher, student))


def test_sequences_of_two_lengths_are_compared() -> None:
    teacher, student = some()[1:2], some()[1:2]
    shorter = [part._replace(values=part.values[:, :4], valid=part.valid[:, :4]) for part in student]  # type: ignore[index]
    assert loss_of(teacher, shorter)(teacher, shorter).isfinite()


def test_a_renewed_network_is_another_in_the_same_parameters() -> None:
    teacher, student = some(), some(width=3)
    loss = loss_of(teacher, student, project=True)
    before = {name: (id(part), part.detach().clone()) for name, part in loss.named_parameters()}
    torch.manual_seed(1)
    loss.renew()
    for name, part in loss.named_parameters():
        assert id(part) == before[name][0]
        assert part.isfinite().all() and (".1." in name or not torch.equal(part, before[name][1]))
