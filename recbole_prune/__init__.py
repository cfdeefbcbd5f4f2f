"""Compress any RecBole model: lottery tickets, controls and baselines, from one added option.

The public names are imported on first use, so that ``recbole_prune.serving`` works without torch and RecBole.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "run_recbole_prune": "commands.run",
    "load_ticket": "run.rebuild",
    "PruneConfig": "config.prune_config",
    "MaskSet": "masking.masks",
    "Scope": "masking.scope",
    "Target": "masking.scope",
    "PruneError": "errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
