"""The random streams that a training draws from: Python's, numpy's and torch's global ones, the dataloaders' own."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader


def random_state() -> dict[str, Any]:
    """The state of every global random stream."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put every global random stream back."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def have_moved(state: dict[str, Any]) -> bool:
    """Whether a random number was drawn from any global stream since :func:`random_state` gave ``state``."""
    now = random_state()
    return (
        now["python"] != state["python"]
        or any(not np.array_equal(a, b) for a, b in zip(now["numpy"], state["numpy"]))
        or not torch.equal(now["torch"], state["torch"])
        or any(not torch.equal(a, b) for a, b in zip(now.get("cuda", ()), state.get("cuda", ())))
    )


def dataloaders(loaders: Iterable[Any]) -> Iterator[AbstractDataLoader]:
    """All RecBole dataloaders in a stable order, those inside others (knowledge graph) included."""
    for loader in loaders:
        if isinstance(loader, AbstractDataLoader):
            yield loader
        if loader is not None:
            inner = [value for _, value in sorted(vars(loader).items()) if isinstance(value, AbstractDataLoader)]
            yield from dataloaders(inner)


def reseed(loaders: Iterable[Any], seed: int) -> None:
    """Give every dataloader the data order of a newly built one."""
    for loader in dataloaders(loaders):
        if loader.generator is not None:  # without one it draws from torch's global stream
            loader.generator.manual_seed(seed)


def loader_states(loaders: Iterable[Any]) -> list[torch.Tensor | None]:
    """The state of every dataloader's own stream; None for a loader that draws from torch's global one."""
    return [None if loader.generator is None else loader.generator.get_state() for loader in dataloaders(loaders)]


def set_loader_states(loaders: Iterable[Any], states: Iterable[torch.Tensor | None]) -> None:
    """Put every dataloader's own stream back to what :func:`loader_states` gave for the same loaders."""
    for loader, state in zip(dataloaders(loaders), states):
        if state is not None:
            loader.generator.set_state(state)


def share_the_global_stream(loaders: Iterable[AbstractDataLoader]) -> None:
    """Leave loaders as RecBole leaves those that it has saved (``save_dataloaders``): without streams of their own.

    It takes their generators away to pickle them and does not give them back, so that its training draws the data order
    from torch's global stream. A process that finds the saved loaders on disk must go on in the same way.
    """
    for loader in loaders:
        loader.generator = loader.sampler.generator = None


@contextmanager
def preserved_random_streams(loaders: Sequence[Any] = ()) -> Iterator[None]:
    """Put Python's, numpy's and torch's random streams, and those of dataloaders, back where they were."""
    state, of_loaders = random_state(), loader_states(loaders)
    try:
        yield
    finally:
        set_random_state(state)
        set_loader_states(loaders, of_loaders)
