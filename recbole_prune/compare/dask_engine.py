"""Cells as futures of Dask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from recbole_prune.compare.process import Ended, Job
from recbole_prune.compare.remote import answered, message, portable
from recbole_prune.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from distributed import Client

_SECONDS_TO_CONNECT = 15


class DaskEngine:
    """Futures of a cluster; how many at a time Dask decides, or ``workers``.

    Args:
        distributed: the module.
        client: connected.
        workers: the most futures at a time.
        gpus: of the resource ``GPU``, with which workers are started, that a future takes.
    """

    def __init__(self, distributed: ModuleType, client: Client, workers: int, gpus: float) -> None:
        self._distributed, self._client, self._workers = distributed, client, workers
        self._resources = {"GPU": gpus} if gpus else None
        self._task = portable("dask_engine")
        self._numbers: dict[Any, int] = {}

    def has_room(self) -> bool:
        """Whether one more future may be given."""
        return len(self._numbers) < self._workers

    def start(self, number: int, job: Job) -> None:
        """Give a future."""
        key = f"recbole-prune-{uuid4().hex}"
        future = self._client.submit(self._task, *message(job), key=key, pure=False, resources=self._resources)
        self._numbers[future] = number

    def ended(self, seconds: float) -> list[tuple[int, Ended]]:
        """Futures that have ended, as soon as there is one.

        Raises:
            StoreError: the cluster is gone; what is finished is kept.
        """
        try:
            self._distributed.wait(list(self._numbers), timeout=seconds, return_when="FIRST_COMPLETED")
        except (TimeoutError, self._distributed.TimeoutError):
            pass
        except (OSError, RuntimeError) as error:
            raise StoreError(f"compare: the Dask cluster is gone: {error}; the same command goes on") from error
        if self._client.status not in ("running", "connecting"):
            raise StoreError("compare: the Dask cluster is gone; the same command goes on where it stood")
        found = []
        for future in [future for future in self._numbers if future.done()]:
            if future.status == "finished":
                ended = answered(future.result())
            else:
                why = str(future.exception()) if future.status == "error" else future.status
                ended = Ended(f"Dask: {' '.join(why.split())}", "")
            found.append((self._numbers.pop(future), ended))
        return found

    def stop(self) -> None:
        """End every future; a worker that runs one notices it and stops its process."""
        with suppress(Exception):  # the cluster may be what has gone
            self._client.cancel(list(self._numbers))
        self._numbers.clear()


def stopped() -> Callable[[], bool]:
    """On a worker: whether the scheduler does not want the task any more, or the one who asked for it is gone."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def is_cancelled() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled"

    return is_cancelled


@contextmanager
def dask_engine(address: str | None, workers: int, gpus: float) -> Iterator[DaskEngine]:
    """Connect to a scheduler, or start one here with ``workers`` workers.

    Raises:
        ConfigError: Dask is not installed, or there is no scheduler at the address.
    """
    try:
        import distributed
    except ImportError as error:
        raise ConfigError(
            f"compare: --engine=dask needs Dask, which cannot be imported ({error}): pip install 'recbole-prune[dask]'"
        ) from None
    with ExitStack() as undo:
        if address is None:
            cluster = undo.enter_context(
                distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
            )
            address = cluster.scheduler_address
        try:
            client = undo.enter_context(distributed.Client(address, timeout=_SECONDS_TO_CONNECT))
        except (OSError, ValueError, TypeError) as error:
            why = " ".join(str(error).split())
            raise ConfigError(f"compare: --engine_address={address}: there is no Dask scheduler: {why}") from None
        yield DaskEngine(distributed, client, workers, gpus)
