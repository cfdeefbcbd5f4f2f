"""Warnings that whoever runs RecBole can do nothing about."""

from __future__ import annotations

import sys
import warnings

from recbole_prune.compat import hooks


def ignore_needless_warnings(report: hooks.Report) -> None:
    """Ignore what torch, pandas and others say about lines of RecBole's.

    Arithmetic outside of its models stays, since it may speak of the data.
    """
    if sys.warnoptions:
        report(False, "not needed: -W or PYTHONWARNINGS says which warnings are shown")
        return
    warnings.filterwarnings("ignore", module=r"recbole\.")
    warnings.filterwarnings("default", category=RuntimeWarning, module=r"recbole\.(?!model\.)")
    # said once a process, by whichever line makes the first graph
    warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
    report(True, "on every stack; arithmetic outside of models (RuntimeWarning) is shown")
