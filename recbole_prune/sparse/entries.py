"""The entries of a vector that are not 0, where they are few."""

from __future__ import annotations

import torch

from recbole_prune.sparse.compiling import available


def nonzero_entries(vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions, int32 and ascending, and values of the entries that are not 0.

    Args:
        vector: float32 on a CPU, of less than 2^31 entries.
    """
    if not available():
        positions = torch.nonzero(vector).view(-1)
        return positions.int(), vector.index_select(0, positions)
    from recbole_prune.sparse.entry_kernel import find

    flat = vector.detach().numpy()
    found = torch.empty(len(flat), dtype=torch.int32), torch.empty(len(flat))
    count = find(flat, flat.view("int32"), found[0].numpy(), found[1].numpy())
    return found[0][:count].clone(), found[1][:count].clone()
