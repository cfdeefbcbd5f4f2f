"""Small networks that turn a student's vectors into the teacher's: regressors, and experts chosen per entity."""

from __future__ import annotations

import torch
from torch import nn

from recbole_prune.distillers.shared_experts import mixed

# of an expert in an entity: less than a thousandth of the reconstruction with thirty experts, and far below the noise
LEAST_SHARE = 1e-4
LOWEST_TEMPERATURE = 1e-3  # below it the gradient of the selection is 0 almost everywhere and huge near ties


def hidden_width(student: int, teacher: int) -> int:
    """Width of an expert's hidden layer: half of both together, or half of one where they are equal."""
    return student // 2 if student == teacher else (student + teacher) // 2


def temperature(epoch: int, epochs: int, last: float = 1e-10, floor: float = LOWEST_TEMPERATURE) -> float:
    """Temperature of the selection in an epoch: from 1 to ``last`` in equal ratios, updated after every epoch.

    Source: the DE-RRD code (methods/distillation_latent.md, section 3, step 8). The update after epoch ``e`` has the
    argument ``e``, so the first two epochs both have temperature 1.

    Args:
        epoch: the epoch in work, 0 for the first.
        epochs: epochs that the whole course takes.
        last: temperature at its end.
        floor: the lowest one in use.
    """
    course: float = last ** (max(epoch - 1, 0) / epochs)
    return max(course, last, floor)


def gumbel_like(logits: torch.Tensor) -> torch.Tensor:
    """Independent Gumbel(0, 1) noise from torch's global stream."""
    # a quarter of the time of exponential_
    return torch.rand_like(logits).log_().neg_().log_().neg_()


class Experts(nn.Module):
    """``M`` experts and a network that selects one of them per entity by the teacher's vector.

    Reconstruction of Kang et al., CIKM 2020 (DE; methods/distillation_latent.md, section 3, steps 1 to 4); with one
    expert there is no selection.

    Args:
        student, teacher: widths of the vectors.
        count: the number ``M`` of experts.
        least_share: on a CPU an expert's share in an entity below it is taken for 0, which saves most of the time once
            the temperature falls.
    """

    def __init__(self, student: int, teacher: int, count: int, least_share: float = 0.0) -> None:
        super().__init__()
        self.least_share = least_share
        hidden = hidden_width(student, teacher)
        layers = [(nn.Linear(student, hidden), nn.Linear(hidden, teacher)) for _ in range(count)]
        # in one product for all experts; each is initialised as a layer of its own
        first, second = zip(*layers)
        self.weight_in = nn.Parameter(torch.stack([layer.weight.detach().T for layer in first]))
        self.bias_in = nn.Parameter(torch.stack([layer.bias.detach() for layer in first])[:, None])
        self.weight_out = nn.Parameter(torch.stack([layer.weight.detach().T for layer in second]))
        self.bias_out = nn.Parameter(torch.stack([layer.bias.detach() for layer in second])[:, None])
        self.selection = nn.Linear(teacher, count) if count > 1 else None

    def shares(self, teacher: torch.Tensor, temperature: float, noise: torch.Tensor | None = None) -> torch.Tensor:
        """How much of each expert goes into each entity, ``[b, M]``, by the Gumbel-softmax of Jang et al. 2017.

        Args:
            teacher: vectors ``[b, d_T]``.
            temperature: towards 0 the shares become one-hot.
            noise: Gumbel noise ``[b, M]``; drawn if None.
        """
        assert self.selection is not None
        logits = self.selection(teacher).log_softmax(1)
        noise = gumbel_like(logits) if noise is None else noise
        shares: torch.Tensor = ((logits + noise) / temperature).softmax(1)
        return shares

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor, temperature: float, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The teacher's vectors ``[b, d_T]`` as reconstructed from the student's ``[b, d_S]``."""
        weights = self.weight_in, self.bias_in, self.weight_out, self.bias_out
        if self.selection is None:
            return mixed(student, student.new_ones(len(student), 1), weights, self.least_share)
        return mixed(student, self.shares(teacher, temperature, noise), weights, self.least_share)

    def groups(self, teacher: torch.Tensor) -> torch.Tensor:
        """Index of the expert that each teacher vector selects, without noise or gradient, ``[b]``."""
        assert self.selection is not None
        with torch.no_grad():
            chosen: torch.Tensor = self.selection(teacher).argmax(1)
        return chosen


class Personalisation(nn.Module):
    """A map from student to teacher of each entity's own, made by one network from the teacher's vector.

    Source: PHR (methods/distillation_latent.md, section 4).

    Args:
        student, teacher: widths of the vectors.
        hidden: width of the network's hidden layer.
    """

    def __init__(self, student: int, teacher: int, hidden: int) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        self.network = nn.Sequential(nn.Linear(teacher, hidden), nn.ReLU(), nn.Linear(hidden, student * teacher))

    def forward(self, student: torch.Tensor, enriched: torch.Tensor) -> torch.Tensor:
        """Reconstructions ``[b, d_T]`` from student vectors ``[b, d_S]`` and enriched teacher vectors ``[b, d_T]``."""
        maps = self.network(enriched).view(-1, self.teacher, self.student)
        return torch.einsum("bts,bs->bt", maps, student)


def squared_error(teacher: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
    """Sum over entities and coordinates of the squared differences."""
    return (teacher - reconstruction).square().sum()
