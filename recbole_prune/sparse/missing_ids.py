"""What is looked up where there is no id, as its result is thrown away."""

from __future__ import annotations

import torch


def with_stand_ins(ids: torch.Tensor) -> torch.Tensor:
    """Ids with one that there is for each -1: on a CPU, where distinct ids cost, always 0, elsewhere evenly spread.

    Args:
        ids: integers ``[n, k]``, at least -1.
    """
    return ids.clamp(min=0) if ids.device.type == "cpu" else spread_over_ids(ids)


def spread_over_ids(ids: torch.Tensor) -> torch.Tensor:
    """Ids ``[n, k]`` with others, evenly taken, where they are -1: a GPU adds the gradients of one row one by one."""
    others = torch.arange(ids.numel(), device=ids.device, dtype=ids.dtype).view_as(ids) % (ids.max().clamp(min=0) + 1)
    return torch.where(ids < 0, others, ids)
