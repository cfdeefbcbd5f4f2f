"""Timing: candidates in turn, a clock that waits for the device, the first batches of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any

from tqdm import tqdm

from recbole_prune.bench.results import Results

Clock = Callable[[], float]


def device_clock(device: Any) -> Clock:
    """A clock in seconds that is read when the device has done its work."""
    if device.type != "cuda":
        return perf_counter
    import torch

    def read() -> float:
        torch.cuda.synchronize(device)
        return perf_counter()

    return read


@dataclass
class Candidate:
    """One thing to time.

    Attributes:
        name, sparsity: as in :meth:`Results.candidate`.
        work: what is timed.
        before: called untimed before every sample, with the number of the round; 0 is the warm-up.
        warm_up: called once, untimed; None: ``work``.
    """

    name: str
    sparsity: float | None
    work: Callable[[], Any]
    before: Callable[[int], Any] = lambda number: None
    warm_up: Callable[[], Any] | None = None


def take_turns(
    candidates: Sequence[Candidate],
    repeats: int,
    results: Results,
    clock: Clock = perf_counter,
    measure: str = "seconds",
    progress: bool = True,
) -> None:
    """Time candidates in turn (A B C A B C ...), so that a slow minute of the machine hits all of them.

    Every sample is in ``results`` at once, which is saved after each round: an interruption loses nothing.
    """
    total = len(candidates) * (repeats + 1)
    with tqdm(total=total, desc=f"bench {results.benchmark}", unit="run", ncols=100, disable=not progress) as bar:
        for number in range(-1, repeats):
            for candidate in candidates:
                sparsity = "" if candidate.sparsity is None else f" {candidate.sparsity:g}"
                bar.set_postfix_str(f"{candidate.name}{sparsity}{', warming up' if number < 0 else ''}")
                candidate.before(number + 1)
                if number < 0:
                    (candidate.warm_up or candidate.work)()
                else:
                    start = clock()
                    candidate.work()
                    results.add(candidate.name, candidate.sparsity, **{measure: clock() - start})
                bar.update(1)
            results.save()


class FirstBatches:
    """A dataloader that ends after some batches; everything else is the loader's own."""

    def __init__(self, loader: Any, batches: int) -> None:
        self._loader = loader
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._loader), self._batches)

    def __len__(self) -> int:
        return min(self._batches, len(self._loader))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def first_batches(loader: Any, batches: int | None) -> Any:
    """The loader, or its first batches."""
    return loader if batches is None else FirstBatches(loader, batches)


def agreement(ours: Mapping[str, float], plain: Mapping[str, float]) -> tuple[bool, float]:
    """Whether two metric dicts are equal, and their largest difference."""
    if set(ours) != set(plain):
        return False, float("inf")
    largest = max((abs(float(ours[name]) - float(plain[name])) for name in ours), default=0.0)
    return largest == 0.0, largest
