"""What must be remembered to continue a training at an epoch as if it had never stopped.

Parameters, buffers and optimizers are not enough: RecBole models keep counters and tables in plain attributes
(MultiVAE's annealing step, KGAT's attention matrix, NCL's centroids), its dataloaders own generators, and one epoch
draws from Python's, numpy's and torch's random streams.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from recbole_prune.anatomy.caches import CACHES
from recbole_prune.sparse.propagation import plain
from recbole_prune.training.codec import is_supported


class AttributeWatch:
    """Finds the plain attributes of a model that changed since it was built."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = {path: _fingerprint(value) for path, value in self._attributes()}

    def _attributes(self) -> Iterator[tuple[str, Any]]:
        for prefix, module in self._model.named_modules():
            for name, value in vars(module).items():
                if not name.startswith("_") and name not in CACHES and name != "training":
                    yield f"{prefix}.{name}" if prefix else name, value

    def changed(self) -> dict[str, Any]:
        """Path -> current value of every changed attribute that can be stored."""
        return {
            path: value
            for path, value in self._attributes()
            if (path not in self._before or self._before[path] != _fingerprint(value)) and is_supported(value)
        }

    def restore(self, attributes: dict[str, Any]) -> None:
        """Set attributes as :meth:`changed` reported them."""
        modules = dict(self._model.named_modules())
        for path, value in attributes.items():
            prefix, _, name = path.rpartition(".")
            module = modules[prefix]
            present = vars(module).get(name)
            if isinstance(value, torch.Tensor) and isinstance(present, torch.Tensor):
                value = value.to(present.device)
            elif isinstance(value, torch.Tensor):
                value = value.to(next(self._model.parameters()).device)
            setattr(module, name, value)


class _Identity:
    """Equal for the same object at the same version; it keeps the object, so that no other can take its place."""

    def __init__(self, value: Any, version: int = 0) -> None:
        self.value, self.version = value, version

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value and self.version == other.version


def _fingerprint(value: Any) -> Any:
    """Something that differs when a value has changed."""
    value = plain(value)
    if isinstance(value, torch.Tensor):
        return _Identity(value, value._version)
    if isinstance(value, np.ndarray):
        return value.shape, zlib.crc32(np.ascontiguousarray(value).tobytes())
    if isinstance(value, (list, tuple)) and len(value) <= 1000:
        return [_fingerprint(item) for item in value]
    if isinstance(value, dict) and len(value) <= 1000:
        return {key: _fingerprint(item) for key, item in value.items()}
    return value if isinstance(value, (bool, int, float, str, type(None))) else _Identity(value)


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, as they are, not as ``state_dict`` may present them."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def copy_into(own: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Copy values into tensors of the same names."""
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def current_form(state: dict[str, Any]) -> dict[str, Any]:
    """A resume point of version 0.1.0, which knew one thing that trains along, in today's form; others as they are."""
    if "parts" in state:
        return state
    moved = dict(state["dynamics"] or {})
    masks = moved.pop("masks", None)
    parts = {"prune_and_grow": {"state": moved, "parameters": {}}} if moved else {}
    return {**state, "masks": masks, "parts": parts}


def optimizers_of(trainer: Any) -> dict[str, torch.optim.Optimizer]:
    """Every optimizer that is an attribute of a trainer, by attribute name."""
    return {name: value for name, value in sorted(vars(trainer).items()) if isinstance(value, torch.optim.Optimizer)}


def optimizer_state(trainer: Any) -> dict[str, Any]:
    """State of every optimizer; an attribute that repeats another one is stored as that name."""
    named = optimizers_of(trainer)
    # the generic attribute is the alias: RecVAE points it at its encoder's or decoder's optimizer
    order = sorted(named, key=lambda name: name == "optimizer")
    first: dict[int, str] = {}
    state: dict[str, Any] = {}
    for name in order:
        key = first.setdefault(id(named[name]), name)
        state[name] = named[name].state_dict() if key == name else key
    return state


def set_optimizer_state(trainer: Any, state: dict[str, Any]) -> None:
    """Undo :func:`optimizer_state` on a newly built trainer."""
    for name, value in state.items():
        if isinstance(value, str):
            setattr(trainer, name, getattr(trainer, value))
        else:
            getattr(trainer, name).load_state_dict(value)


def reached_parameters(trainer: Any) -> dict[str, list[int]]:
    """Places of the parameters that hold a gradient, by optimizer."""
    return {
        name: [place for place, parameter in enumerate(_parameters(optimizer)) if parameter.grad is not None]
        for name, optimizer in optimizers_of(trainer).items()
    }


def set_reached_parameters(trainer: Any, reached: dict[str, list[int]]) -> None:
    """Give the parameters of :func:`reached_parameters` a gradient of zeros.

    Before torch 2, ``zero_grad`` leaves zeros, and an optimizer goes on moving what it has once moved: its moments
    decay and its steps count even in batches that do not reach the parameter (LINE's and KGAT's alternate).
    """
    for name, places in reached.items():
        parameters = list(_parameters(getattr(trainer, name)))
        for place in places:
            parameters[place].grad = torch.zeros_like(parameters[place])


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
