"""Warnings that whoever runs RecBole can do nothing about."""

from __future__ import annotations

import logging
import sys
import warnings

from recbole_prune.compat import hooks

# of what RecBole logs as a warning: the width of a matrix, which follows from the data
_LOGGED = ("Max value of ",)


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


def is_needless(record: logging.LogRecord) -> bool:
    """Whether a log record is a warning of RecBole's that calls for nothing."""
    return record.name == "root" and str(record.msg).startswith(_LOGGED)
