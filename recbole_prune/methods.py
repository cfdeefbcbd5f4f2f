"""Tables of methods: names that users give, and where the classes stand that are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Generic, TypeVar

Method = TypeVar("Method")


class MethodTable(dict[str, str], Generic[Method]):
    """Where the class of each method stands, by its name.

    Args:
        package: the room of the methods.
        places: ``module:Class``; a module of the package begins with a dot, one from elsewhere has its full name.
    """

    def __init__(self, package: str, places: dict[str, str]) -> None:
        super().__init__(places)
        self._package = package

    def class_of(self, name: str) -> type[Method]:
        """The class of a method.

        Raises:
            KeyError: there is no such method.
        """
        module, _, attribute = self[name].partition(":")
        found: type[Method] = getattr(import_module(module, self._package), attribute)
        return found
