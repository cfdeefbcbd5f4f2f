"""Names that look alike, for messages. The standard library is enough for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def plain(name: str) -> str:
    """A name in lower case, with ``_`` for ``-``."""
    return name.lower().replace("-", "_")


def near_names(name: str, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Names that look like the given one, best first; case, ``-`` and ``_`` are taken as equal."""
    others = {plain(other): other for other in names}
    return [others[match] for match in difflib.get_close_matches(plain(name), list(others), n=3, cutoff=cutoff)]


def did_you_mean(names: list[str]) -> str:
    """Return "; did you mean a or b?", or "" for no names."""
    return f"; did you mean {' or '.join(names)}?" if names else ""
