"""Cells as tasks of Ray."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from recbole_prune.compare.process import Ended, Job
from recbole_prune.compare.remote import answered, message, portable
from recbole_prune.errors import ConfigError, StoreError

_SECONDS_TO_CONNECT = 10
_RETRIES = 3  # of a task whose worker died; its run goes on from its resume point


class RayEngine:
    """Tasks of a cluster; how many at a time Ray decides, or ``workers``.

    Args:
        ray: the module, connected.
        workers: the most tasks at a time.
        threads: processors of a task.
        gpus: GPUs of a task.
    """

    def __init__(self, ray: ModuleType, workers: int, threads: int, gpus: float) -> None:
        self._ray, self._workers = ray, workers
        options = {"num_cpus": threads, "num_gpus": gpus, "max_retries": _RETRIES}
        self._task = ray.remote(**options)(portable("ray_engine"))
        self._numbers: dict[Any, int] = {}

    def has_room(self) -> bool:
        """Whether one more task may be given."""
        return len(self._numbers) < self._workers

    def start(self, number: int, job: Job) -> None:
        """Give a task."""
        self._numbers[self._task.remote(*message(job))] = number

    def ended(self, seconds: float) -> list[tuple[int, Ended]]:
        """Tasks that have ended, as soon as there is one.

        Raises:
            StoreError: the cluster is gone; what is finished is kept.
        """
        try:
            done, _ = self._ray.wait(list(self._numbers), num_returns=1, timeout=seconds)
        except (self._ray.exceptions.RayError, OSError) as error:
            raise StoreError(f"compare: the Ray cluster is gone: {error}; the same command goes on") from error
        found = []
        for reference in done:
            try:
                ended = answered(self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                ended = Ended(f"Ray: {' '.join(str(error).split())}", "")
            found.append((self._numbers.pop(reference), ended))
        return found

    def stop(self) -> None:
        """End every task; its processes notice that their worker is gone, and end with what is finished."""
        for reference in self._numbers:
            with suppress(Exception):  # the cluster may be what has gone
                self._ray.cancel(reference, force=True)
        self._numbers.clear()


def stopped() -> Callable[[], bool]:
    """On a worker: never, since Ray ends the worker itself."""
    return lambda: False


def _check_there(address: str) -> None:
    """Ray itself takes two minutes to find out that nobody listens.

    Raises:
        ConfigError: nobody listens at ``host:port``.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return  # "auto", or what Ray makes of it
    try:
        socket.create_connection((host, int(port)), _SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"compare: --engine_address={address}: there is no Ray cluster: {error}") from None


@contextmanager
def ray_engine(address: str | None, workers: int, threads: int, gpus: float) -> Iterator[RayEngine]:
    """Connect to a cluster, or start one here for ``workers`` cells at a time.

    Raises:
        ConfigError: Ray is not installed, does not work with what is, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"compare: --engine=ray needs Ray, which cannot be imported ({error}): pip install 'recbole-prune[ray]'"
        ) from None
    if address:
        _check_there(address)
    here = {"num_cpus": workers * threads, "include_dashboard": False}
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **({"address": address} if address else here))
    except Exception as error:  # ConnectionError, or whatever the cluster's version makes of ours
        why = " ".join(str(error).split())
        raise ConfigError(f"compare: --engine_address={address}: there is no Ray cluster to use: {why}") from None
    engine = RayEngine(ray, workers, threads, gpus)
    try:
        yield engine
    finally:
        ray.shutdown()
