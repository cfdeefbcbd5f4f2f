"""Topology distillation: cosine similarities among the entities of a batch, all of them or by groups.

Source: Kang et al., KDD 2021 (FTD, HTD; methods/distillation_latent.md, sections 5 and 6).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize


def full_precision(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """No products in half precision inside, where autocast would have them: differences of cosines would be noise."""
    return torch.autocast(tensor.device.type, enabled=False)


def cosines(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of every row of ``[n, d]`` with every row of ``[m, d]``, 0 with a row of zeros: ``[n, m]``."""
    with full_precision(one):
        return normalize(one.float(), dim=1) @ normalize(other.float(), dim=1).T


def full_topology(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared differences of all pairwise cosines, each pair in both orders (FTD).

    With unit vectors as rows of ``S`` and ``T``, ``|SS' - TT'|^2 = |S'S|^2 - 2 |T'S|^2 + |T'T|^2``: products of the
    widths, in double precision since large terms cancel, in place of ``n^2`` cosines.

    Args:
        student, teacher: vectors of the same entities, ``[n, d_S]`` and ``[n, d_T]``.
    """
    with full_precision(student):
        mine, theirs = (normalize(vectors.double(), dim=1) for vectors in (student, teacher))
        squares = [(one.T @ other).square().sum() for one, other in ((mine, mine), (theirs, mine), (theirs, theirs))]
        return (squares[0] - 2 * squares[1] + squares[2]).to(torch.promote_types(student.dtype, torch.float32))


@dataclass(frozen=True)
class Topology:
    """How groups enter the loss of HTD; the defaults are the paper's formulas, the code's stand behind them.

    Attributes:
        mask_own_group: leave out a group's cosine with its own members (the code keeps it).
        positive_only: count pairs in a group only where the teacher's cosine is positive (an artefact of the code).
        gradient_of_prototypes: let the student's group means send gradients (the code computes them without).
        between_groups: compare groups with groups, ``Group(P,P)``, not with entities, ``Group(P,e)``.
    """

    mask_own_group: bool = True
    positive_only: bool = False
    gradient_of_prototypes: bool = True
    between_groups: bool = False

    def entity_level(self, student: torch.Tensor, teacher: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """Squared differences of cosines over the ordered pairs within a group.

        Args:
            student, teacher: vectors of the same entities, ``[n, d_S]`` and ``[n, d_T]``.
            groups: the group of each entity, any integers, ``[n]``.
        """
        order, sizes = groups.argsort(), groups.unique(return_counts=True)[1].tolist()
        parts = (normalize(vectors.float(), dim=1)[order].split(sizes) for vectors in (student, teacher))
        return torch.stack([self._within(mine, theirs) for mine, theirs in zip(*parts)]).sum()

    def _within(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The same for unit vectors of one group."""
        with full_precision(student):
            of_teacher = teacher @ teacher.T
            squares = (of_teacher - student @ student.T).square()
        return (squares * (of_teacher > 0)).sum() if self.positive_only else squares.sum()

    def group_level(self, student: torch.Tensor, teacher: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """Squared differences of the cosines that groups have with entities, or with groups."""
        members = one_hot(groups).to(teacher.device)
        means = members / members.sum(0)
        with full_precision(student):
            of_teacher, of_student = means.T @ teacher.float(), means.T @ student.float()
        if not self.gradient_of_prototypes:
            of_student = of_student.detach()
        if self.between_groups:
            return (cosines(of_teacher, of_teacher) - cosines(of_student, of_student)).square().sum()
        difference = (cosines(of_teacher, teacher) - cosines(of_student, student)).square()
        return (difference * (1 - members.T)).sum() if self.mask_own_group else difference.sum()


def one_hot(groups: torch.Tensor) -> torch.Tensor:
    """Membership ``[n, G]`` over the ``G`` groups that are present."""
    present, index = groups.unique(return_inverse=True)
    return torch.eye(len(present), device=groups.device)[index]
