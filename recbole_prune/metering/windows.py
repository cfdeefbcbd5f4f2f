"""Windows around the parts of a run that meters can measure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

WINDOWS = ("train", "validate", "recommend")


class Meter:
    """Measures nothing; a meter that does overrides this.

    Attributes:
        measures: whether anything is measured at all.
    """

    measures: bool = False

    def window(self, name: str) -> AbstractContextManager[None]:
        """A context around one of :data:`WINDOWS`.

        ``train`` is one epoch, ``validate`` one validation, ``recommend`` making lists for the users of the test data,
        maybe several times.
        """
        if name not in WINDOWS:
            raise ValueError(f"{name} is not one of {', '.join(WINDOWS)}")
        return nullcontext()

    def begin(self) -> None:
        """Forget the windows of the ticket before, and measure what the machine takes when nothing is done."""

    def state(self) -> dict[str, Any] | None:
        """The windows so far as JSON, for a resume point."""
        return None

    def restore(self, state: dict[str, Any] | None) -> None:
        """Undo :meth:`state`."""

    def recommend(self, work: Callable[[], int]) -> None:
        """Measure making lists.

        Args:
            work: makes one for every user and says how many that were; it may be called several times.
        """

    def record(self) -> dict[str, Any] | None:
        """What was measured of a ticket, as JSON; None where nothing was asked for."""
        return None
