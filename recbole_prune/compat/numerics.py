"""What RecBole uses of numpy and scipy and current releases no longer have."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import dok_matrix

from recbole_prune.compat import hooks

if TYPE_CHECKING:
    from recbole.config import Config

# the same types as Config.compatibility_settings chooses, written with names that every numpy has
_ALIASES: dict[str, type[np.generic]] = {
    "bool": np.bool_,
    "int": np.int_,
    "float": np.float64,
    "complex": np.complex128,
    "object": np.object_,
    "str": np.str_,
    "long": np.int_,
    "unicode": np.str_,
}


def _set_missing_aliases() -> list[str]:
    """Give numpy the names in ``_ALIASES`` that it lacks; returns these names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns on the mere look at a deprecated or removed name
        missing = [name for name in _ALIASES if not hasattr(np, name)]
    for name in missing:
        setattr(np, name, _ALIASES[name])
    return missing


def restore_numpy_aliases(report: hooks.Report) -> None:
    """Set ``np.float`` and the like where they are missing, and keep Config from reading names that are gone."""
    missing = _set_missing_aliases()
    gone = [name for name in ("float_", "complex_", "unicode_") if not hasattr(np, name)]
    if gone:
        hooks.after_import("recbole.config.configurator", "numpy aliases", _replace_compatibility_settings)
    names = ", ".join(f"np.{name}" for name in gone + missing)
    report(bool(names), f"numpy {np.__version__} lacks {names}" if names else f"not needed: numpy {np.__version__}")


def _replace_compatibility_settings(configurator: ModuleType) -> None:
    def compatibility_settings(self: Config) -> None:
        _set_missing_aliases()

    configurator.Config.compatibility_settings = compatibility_settings


def restore_dok_update(report: hooks.Report) -> None:
    """Give ``dok_matrix`` the unchecked update from a dict ``{(row, column): value}`` if it has none."""
    if hasattr(dok_matrix, "_update"):
        report(False, "not needed: scipy's dok_matrix has _update")
        return

    def _update(self: dok_matrix, data: dict[tuple[int, int], float]) -> None:
        self._dict.update(data)

    dok_matrix._update = _update
    report(True, "scipy's dok_matrix has no _update")
