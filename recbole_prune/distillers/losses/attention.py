"""The feature loss of "Show, Attend and Distill": which of the student's features learns from which of the teacher's.

Source: Ji, Heo, Park, AAAI 2021, arXiv 2102.02973; methods/attention_distillation_pruning.md, section 1, A2 to A8,
for maps as published, and section 6 for sequences, fields and vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, normalize

from recbole_prune.anatomy.feature_points.features import FIELDS, MAP, NODES, SEQUENCE, VECTOR, Feature
from recbole_prune.distillers.losses.topology import full_precision

# what can be compared with each other
GROUPS = {MAP: "maps", SEQUENCE: "sequences", FIELDS: "fields", VECTOR: "vectors", NODES: "vectors"}
VECTORS = GROUPS[VECTOR]
# rows of a batch between which vectors are compared
MOST_ROWS = 256
_LEAST_LENGTH = 1e-12


class Shape(NamedTuple):
    """What is known of a feature before any training.

    Attributes:
        kind: of feature.
        channels: its width.
        places: over which it says something; 1 for vectors.
    """

    kind: str
    channels: int
    places: int

    @classmethod
    def of(cls, feature: Feature) -> Shape:
        """That of a feature."""
        values = feature.values
        if feature.kind == MAP:
            return cls(feature.kind, feature.channels, values.shape[2] * values.shape[3])
        return cls(feature.kind, feature.channels, 1 if GROUPS[feature.kind] == VECTORS else values.shape[1])

    @property
    def group(self) -> str:
        """The kinds with which it can be compared."""
        return GROUPS[self.kind]


def without_padding(feature: Feature) -> torch.Tensor:
    """The values, 0 at padding, which may hold anything."""
    values = feature.values.float()
    return values if feature.valid is None else torch.where(feature.valid.unsqueeze(2), values, 0.0)


def pooled(feature: Feature) -> torch.Tensor:
    """Means over places, padding left out, ``[n, C]`` (A2)."""
    values = without_padding(feature)
    if GROUPS[feature.kind] == VECTORS:
        return values
    if feature.kind == MAP:
        return values.mean((2, 3))
    if feature.valid is None:
        return values.mean(1)
    return values.sum(1) / feature.valid.sum(1, keepdim=True).clamp(min=1)


def energy(feature: Feature) -> torch.Tensor:
    """Means of squares over channels, 0 at padding, ``[n, H, W]`` or ``[n, L]`` (A2)."""
    return without_padding(feature).square().mean(1 if feature.kind == MAP else 2)


def resized(energies: torch.Tensor, places: torch.Size) -> torch.Tensor:
    """Energies at other places ``[n, *places]``: means of those that fall together; repeated where there are more."""
    if energies.shape[1:] == places:
        return energies
    maps = energies.unsqueeze(1)
    if len(places) == 1:
        return adaptive_avg_pool1d(maps, places[0]).squeeze(1)
    return adaptive_avg_pool2d(maps, (places[0], places[1])).squeeze(1)


def of_length_one(values: torch.Tensor) -> torch.Tensor:
    """Rows ``[n, N]`` of length 1; a row of zeros stays."""
    return normalize(values.flatten(1), dim=1, eps=_LEAST_LENGTH)


def relation(vectors: torch.Tensor) -> torch.Tensor:
    """How each row is to all others: rows of ``H H^T``, of length 1, ``[n, n]`` (6.1).

    The same for any rotation and any scale of all vectors, so widths may differ. The means of squares that maps are
    compared by say nothing of a vector: over a single place they are 1 for each.
    """
    return of_length_one(vectors @ vectors.T)


class MetaNetwork(nn.Module):
    """Says how much of each of the teacher's features each of the student's is to learn (A3 to A7).

    Batch norms look at the rows of a batch only and keep nothing.

    Args:
        teacher, student: widths of the features, ``T`` and ``S`` of them.
        width: of queries and keys.
        pairs: which can be compared, bool ``[T, S]``; at least one in each row.
    """

    pairs: torch.Tensor

    def __init__(self, teacher: Sequence[int], student: Sequence[int], width: int, pairs: torch.Tensor) -> None:
        super().__init__()
        self.width = width
        self.queries = nn.ModuleList(_linear(channels, width) for channels in teacher)
        self.keys = nn.ModuleList(_linear(channels, width) for channels in student)
        self.bilinear = _linear(width, len(teacher) * width)
        self.of_teacher = nn.Parameter(torch.empty(len(teacher), width))
        self.of_student = nn.Parameter(torch.empty(len(student), width))
        self.register_buffer("pairs", pairs, persistent=False)
        self.renew()

    def renew(self) -> None:
        """Draw all weights anew; the parameters stay the same objects."""
        for part in self.modules():
            if isinstance(part, (nn.Linear, nn.BatchNorm1d)):
                part.reset_parameters()
        for places in (self.of_teacher, self.of_student):
            nn.init.xavier_normal_(places)

    def forward(self, teacher: Sequence[torch.Tensor], student: Sequence[torch.Tensor]) -> torch.Tensor:
        """Shares ``[n, T, S]``, 1 together over the student's features.

        Args:
            teacher, student: pooled features, ``[n, C]`` each.
        """
        queries = torch.stack([network(part) for network, part in zip(self.queries, teacher)])
        keys = torch.stack([network(part).relu() for network, part in zip(self.keys, student)], dim=1)
        seen = self.bilinear(keys.flatten(0, 1)).view(*keys.shape[:2], len(teacher), self.width)
        products = torch.einsum("nstq,tnq->nts", seen, queries) + self.of_teacher @ self.of_student.T
        shares: torch.Tensor = (products / self.width**0.5).masked_fill(~self.pairs, -torch.inf).softmax(2)
        return shares


def _linear(channels: int, width: int) -> nn.Sequential:
    """A layer and a batch norm, which would take a bias between them away."""
    return nn.Sequential(nn.Linear(channels, width, bias=False), nn.BatchNorm1d(width, track_running_stats=False))


class AttentionLoss(nn.Module):
    """The feature loss ``sum_t mean_n sum_s a[n, t, s] * |v_s[n] - v_t[n]|^2`` (A8), and all that learns for it.

    Args:
        teacher, student: shapes of the features.
        width: of queries and keys.
        project: compare vectors through a linear map for each pair, not by their relations in the batch.
        official: mean over places, sum over the teacher's features, as published; else the sum over places and the
            mean over the teacher's features, so that the loss depends on neither number.
    """

    def __init__(
        self, teacher: Sequence[Shape], student: Sequence[Shape], width: int, project: bool, official: bool
    ) -> None:
        super().__init__()
        self.project, self.official = project, official
        pairs = [[mine.group == theirs.group for mine in student] for theirs in teacher]
        self.network = MetaNetwork(
            [shape.channels for shape in teacher], [shape.channels for shape in student], width, torch.tensor(pairs)
        )
        self.maps = nn.ModuleDict()
        for place, theirs in enumerate(teacher if project else ()):
            for number, mine in enumerate(student):
                if theirs.group == mine.group == VECTORS:
                    self.maps[_name(place, number)] = nn.Linear(mine.channels, theirs.channels, bias=False)
        self.relates = not project and any(shape.group == VECTORS for shape in teacher)

    def renew(self) -> None:
        """Draw all weights anew; the parameters stay the same objects."""
        self.network.renew()
        for part in self.maps.values():
            assert isinstance(part, nn.Linear)
            part.reset_parameters()

    def forward(self, teacher: Sequence[Feature], student: Sequence[Feature]) -> torch.Tensor:
        """The loss of some rows, the mean over them.

        Args:
            teacher, student: features of the same rows ``n``; two at least, since batch norms compare them.
        """
        with full_precision(student[0].values):
            shares = self.network([pooled(part) for part in teacher], [pooled(part) for part in student])
            distances = self.distances(teacher, student)
            total = sum((shares[:, place, number] * value).mean() for (place, number), value in distances.items())
        assert isinstance(total, torch.Tensor), "every feature of the teacher has one to go with"
        return total if self.official else total / len(teacher)

    def distances(self, teacher: Sequence[Feature], student: Sequence[Feature]) -> dict[tuple[int, int], torch.Tensor]:
        """``|v_s - v_t|^2`` of each pair that can be compared, ``[n]``."""
        found = {}
        known: dict[tuple[int, torch.Size], torch.Tensor] = {}
        for place, theirs in enumerate(teacher):
            target = self._target(theirs)
            for number, mine in enumerate(student):
                if not self.network.pairs[place, number]:
                    continue
                if self.project and GROUPS[mine.kind] == VECTORS:
                    values = of_length_one(self.maps[_name(place, number)](mine.values.float()))
                else:
                    places = _places(theirs)
                    if (number, places) not in known:
                        known[number, places] = self._values(mine, places)
                    values = known[number, places]
                squares = (values - target).square()
                found[place, number] = squares.mean(1) if self.official else squares.sum(1)
        return found

    def _target(self, feature: Feature) -> torch.Tensor:
        if self.project and GROUPS[feature.kind] == VECTORS:
            return of_length_one(feature.values.float())
        return self._values(feature, _places(feature))

    def _values(self, feature: Feature, places: torch.Size) -> torch.Tensor:
        """The rows ``[n, N]`` that are compared."""
        if GROUPS[feature.kind] == VECTORS:
            return relation(feature.values.float())
        return of_length_one(resized(energy(feature), places))


def _places(feature: Feature) -> torch.Size:
    if GROUPS[feature.kind] == VECTORS:
        return torch.Size()
    return feature.values.shape[2:] if feature.kind == MAP else feature.values.shape[1:2]


def _name(place: int, number: int) -> str:
    return f"{place}-{number}"
