"""Divergences between the logits of teacher and student at a temperature, by what the student's loss compares.

Source: methods/attention_distillation_pruning.md, A9 and section 6.3.
"""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div


def softmax_divergence(scores: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """``T^2 KL(softmax(t / T) || softmax(s / T))`` of each row ``[rows, items]``, 0 where the teacher has NaN."""
    known = ~teacher.isnan().any(1, keepdim=True)
    targets = torch.where(known, teacher, 0.0).float() / temperature
    logits = scores.float() / temperature
    rows = kl_div(logits.log_softmax(1), targets.log_softmax(1), reduction="none", log_target=True).sum(1)
    return temperature**2 * rows * known.squeeze(1)


def bernoulli_divergence(scores: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """``T^2 KL(Bern(sigmoid(t / T)) || Bern(sigmoid(s / T)))`` of each logit, 0 where the teacher has NaN."""
    known = ~teacher.isnan()
    theirs = torch.where(known, teacher, 0.0).float() / temperature
    targets = theirs.sigmoid()
    both = (
        binary_cross_entropy_with_logits(logits, targets, reduction="none")
        for logits in (scores.float() / temperature, theirs)
    )
    crossed, entropy = both
    return temperature**2 * (crossed - entropy) * known


def squared_difference(scores: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """``(s - t)^2`` of each score, 0 where the teacher has NaN."""
    return torch.where(teacher.isnan(), 0.0, scores.float() - teacher).square()
