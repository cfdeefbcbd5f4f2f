"""Loops compiled by numba where it is installed and works."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from logging import getLogger
from typing import Any, TypeVar, cast

Loop = TypeVar("Loop", bound=Callable[..., Any])


@cache
def _njit() -> Callable[..., Any] | None:
    """``numba.njit``; a warning says why the numba that is installed cannot be imported."""
    if find_spec("numba") is None:
        return None
    try:
        from numba import njit
    except Exception as error:  # a broken package may raise anything
        reason = f"{type(error).__name__}: {error}"
        getLogger(__name__).warning(f"numba is installed but cannot be imported, loops are not compiled: {reason}")
        return None
    return cast("Callable[..., Any]", njit)


def available() -> bool:
    """Whether numba is installed and works."""
    return _njit() is not None


def compile_loop(loop: Loop, **options: object) -> Loop | None:
    """A loop compiled by numba; it releases the interpreter's lock. None where numba is not :func:`available`.

    Args:
        loop: a function of numpy arrays.
        options: further ones of ``numba.njit``.
    """
    njit = _njit()
    if njit is None:
        return None
    try:
        compiled: Loop = njit(loop, nogil=True, cache=True, **options)
    except RuntimeError:  # numba finds no folder for its cache
        compiled = njit(loop, nogil=True, **options)
    return compiled
