"""Values whose pickle follows from what they hold, not from which of their parts are the same object."""

from __future__ import annotations

import sys
from typing import Any


def unshared(value: Any) -> Any:
    """A copy of nested dicts, lists and tuples in which no container occurs twice and equal strings are one object.

    A pickle writes an object once and refers to it where it occurs again. Which strings and tuples of equal settings
    or optimizer states are the same object depends on where they were read from: made by the program, or put back
    from a resume point. Everything else is taken over as it is, containers of other classes included.
    """
    if type(value) is str:
        return sys.intern(value)
    if type(value) in (list, tuple):
        return type(value)(map(unshared, value))
    if type(value) is dict:
        return {unshared(key): unshared(item) for key, item in value.items()}
    return value
