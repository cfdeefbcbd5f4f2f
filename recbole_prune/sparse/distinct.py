"""Which ids occur among many, without sorting them."""

from __future__ import annotations

import torch


def distinct(ids: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct ids and where each id stands among them: ``ids.unique(return_inverse=True)`` for ids below a bound.

    A batch of a listwise loss has hundreds of thousands of ids of a few thousand users; sorting them takes longer
    than their scores.

    Args:
        ids: int64 of any shape, in ``[0, count)``.
        count: how many ids there are.

    Returns:
        (the distinct ids, ascending; indices into them in the shape of ``ids``).
    """
    seen = torch.zeros(count, dtype=torch.bool, device=ids.device)
    seen[ids.reshape(-1)] = True
    return seen.nonzero().squeeze(1), (seen.cumsum(0) - 1)[ids]
