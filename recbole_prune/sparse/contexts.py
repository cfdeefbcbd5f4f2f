"""What torch hands to ``torch.autograd.Function`` as ``ctx``, for annotations: torch's own class says less."""

from __future__ import annotations

from typing import Protocol

import torch


class SavingContext(Protocol):
    """Keeps tensors of the forward pass for the backward pass."""

    @property
    def saved_tensors(self) -> tuple[torch.Tensor, ...]:
        """What was saved, in order; asked for in the backward pass."""

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        """Keep inputs and outputs, and notice it if they are changed before the backward pass."""
