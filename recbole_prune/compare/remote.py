"""What a worker of a cluster runs: a function that travels as code, so that one without this package can say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

from recbole_prune import __version__
from recbole_prune.compare.process import Ended, Job

# failure and host
Answer = tuple[Optional[str], str]


def portable(engine: str) -> Callable[[Any, str], Answer]:
    """The function for a worker; nothing in it names a module of ours before it is known to be there.

    Args:
        engine: module of this package whose ``stopped()`` makes, on the worker, the question whether the job is to end.
    """

    # pickled by value, since it has no name at the top level
    def run_on_worker(job: tuple[Any, ...], version: str) -> Answer:
        import os
        import socket
        from importlib import import_module

        host = socket.gethostname()
        try:
            import recbole_prune
            from recbole_prune.compare.process import Job, run_job
        except ImportError as error:
            return f"the worker on {host} cannot import recbole_prune: {error}; install it there too", host
        if recbole_prune.__version__ != version:
            return f"the worker on {host} has recbole_prune {recbole_prune.__version__}, not {version}", host
        if not os.path.isdir(job[1]):
            return f"the worker on {host} does not see {job[1]}: workers need the same file system", host
        is_stopped = import_module(f"recbole_prune.compare.{engine}").stopped()
        failure, host = run_job(Job(*job), is_stopped)
        return failure, host

    return run_on_worker


def message(job: Job) -> tuple[Any, str]:
    """The arguments of the function, of types that need no module of ours."""
    return tuple(job), __version__


def answered(answer: Answer) -> Ended:
    """What the function returned."""
    return Ended(*answer)
