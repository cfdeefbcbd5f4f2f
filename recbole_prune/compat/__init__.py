"""Guarded patches that let RecBole 1.2.x run on current libraries, each naming its cause.

``from recbole_prune import compat; compat.apply()`` before RecBole is imported repairs it for any script. ``apply()``
is idempotent, imports nothing of RecBole itself and is safe in spawned processes. A patch of a RecBole module takes
effect when that module is imported, or at once if it already is. Where RecBole works as it stands, nothing is changed:
each patch looks for the defect, not for a version number; what is needed everywhere, such as the filters of needless
warnings, says so in ``doctor``.
"""

from __future__ import annotations

from recbole_prune.compat.registry import Patch, apply, import_failures, resolve, status

__all__ = ["Patch", "apply", "import_failures", "resolve", "status"]
