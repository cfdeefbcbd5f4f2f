"""Loops compiled by numba where it is installed and works, and whether to load it for a piece of work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from logging import getLogger
from typing import Any, TypeVar, cast

from recbole_prune.sparse.loop_cache import Dispatcher, keep_on_disk

Loop = TypeVar("Loop", bound=Callable[..., Any])

# importing numba and reading a loop from the cache, on a slow core
_LOADING_SECONDS = 1.0
_forgone_seconds = 0.0
_shown_to_torch = False


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
    """Whether numba is installed and works; the first call imports it."""
    return _njit() is not None


def pays(seconds: float) -> bool:
    """Whether compiled loops are worth their loading: they are loaded, or would have saved this process more by now.

    Without them the same results come from numpy, so a program that asks for little never waits for numba, and one
    that asks for little again and again loads it once.

    Args:
        seconds: what the loops would save in the work at hand.
    """
    global _forgone_seconds
    _forgone_seconds += seconds
    return bool(_njit.cache_info().currsize) or _forgone_seconds > _LOADING_SECONDS


def compile_loop(loop: Loop, *, alone: bool = True, fastmath: Collection[str] = (), divides: bool = False) -> Loop:
    """A loop compiled by numba where it is :func:`available`, else as it is, for which it is too slow.

    It is compiled when it is first called, once for a machine (:mod:`recbole_prune.sparse.loop_cache`), and releases
    the interpreter's lock.

    Args:
        loop: a function of numpy arrays and numbers. Other compiled loops that it calls must be globals of its module:
            as arguments they are types of their own in every process, and nothing is found on the disk again.
        alone: it is called from Python; otherwise only from other loops, with which it is kept.
        fastmath: what the compiler may take liberties with, as ``numba.njit`` takes it.
        divides: it divides many numbers, none of them by 0: without Python's error for that they are divided together.
    """
    njit = _njit()
    if njit is None:
        return loop
    compiled: Loop = njit(loop, nogil=True, fastmath=set(fastmath), error_model="numpy" if divides else "python")
    if alone and compiled is not loop:  # NUMBA_DISABLE_JIT gives the loop back
        keep_on_disk(cast("Dispatcher", compiled))
    return compiled


def is_shown_to_torch() -> bool:
    """Whether :func:`shown_to_torch` is open."""
    return _shown_to_torch


@contextmanager
def shown_to_torch() -> Iterator[None]:
    """Products are operations of torch and no more than are needed, for counting them: no loop stands in for them."""
    global _shown_to_torch
    before, _shown_to_torch = _shown_to_torch, True
    try:
        yield
    finally:
        _shown_to_torch = before
