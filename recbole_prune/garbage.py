"""Python's search for cyclic garbage, which goes through all objects again whenever a quarter more have come.

Importing torch, pandas and RecBole and building a dataset make a million of objects, nearly all of which stay: the
searches find nothing and take a seventh of the time up to the first epoch.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_process_is_ours = False


def own_process() -> None:
    """Say that this process is a command of this package, and no program that calls it."""
    global _process_is_ours
    _process_is_ours = True


@contextmanager
def not_searched(forever: bool = False) -> Iterator[None]:
    """No search while much is made that stays; also a decorator. What was off before stays off.

    Args:
        forever: in a process of our own later searches pass over what is there by the end, garbage too.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if forever and _process_is_ours:
            gc.freeze()
        if was_on:
            gc.enable()
