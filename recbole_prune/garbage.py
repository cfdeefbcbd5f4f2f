"""Python's search for cyclic garbage, which goes through all objects again whenever a quarter more have come.

Importing torch, pandas and RecBole and building a dataset make a million of objects, nearly all of which stay: the
searches find nothing and take a seventh of the time up to the first epoch.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def not_searched(forever: bool = False) -> Iterator[None]:
    """No search while much is made that stays; also a decorator. What was off before stays off.

    Args:
        forever: later searches pass over what is there by the end. Only for a process of ours: garbage stays, too.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if forever:
            gc.freeze()
        if was_on:
            gc.enable()
