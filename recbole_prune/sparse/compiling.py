"""Loops compiled by numba where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def compile_loop(loop: Callable[..., Any], **options: Any) -> Callable[..., Any] | None:
    """A loop compiled by numba; it releases the interpreter's lock. None where numba is not installed.

    Args:
        loop: a function of numpy arrays.
        options: further ones of ``numba.njit``.
    """
    try:
        from numba import njit
    except ImportError:
        return None
    try:
        return njit(loop, nogil=True, cache=True, **options)  # type: ignore[no-any-return]
    except RuntimeError:  # numba finds no folder for its cache
        return njit(loop, nogil=True, **options)  # type: ignore[no-any-return]
