"""Loops over compressed rows where numba is installed (extra ``fast``); else None.

torch needs ten operations with temporaries for what is one loop over the live entries of a batch's rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from numpy.typing import NDArray

from recbole_prune.sparse.compiling import available


class Positions(Protocol):
    """Where live entries stand."""

    @property
    def arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Pointers and columns."""


def kernel(name: str, rows: Positions, *tensors: torch.Tensor) -> Callable[[], Any] | None:
    """One of the loops, ready to be called on tensors, or None where it cannot: no numba, no CPU, or nothing is live.

    Args:
        name: of a loop in :mod:`recbole_prune.sparse.row_loops`.
        rows: asked for pointers and columns only where the loop can be called.
        tensors: values, then ids where there are any, then the table ``[rows, columns]``.
    """
    if tensors[-1].device.type != "cpu" or tensors[-1].dtype not in (torch.float32, torch.float64):
        return None
    if not available() or not len(tensors[0]):
        return None
    from recbole_prune.sparse import row_loops

    loop, arrays = getattr(row_loops, name), [tensor.detach().numpy() for tensor in tensors]
    return lambda: loop(*rows.arrays, *arrays)
