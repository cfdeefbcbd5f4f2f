"""Distillers that copy vectors: hint regression, distillation experts, personalised hints, topology."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Optional

import numpy as np
import torch
from scipy import sparse
from torch import nn

from recbole_prune.anatomy.vectors import Vectors, field_vectors, reason_without_fields, vectors_of
from recbole_prune.distillers.base import Distiller, Promises
from recbole_prune.distillers.experts import (
    LEAST_SHARE,
    LOWEST_TEMPERATURE,
    Experts,
    Personalisation,
    squared_error,
    temperature,
)
from recbole_prune.distillers.losses.topology import Topology, full_topology

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_prune.teachers.base import Teacher
    from recbole_prune.training.model import MaskAware

Pair = tuple[torch.Tensor, torch.Tensor]
Ids = Optional[torch.Tensor]


def student_vectors(model: AbstractRecommender) -> Vectors:
    """Where the vectors of a student are that was found to have some."""
    found = vectors_of(model)
    assert found is not None, "the student was checked before any training"
    return found


class VectorDistiller(Distiller):
    """Reads the student's and the teacher's vectors of the entities of a batch."""

    promises = Promises(vectors=True, refuses=(r"\bvectors?\b", r"no product scores"))

    @classmethod
    def ask(cls, student: AbstractRecommender, teacher: Teacher) -> None:
        """For its tables, in one space where the method compares them."""
        if cls.promises.one_space:
            teacher.require_one_space()
        _ = teacher.tables

    def widths(self, model: MaskAware) -> tuple[tuple[int, int], tuple[int, int]]:
        """(student, teacher) widths of user vectors and of item vectors."""
        users, items = student_vectors(model).widths(model)
        return (users, self.teacher.widths[0]), (items, self.teacher.widths[1])

    def users(self, model: MaskAware, batch: Interaction, ids: torch.Tensor | None) -> Pair:
        """(student, teacher) vectors of users, or of the rows of a batch where ``ids`` is None."""
        rows = batch if ids is None else ids
        return student_vectors(model).user_vectors(model, rows), self.teacher.user_vectors(rows)

    def items(self, model: MaskAware, ids: torch.Tensor) -> Pair:
        """(student, teacher) vectors of items."""
        return student_vectors(model).item_vectors(model, ids), self.teacher.item_vectors(ids)


class Hints(VectorDistiller):
    """FitNets-style hint regression: one regressor for users and one for items.

    Source: methods/distillation_latent.md, section 2; with ``distill_regressor=mlp`` a regressor is one DE expert.
    """

    promises = Promises(vectors=True, refuses=(*VectorDistiller.promises.refuses, r"is narrower than the student"))

    @classmethod
    def for_student(cls, student: AbstractRecommender) -> type[Distiller]:
        """Models that read bundles of fields are taught by the vectors of those; this method only."""
        of_fields = vectors_of(student) is None and not reason_without_fields(type(student))
        return FieldHints if of_fields and cls is Hints else cls

    @classmethod
    def ask(cls, student: AbstractRecommender, teacher: Teacher) -> None:
        """For its tables, which must not be narrower than the student's."""
        super().ask(student, teacher)
        for kind, mine, theirs in zip(("user", "item"), student_vectors(student).widths(student), teacher.widths):
            require_wide(teacher, f"{kind} vectors", mine, theirs)

    def regressor(self, student: int, teacher: int) -> nn.Module:
        """The network that turns vectors of one width into vectors of the other."""
        linear = self.settings.distill_regressor == "linear"
        return nn.Linear(student, teacher) if linear else Experts(student, teacher, 1)

    def helpers(self, model: MaskAware) -> nn.ModuleDict:
        """The two regressors."""
        return nn.ModuleDict({side: self.regressor(*pair) for side, pair in zip(("user", "item"), self.widths(model))})

    def reconstruct(self, side: str, ids: Ids, pair: Pair) -> torch.Tensor:
        """The teacher's vectors of entities as the student's give them."""
        network, (student, teacher) = self._helpers[side], pair
        found: torch.Tensor = network(student) if isinstance(network, nn.Linear) else network(student, teacher, 1.0)
        return found

    def error(self, side: str, ids: Ids, pair: Pair) -> torch.Tensor:
        """Sum of squared errors over entities of one kind."""
        return squared_error(pair[1], self.reconstruct(side, ids, pair))

    def error_of(self, model: MaskAware, interaction: Interaction) -> torch.Tensor:
        """Users whole; positive and negative items by half each, an item of both counts in both."""
        there = self.pupils.entities(interaction)
        items = torch.cat([there.positives, there.negatives])
        users = self.error("user", there.users, self.users(model, interaction, there.users))
        return users + 0.5 * self.error("item", items, self.items(model, items))

    def terms(self, model: MaskAware, interaction: Interaction) -> Mapping[str, tuple[float, torch.Tensor]]:
        """The sum of squared errors."""
        return {self.settings.distiller: (self.settings.distill_weight, self.error_of(model, interaction))}


def experts_of_sides(distiller: VectorDistiller, model: MaskAware, count: int) -> nn.ModuleDict:
    """Experts for users and for items; the published code gives all of them a share in every entity."""
    least = 0.0 if distiller.settings.distill_parity == "official" else LEAST_SHARE
    sides = zip(("user", "item"), distiller.widths(model))
    return nn.ModuleDict({side: Experts(*pair, count, least) for side, pair in sides})


class FieldHints(Hints):
    """Hints for context-aware models: one regressor for the vectors of a row's fields side by side."""

    promises = Promises(refuses=(r"is narrower than the student",))

    @classmethod
    def ask(cls, student: AbstractRecommender, teacher: Teacher) -> None:
        """For the vectors of a few rows, which must not be narrower than the student's."""
        rows = teacher.pupils.first_rows().to(student.device)
        theirs = teacher.field_vectors(rows).shape[1]
        with torch.no_grad():
            require_wide(teacher, "vectors of all fields", field_vectors(student, rows).shape[1], theirs)

    def helpers(self, model: MaskAware) -> nn.ModuleDict:
        """The regressor."""
        rows = self.pupils.first_rows().to(model.device)
        with torch.no_grad():
            widths = field_vectors(model, rows).shape[1], self.teacher.field_vectors(rows).shape[1]
        return nn.ModuleDict({"row": self.regressor(*widths)})

    def error_of(self, model: MaskAware, interaction: Interaction) -> torch.Tensor:
        """Every row of the batch."""
        return self.error("row", None, (field_vectors(model, interaction), self.teacher.field_vectors(interaction)))


def require_wide(teacher: Teacher, what: str, student: int, theirs: int) -> None:
    """Refuse a teacher whose vectors are narrower than the student's; equal widths are self-distillation.

    Raises:
        ConfigError: it is.
    """
    if theirs < student:
        raise teacher.refuse(
            f"is narrower than the student: its {what} have width {theirs}, the student's {student}; take a wider "
            "teacher, a narrower student, or a method that compares cosines or rankings"
        )


class DistillationExperts(Hints):
    """DE of Kang et al., CIKM 2020: entities of similar taste share an expert (methods/distillation_latent.md 3)."""

    @property
    def temperature(self) -> float:
        """That of the epoch in work."""
        floor = 0.0 if self.settings.distill_parity == "official" else LOWEST_TEMPERATURE
        return temperature(self.epoch, self.settings.distill_temperature_epochs, floor=floor)

    def helpers(self, model: MaskAware) -> nn.ModuleDict:
        """Experts and selection, for users and for items."""
        return experts_of_sides(self, model, self.settings.distill_experts)

    def reconstruct(self, side: str, ids: Ids, pair: Pair) -> torch.Tensor:
        """By the experts selected."""
        found: torch.Tensor = self._helpers[side](*pair, self.temperature)
        return found


class PersonalisedHints(Hints):
    """PHR: every entity has a map of its own, made from its enriched vector (methods/distillation_latent.md 4)."""

    @property
    def official(self) -> bool:
        """Whether to do as the public code does."""
        return bool(self.settings.distill_parity == "official")

    def helpers(self, model: MaskAware) -> nn.ModuleDict:
        """The networks that make the maps; the code has one, of twice the width, for users and items alike."""
        users, items = (self._network(*widths) for widths in self.widths(model))
        one = self.official and (users.student, users.teacher) == (items.student, items.teacher)
        return nn.ModuleDict({"user": users, "item": users if one else items})

    def _network(self, student: int, teacher: int) -> Personalisation:
        hidden = teacher + teacher * student
        return Personalisation(student, teacher, hidden if self.official else hidden // 2)

    def attach(self, model: MaskAware) -> None:
        """Build the networks and the enriched vectors."""
        super().attach(model)
        self._enriched: dict[str, torch.Tensor] = {}
        if self.teacher.tables is not None and not self.official:
            users, items = enriched(*self.teacher.tables, self.pupils.consumed.codes)
            self._enriched = {"user": users, "item": items}

    def reconstruct(self, side: str, ids: Ids, pair: Pair) -> torch.Tensor:
        """By each entity's own map."""
        student, teacher = pair
        known = self._enriched.get(side)
        found: torch.Tensor = self._helpers[side](student, teacher if known is None or ids is None else known[ids])
        return found


def enriched(users: torch.Tensor, items: torch.Tensor, codes: np.ndarray) -> Pair:
    """Each vector halfway to the mean of its neighbours in the training data; without neighbours it stays.

    Args:
        users, items: tables ``[U, d]`` and ``[N, d]``.
        codes: training pairs as ``user * N + item``.
    """
    rows, columns = np.divmod(codes, len(items))
    pairs = sparse.csr_matrix((np.ones(len(codes), np.float32), (rows, columns)), shape=(len(users), len(items)))
    return _halfway(users, items, pairs), _halfway(items, users, pairs.T.tocsr())


def _halfway(own: torch.Tensor, others: torch.Tensor, pairs: sparse.csr_matrix) -> torch.Tensor:
    degree = np.diff(pairs.indptr)[:, None]
    means = (pairs @ others.cpu().numpy()) / np.maximum(degree, 1)
    found = np.where(degree > 0, 0.5 * (own.cpu().numpy() + means), own.cpu().numpy())
    return torch.from_numpy(found).to(own)


class FullTopology(VectorDistiller):
    """FTD of Kang et al., KDD 2021: all cosines among users and items of a batch (methods/distillation_latent.md 5)."""

    promises = Promises(
        vectors=True, one_space=True, refuses=(*VectorDistiller.promises.refuses, r"are not in one space")
    )

    def both(self, model: MaskAware, batch: Interaction) -> tuple[Pair, Pair]:
        """Vectors of the users and of the items of a batch."""
        there = self.pupils.entities(batch)
        return self.users(model, batch, there.users), self.items(model, there.items)

    def terms(self, model: MaskAware, interaction: Interaction) -> Mapping[str, tuple[float, torch.Tensor]]:
        """The squared differences of the cosines."""
        users, items = self.both(model, interaction)
        student, teacher = (torch.cat([users[place], items[place]]) for place in (0, 1))
        return {self.settings.distiller: (self.settings.distill_weight, full_topology(student, teacher))}


class HierarchicalTopology(FullTopology):
    """HTD of Kang et al., KDD 2021: topology between and within learned groups (methods/distillation_latent.md 6)."""

    def helpers(self, model: MaskAware) -> nn.ModuleDict:
        """Experts, whose selection groups the entities."""
        return experts_of_sides(self, model, self.settings.distill_groups)

    @property
    def topology(self) -> Topology:
        """The paper's formulas, or those of the code."""
        design = self.settings.distill_group_design == "groups"
        if self.settings.distill_parity == "official":
            return Topology(False, True, False, design)
        return Topology(between_groups=design)

    def terms(self, model: MaskAware, interaction: Interaction) -> Mapping[str, tuple[float, torch.Tensor]]:
        """``gamma`` of topology and the rest of group assignment."""
        settings, assignment = self.settings, torch.zeros((), device=model.device)
        groups: list[torch.Tensor] = []
        floor = 0.0 if settings.distill_parity == "official" else LOWEST_TEMPERATURE
        tau = temperature(self.epoch, self.epochs, floor=floor)
        pairs = self.both(model, interaction)
        for side, (student, teacher) in zip(("user", "item"), pairs):
            experts = self._helpers[side]
            assignment = assignment + squared_error(teacher, experts(student, teacher, tau))
            assert isinstance(experts, Experts)
            groups.append(experts.groups(teacher) + len(groups) * settings.distill_groups)
        student, teacher, group = (
            torch.cat([pairs[0][0], pairs[1][0]]),
            torch.cat([pairs[0][1], pairs[1][1]]),
            torch.cat(groups),
        )
        topology = self.topology
        shape = topology.group_level(student, teacher, group) + topology.entity_level(student, teacher, group)
        gamma, weight = settings.distill_balance, settings.distill_weight
        return {"htd_topology": (weight * gamma, shape), "htd_groups": (weight * (1 - gamma), assignment)}
