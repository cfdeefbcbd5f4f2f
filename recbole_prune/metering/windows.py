"""Windows around the parts of a run that meters can measure."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

WINDOWS = ("train", "validate", "recommend")


class Meter:
    """Measures nothing; a meter that does overrides :meth:`window`."""

    def window(self, name: str) -> AbstractContextManager[None]:
        """A context around one of :data:`WINDOWS`.

        ``train`` is one epoch, ``validate`` one validation, ``recommend`` ranking all users of the test data.
        """
        if name not in WINDOWS:
            raise ValueError(f"{name} is not one of {', '.join(WINDOWS)}")
        return nullcontext()
