"""Large tables for results between two steps of a computation, used again and again."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch

_MOST_TABLES = 3


class Workspace:
    """Lends tables of a computation that repeats.

    A new table comes in pages that the system clears one by one when they are first written: for one of some
    megabytes this takes as long as a product of a graph with it. Allocators give pages back and ask for them again.
    It is for one thread, and what it has lent it keeps until it is lent again or the workspace ends.
    """

    def __init__(self) -> None:
        self._lent: list[tuple[torch.Tensor, weakref.ref[torch.Tensor]]] = []

    def table(self, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """A table whose content is anything, of the type and on the device of ``like``.

        It is lent until nothing refers to the tensor that is returned; views of it do not count, so what is to be kept
        has to be copied.
        """
        wanted = tuple(shape)
        whole = self._take_back(wanted, like)
        if whole is None:
            self._lent = [lent for lent in self._lent if lent[1]() is not None][1 - _MOST_TABLES :]
            whole = like.new_empty(wanted)
        lent = whole.view(wanted)
        self._lent.append((whole, weakref.ref(lent)))
        return lent

    def _take_back(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor | None:
        """A table that was lent and fits, if there is one."""
        for place, (whole, borrower) in enumerate(self._lent):
            fits = tuple(whole.shape) == shape and (whole.dtype, whole.device) == (like.dtype, like.device)
            if fits and borrower() is None:
                del self._lent[place]
                return whole
        return None
