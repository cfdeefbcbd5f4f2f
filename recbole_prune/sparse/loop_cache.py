"""Compiled loops on disk, so that only the first process of a machine compiles them.

numba's own cache ends a program on a damaged file or a full disk, runs whatever machine code a file holds, and lets
processes that write at once give one function the code of another. This one has a file for each function and signature
that says what it was made from and is believed only if all of it fits; otherwise the loop is compiled, as if there were
no file. The folder is the one that numba chooses: ``NUMBA_CACHE_DIR``, else ``__pycache__`` beside the source, else the
user's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import secrets
import sys
from collections.abc import Callable
from functools import cache, partial
from logging import getLogger
from pathlib import Path
from typing import Any, Protocol

from recbole_prune.signals import on_abort

_DIGEST = hashlib.sha256().digest_size


class Dispatcher(Protocol):
    """What ``numba.njit`` returns, as far as it matters here."""

    py_func: Callable[..., Any]
    _cache: object


class Target(Protocol):
    """What numba compiles for."""

    def refresh(self) -> None:
        """Make sure that it is ready."""

    def codegen(self) -> object:
        """What makes machine code of it."""


class Compiled(Protocol):
    """A function that numba has compiled."""

    codegen: object


def keep_on_disk(dispatcher: Dispatcher) -> None:
    """Give a function that numba compiles a :class:`LoopCache`; without a folder for it, a warning says so."""
    try:
        dispatcher._cache = LoopCache(dispatcher.py_func)
    except Exception as error:  # numba finds no folder, or has changed inside
        _warn(str(error))


class LoopCache:
    """What numba has compiled of one function, a file for each signature; it never raises for what is on the disk.

    It has the methods that numba's dispatcher asks of a cache.

    Args:
        function: the function before it is compiled.

    Raises:
        RuntimeError: there is no folder that can be written to.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        from numba.core.caching import FunctionCache

        self._numbas = FunctionCache(function)
        self._name = f"{function.__module__}.{function.__qualname__}.{sys.implementation.cache_tag}"
        self._folder = str(Path(function.__code__.co_filename).parent)
        self.cache_path = str(self._numbas.cache_path)

    def load_overload(self, signature: object, target: Target) -> Any:
        """The compiled function for a signature, None where there is none that can be trusted."""
        target.refresh()
        try:
            path, origin = self._place(signature, target.codegen())
            content = path.read_bytes()
            code = content[_DIGEST:]
            if content[:_DIGEST] != _digest(origin, code):
                return None
            return self._numbas._impl.rebuild(target, pickle.loads(code))
        except Exception:  # whatever lies there, the loop can be compiled
            return None

    def save_overload(self, signature: object, compiled: Compiled) -> None:
        """Write a compiled function; where that fails, a warning says so."""
        try:
            from numba.core.serialize import dumps

            if self._numbas._impl.check_cachable(compiled):
                path, origin = self._place(signature, compiled.codegen)
                code = dumps(self._numbas._impl.reduce(compiled))
                _replace(path, _digest(origin, code) + code)
        except Exception as error:  # it is compiled and can be used
            _warn(str(error))

    def flush(self) -> None:
        """Forget everything: part of what numba asks of a cache; files that do not fit are replaced anyway."""

    def _place(self, signature: object, codegen: object) -> tuple[Path, bytes]:
        """The file of a signature on this kind of processor, and in words what its code is made from."""
        from numba import __version__

        types, processor, code = self._numbas._index_key(signature, codegen)
        machine = repr((types, processor)).encode()
        source = self._numbas._impl.locator.get_source_stamp(), _stamp_of(self._folder)
        number = hashlib.sha256(machine).hexdigest()[:16]
        return Path(self.cache_path, f"{self._name}.{number}.loop"), repr(
            (__version__, source, code)
        ).encode() + machine


@cache
def _stamp_of(folder: str) -> tuple[tuple[str, int, int], ...]:
    """Size and time of every module in a folder: whatever a loop calls, and is compiled with it, is in its own."""
    found = sorted((file.name, file.stat()) for file in Path(folder).glob("*.py"))
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in found)


def _digest(origin: bytes, code: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(origin).digest() + code).digest()


def _replace(path: Path, content: bytes) -> None:
    """Write a file that other processes see whole or not at all."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with on_abort(partial(temporary.unlink, missing_ok=True)):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)


@cache
def _warn(reason: str) -> None:
    getLogger(__name__).warning(
        f"compiled loops cannot be kept ({' '.join(reason.split())}): every process compiles them anew, which takes "
        "seconds; NUMBA_CACHE_DIR can name another folder"
    )
