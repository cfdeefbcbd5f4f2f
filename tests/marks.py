"""Which cases of a test belong to the quick part."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(quick: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """Cases for ``parametrize``, all but the quick ones marked: they show on more what those show.

    Args:
        quick: cases that stay unmarked.
        cases: values, or tuples of values where several names are given.
    """
    values = [(case, case if isinstance(case, tuple) else (case,)) for case in cases]
    return [pytest.param(*value, marks=[] if case in quick else pytest.mark.slow) for case, value in values]
