"""Reading RecBole's own checkpoints with torch >= 2.6."""

from __future__ import annotations

import functools
import io
import pickle
import sys
import warnings
from typing import Any, Callable

import torch

from recbole_prune.compat import hooks


class _Probe:
    """Something that only a full unpickling restores, as the Config in a checkpoint of RecBole."""


def _refuses_pickles() -> bool:
    """Whether ``torch.load`` with its defaults refuses a file like RecBole's checkpoints."""
    buffer = io.BytesIO()
    torch.save({"config": _Probe()}, buffer, pickle_protocol=4)
    buffer.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch 2.4 and 2.5 announce the coming default
            torch.load(buffer)
    except pickle.UnpicklingError:
        return True
    return False


def allow_recbole_checkpoints(report: hooks.Report) -> None:
    """Let calls of ``torch.load`` in RecBole's modules read whole pickles; calls of any other code are unchanged.

    The calling module is looked at, because ``recbole.quick_start`` imports torch inside a function, where a
    replaced module attribute would not reach. As RecBole always did, this runs code from the file: load only
    checkpoints that you trust.
    """
    if not _refuses_pickles():
        report(False, f"not needed: torch.load of torch {torch.__version__} reads RecBole's checkpoints")
        return
    torch_load: Callable[..., Any] = torch.load

    @functools.wraps(torch_load)
    def load(*args: object, **kwargs: object) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__") or ""
        if caller.split(".")[0] == "recbole":
            kwargs.setdefault("weights_only", False)
        return torch_load(*args, **kwargs)

    torch.load = load
    report(True, f"torch.load of torch {torch.__version__} refuses pickles; allowed in calls from recbole.* only")
