"""Which numbers occur among many, in order; numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def ascending(numbers: NDArray[Any]) -> NDArray[Any]:
    """The distinct ones of ``numbers`` ``[n]``, ascending.

    It is ``np.unique``, which in some versions hashes before it sorts, in several times the time.
    """
    found = np.sort(numbers)
    return found[np.append(True, found[1:] != found[:-1])] if len(found) else found
