"""How a patch reaches its target: on import of a module, for the length of a call, or in one module's namespace."""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:  # the methods of the real base would hide those of the loader that is wrapped
    from importlib.abc import Loader as _AnyLoader
else:
    _AnyLoader = object

Report = Callable[[bool, str], None]
Action = Callable[[ModuleType], None]
Surrounding = Callable[[], "AbstractContextManager[Any]"]

_AFTER: dict[str, dict[str, Action]] = {}
_AROUND: dict[str, dict[str, Surrounding]] = {}
_DONE = "__recbole_prune_patches__"
_STAND_IN_LOCK = threading.RLock()


class _Loader(_AnyLoader):
    """Loads as ``loader`` does, in the surroundings registered for the module, and runs the actions afterwards."""

    def __init__(self, loader: _AnyLoader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).pop(_DONE, None)  # importlib.reload executes a module again in the same namespace
        with ExitStack() as stack:
            for surrounding in _AROUND.get(module.__name__, {}).values():
                stack.enter_context(surrounding())
            self._loader.exec_module(module)
        _run_actions(module)


class _Finder:
    """Finds the hooked modules through the other finders and lets :class:`_Loader` load them."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _AFTER and name not in _AROUND:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: importlib.machinery.ModuleSpec | None = find(name, path, target) if find else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


_FINDER = _Finder()


def _run_actions(module: ModuleType) -> None:
    done = vars(module).setdefault(_DONE, set())
    for patch, action in _AFTER.get(module.__name__, {}).items():
        if patch not in done:
            done.add(patch)
            action(module)


def _install_finder() -> None:
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def after_import(name: str, patch: str, action: Action) -> None:
    """Run ``action(module)`` once per process when module ``name`` has been imported; at once if it already is."""
    _AFTER.setdefault(name, {})[patch] = action
    _install_finder()
    module = sys.modules.get(name)
    if module is not None:
        _run_actions(module)


def around_import(name: str, patch: str, surrounding: Surrounding) -> None:
    """Import module ``name`` inside the context that ``surrounding()`` makes; no effect if it already is imported."""
    _AROUND.setdefault(name, {})[patch] = surrounding
    _install_finder()


def hooked_modules() -> Sequence[str]:
    """Names of the modules for which an action or a surrounding is registered."""
    return list(dict.fromkeys([*_AROUND, *_AFTER]))


@contextmanager
def stand_in(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Put ``modules`` into ``sys.modules`` for the length of the context only, so that no other code meets them."""
    with _STAND_IN_LOCK:  # a second thread would take the stand-in for what it has to restore
        before = {name: sys.modules.get(name) for name in modules}
        sys.modules.update(modules)
        try:
            yield
        finally:
            for name, module in before.items():
                if module is None:
                    sys.modules.pop(name, None)
                else:
                    sys.modules[name] = module


@contextmanager
def replaced(module: ModuleType, **members: object) -> Iterator[None]:
    """Let names of a module stand for other objects for the length of the context."""
    before = {name: getattr(module, name) for name in members}
    vars(module).update(members)
    try:
        yield
    finally:
        vars(module).update(before)


def make_module(name: str, **members: object) -> ModuleType:
    """A module object with the given members and a valid ``__spec__``."""
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
    vars(module).update(members)
    return module


class Overlay(ModuleType):
    """A module that answers as ``base`` does, except for the overridden members; ``base`` itself is unchanged."""

    def __init__(self, base: ModuleType, **overrides: object) -> None:
        super().__init__(base.__name__, base.__doc__)
        vars(self).update(overrides, __overlaid__=base)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["__overlaid__"], name)


def import_error(name: str) -> str | None:
    """Try ``import name``; None if it works, else why it does not."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        absent = error.name or name
        own = absent in (name, name.split(".")[0])
        return f"{absent} is not installed" if own else f"{name} needs {absent}, which is not installed"
    except Exception as error:
        return f"import {name} raises {type(error).__name__}: {error}"
    return None


def is_installed(name: str) -> bool:
    """Whether the top-level package ``name`` can be found; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def decide(report: Report, check: Callable[[], str | None], fine: str) -> Callable[[], bool]:
    """A function that runs ``check`` on its first call only, reports the outcome and returns whether to patch.

    Args:
        report: receives ``(active, why)``.
        check: returns what is wrong, or None.
        fine: what to report if nothing is wrong.
    """

    @functools.cache
    def is_needed() -> bool:
        problem = check()
        report(problem is not None, problem or f"not needed: {fine}")
        return problem is not None

    return is_needed
