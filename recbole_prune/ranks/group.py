"""Who this process is among those of a run, and what they tell each other; a process of its own is the first of one.

The environment says it, in the words of ``torchrun``: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. Messages
go through gloo, those of every batch over wires of their own on one machine, and no pickle is among them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import distributed

from recbole_prune import errors
from recbole_prune.errors import ConfigError, PruneError
from recbole_prune.ranks.wires import Numbers, Wires, connect

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# the first process may write an artifact meanwhile; one that dies is noticed at once
_LONGEST_WAIT = timedelta(days=7)
# who started the processes ends all of them when one has ended, and says why
_SECONDS_TO_BE_ENDED = 10.0


class RankLostError(PruneError):
    """Another process of the run ended."""


@dataclass(frozen=True)
class _Place:
    rank: int = 0
    count: int = 1
    local_rank: int = 0


_place = _Place()
_alone = False
_on_devices: Any = None
_wires: Wires | None = None


def rank() -> int:
    """The number of this process, 0 for the first."""
    return _place.rank


def count() -> int:
    """How many processes train the run."""
    return _place.count


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return _place.local_rank


def is_first() -> bool:
    """Whether this process owns the run folder, the log and what is printed."""
    return _place.rank == 0


def are_several() -> bool:
    """Whether there are others, who do now what this process does."""
    return _place.count > 1 and not _alone


def join() -> None:
    """Meet the other processes that the environment tells of; nothing where it tells of none, or once they have met.

    Raises:
        ConfigError: the environment is not whole, or nobody can be met.
    """
    global _place, _wires
    if _place.count > 1 or os.environ.get("WORLD_SIZE", "1") == "1":
        return
    said = {name: os.environ.get(name, "") for name in VARIABLES}
    for name, value in said.items():
        if not value or (name != "MASTER_ADDR" and not value.isdecimal()):
            raise ConfigError(
                f"{name}={value} in the environment: WORLD_SIZE={said['WORLD_SIZE']} processes need a number there "
                "(an address in MASTER_ADDR), as torchrun sets it; for one process unset WORLD_SIZE"
            )
    place = _Place(int(said["RANK"]), int(said["WORLD_SIZE"]), int(said["LOCAL_RANK"]))
    if place.rank >= place.count:
        raise ConfigError(f"RANK={place.rank} in the environment: WORLD_SIZE={place.count} has ranks from 0 on")
    try:
        distributed.init_process_group("gloo", init_method="env://", timeout=_LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:
        where, why = f"{said['MASTER_ADDR']}:{said['MASTER_PORT']}", " ".join(str(error).split())
        raise ConfigError(f"the {place.count} processes cannot meet at {where}: {why}") from error
    _place = place
    _wires = connect(place.rank, place.count, gather)


def leave() -> None:
    """Part, once all are ready to."""
    global _place, _on_devices, _wires
    if _place.count > 1:
        with _others_are_there():
            distributed.barrier()
        distributed.destroy_process_group()
        if _wires is not None:
            _wires.close()
        _place, _on_devices, _wires = _Place(), None, None


@contextmanager
def _others_are_there() -> Iterator[None]:
    """Turn the loss of a connection into an error that the one who started the processes forestalls."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        time.sleep(_SECONDS_TO_BE_ENDED)
        raise RankLostError(
            f"another of the {_place.count} processes of this run ended; what is finished is kept, and the same "
            f"command continues ({' '.join(str(error).split())[:200]})"
        ) from error


# ---- bytes and values --------------------------------------------------------------------------------------------


def gather(data: bytes) -> list[bytes]:
    """The bytes of every process, in their order."""
    if not are_several():
        return [data]
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(_place.count)]
    with _others_are_there():
        distributed.all_gather(sizes, torch.tensor([len(data)]))
        longest = max(int(size) for size in sizes)
        own = torch.zeros(longest, dtype=torch.uint8)
        own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else own[:0]
        parts = [torch.empty_like(own) for _ in range(_place.count)]
        if longest:
            distributed.all_gather(parts, own)
    return [part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes)]


def bytes_of_first(data: bytes) -> bytes:
    """What the first process has."""
    if not are_several():
        return data
    size = torch.tensor([len(data)])
    with _others_are_there():
        distributed.broadcast(size, 0)
        if not int(size):
            return b""
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8) if is_first() else torch.empty(int(size)).byte()
        distributed.broadcast(buffer, 0)
    return data if is_first() else buffer.numpy().tobytes()


def of_first(value: T) -> T:
    """What the first process has: JSON's types, bytes and paths; tuples become lists elsewhere."""
    if not are_several():
        return value
    found = _unpack(bytes_of_first(_pack(value) if is_first() else b""))
    return value if is_first() else cast(T, found)


def first(work: Callable[[], T]) -> T:
    """Have the first process work for all; its result, or its error, is everybody's.

    Args:
        work: called by the first process only, which is alone meanwhile: whatever it calls, waits for nobody. Its
            result is as for :func:`of_first`.
    """
    global _alone
    if not are_several():
        return work()
    if not is_first():
        return cast(T, _result(_unpack(bytes_of_first(b""))))
    _alone = True
    try:
        result = work()
    except Exception as error:
        _alone = False
        bytes_of_first(_pack({"error": type(error).__name__, "text": error.args[0] if error.args else ""}))
        raise
    finally:
        _alone = False
    bytes_of_first(_pack({"result": result}))
    return result


def kept_by_first(work: Callable[[], T]) -> T | None:
    """:func:`first` of work whose result the first process keeps; None elsewhere."""
    kept: list[T] = []
    first(lambda: kept.append(work()))
    return kept[0] if kept else None


def _result(said: dict[str, Any]) -> Any:
    if "result" in said:
        return said["result"]
    kind = getattr(errors, said["error"], None)
    if isinstance(kind, type) and issubclass(kind, PruneError):
        raise kind(said["text"])
    raise RankLostError(f"the first process of this run failed: {said['error']} {said['text']}")


def on_first(function: Function) -> Function:
    """Decorator: :func:`first` does the function's work."""

    @wraps(function)
    def call(*args: object, **kwargs: object) -> Any:
        return first(lambda: function(*args, **kwargs))

    return cast(Function, call)


def only_first(function: Function) -> Function:
    """Decorator of what nobody else has to know of: the first process does it, the others go on at once."""

    @wraps(function)
    def call(*args: object, **kwargs: object) -> Any:
        return function(*args, **kwargs) if is_first() else None

    return cast(Function, call)


def _pack(value: object) -> bytes:
    """JSON, and behind it the bytes that it mentions."""
    blobs: list[bytes] = []

    def other(found: object) -> object:
        if isinstance(found, bytes):
            blobs.append(found)
            return {"bytes": len(found)}
        if isinstance(found, Path):
            return {"path": str(found)}
        return str(found)

    document = json.dumps(value, default=other).encode()
    return b"".join([len(document).to_bytes(8, "little"), document, *blobs])


def _unpack(data: bytes) -> Any:
    size = int.from_bytes(data[:8], "little")
    start = 8 + size

    def revive(found: dict[str, Any]) -> Any:
        nonlocal start
        if found.keys() == {"bytes"} and isinstance(found["bytes"], int):
            start += found["bytes"]
            return data[start - found["bytes"] : start]
        return Path(found["path"]) if found.keys() == {"path"} else found

    return json.loads(data[8 : 8 + size], object_hook=revive)


# ---- tensors -----------------------------------------------------------------------------------------------------


def _group_of(tensor: torch.Tensor) -> Any:
    """Who carries a tensor: gloo, or nccl where it is on a GPU."""
    global _on_devices
    if tensor.device.type != "cuda":
        return None
    if _on_devices is None:
        _on_devices = distributed.new_group(backend="nccl", timeout=_LONGEST_WAIT)
    return _on_devices


def add_up(tensor: torch.Tensor) -> None:
    """Put into a tensor the sum of everybody's, in place, bit for bit the same everywhere."""
    with _others_are_there():
        distributed.all_reduce(tensor, group=_group_of(tensor))


def have_wires() -> bool:
    """Whether all processes are on one machine, and :func:`exchange` is for them."""
    return _wires is not None


def exchange(own: Numbers) -> list[Numbers]:
    """Everybody's numbers on a CPU, in the order of the processes; the next exchange overwrites them."""
    assert _wires is not None, "there are wires"
    with _others_are_there():
        return _wires.exchange(own)


def gather_tensors(parts: Sequence[torch.Tensor], own: torch.Tensor) -> None:
    """Fill ``parts``, one for every process, with everybody's ``own``, of one shape."""
    with _others_are_there():
        distributed.all_gather(list(parts), own, group=_group_of(own))


def copy_of_first(tensors: Sequence[torch.Tensor]) -> None:
    """Put into tensors what the first process has in them, in place."""
    with torch.no_grad(), _others_are_there():
        for tensor in tensors:
            held = tensor.detach().contiguous()
            distributed.broadcast(held, 0, group=_group_of(held))
            if not is_first():
                tensor.copy_(held)
