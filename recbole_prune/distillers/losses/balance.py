"""Weights of several losses that keep pulling alike on what they share, after GradNorm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

FLOOR = 0.01
_TINY = 1e-12


class Pull(NamedTuple):
    """Gradients of a head's own loss ``g`` and of what is added to it ``c`` at one side's shared tensors.

    Attributes:
        own: ``|g|^2``.
        both: ``g . c``.
        added: ``|c|^2``.
        factor: how much the side counts.
    """

    own: torch.Tensor
    both: torch.Tensor
    added: torch.Tensor
    factor: float

    def norm_and_slope(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``factor |weight g + c|`` and its derivative with respect to the weight."""
        norm = (weight**2 * self.own + 2 * weight * self.both + self.added).clamp(min=0).sqrt()
        slope = (weight * self.own + self.both) / norm.clamp(min=_TINY)
        return self.factor * norm, self.factor * slope


def pull_of(
    loss: torch.Tensor, added: torch.Tensor | None, sources: Sequence[torch.Tensor], factor: float
) -> Pull | None:
    """The gradients at some tensors; no other tensor receives any. None where they do not count."""
    if not factor:
        return None
    own = _gradients(loss, sources)
    more = [None] * len(sources) if added is None else _gradients(added, sources)
    zero = loss.detach().new_zeros(())
    return Pull(_product(own, own, zero), _product(own, more, zero), _product(more, more, zero), factor)


Gradients = Sequence["torch.Tensor | None"]


def _gradients(loss: torch.Tensor, sources: Sequence[torch.Tensor]) -> Gradients:
    if not loss.requires_grad:
        return [None] * len(sources)
    found: Gradients = torch.autograd.grad(loss, sources, retain_graph=True, allow_unused=True)
    return found


def _product(one: Gradients, other: Gradients, zero: torch.Tensor) -> torch.Tensor:
    products = [(a * b).sum() for a, b in zip(one, other) if a is not None and b is not None]
    return torch.stack(products).sum() if products else zero


class Balance:
    """The weights of a head's losses as ConCF balances them (methods/distillation_ranking.md, section 6, step 3).

    After Chen et al., ICML 2018 (GradNorm). ``G_x`` is the norm of head x's weighted gradient, ``l_x`` its weighted
    loss over a reference. The weights follow ``sum_x |G_x - mean(G) (l_x / mean(l)) ** power|``, where the second term
    has no gradient, by Adam; then they are scaled to a mean of 1, and none is below ``FLOOR``. Nothing of this reaches
    the parameters of the model.

    Args:
        heads: how many.
        rate: Adam's learning rate.
        power: how much faster a head is to learn that lies behind.
        device: of the weights.

    Attributes:
        weights: the weights now, ``[heads]``, not to be changed.
    """

    def __init__(self, heads: int, rate: float, power: float, device: torch.device) -> None:
        self.power = power
        self._weights = nn.Parameter(torch.ones(heads, device=device))
        self._adam = torch.optim.Adam([self._weights], lr=rate)
        self._reference: torch.Tensor | None = None

    @property
    def weights(self) -> torch.Tensor:
        """A copy: a loss keeps what it was weighted with until its backward pass."""
        return self._weights.detach().clone()

    @torch.no_grad()
    def step(self, losses: torch.Tensor, pulls: Sequence[Sequence[Pull]], refer: bool) -> None:
        """Move the weights once.

        Args:
            losses: of the heads, not weighted, ``[heads]``.
            pulls: each head's gradients.
            refer: make these losses the reference.
        """
        weights = self._weights.detach()
        weighted = weights * losses
        found = [[pull.norm_and_slope(weight) for pull in sides] for weight, sides in zip(weights, pulls)]
        norms, slopes = (
            torch.stack([torch.stack([pair[place] for pair in sides]).sum() for sides in found]) for place in (0, 1)
        )
        if not bool(norms.isfinite().all() & weighted.isfinite().all()):
            return  # the model's step itself is left out, or its loss reported
        if refer or self._reference is None:
            self._reference = weighted.clone()
        self._weights.grad = ((norms - self.targets(norms, weighted)).sign() * slopes).to(weights)
        self._adam.step()
        weights.mul_(len(weights) / weights.sum().clamp(min=_TINY)).clamp_(min=FLOOR)

    def targets(self, norms: torch.Tensor, weighted: torch.Tensor) -> torch.Tensor:
        """Where the norms ``[heads]`` are to go, by how far each weighted loss has come from the reference."""
        assert self._reference is not None
        progress = (weighted / _away_from_zero(self._reference)).clamp(min=0)
        pace: torch.Tensor = (progress / progress.mean().clamp(min=_TINY)) ** self.power
        return norms.mean() * pace

    def state(self) -> dict[str, Any]:
        """Weights, moments and reference."""
        return {"weights": self.weights, "adam": self._adam.state_dict(), "reference": self._reference}

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        device = self._weights.device
        self._weights.detach().copy_(state["weights"])
        self._adam.load_state_dict(state["adam"])
        self._reference = None if state["reference"] is None else state["reference"].to(device)


def _away_from_zero(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values.abs() < _TINY, _TINY, values)
