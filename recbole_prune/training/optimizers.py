"""Optimizers in the form that passes over memory once, and their state in the form of RecBole's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from recbole_prune.config.pickling import unshared
from recbole_prune.sparse.compact import compact_modules
from recbole_prune.sparse.shrinking import Shrunk

Expand = Callable[[torch.Tensor, int], torch.Tensor]
# how what optimizers keep grows with the gradient, by its name in torch
_POWERS = {"exp_avg_sq": 2, "max_exp_avg_sq": 2, "square_avg": 2, "sum": 2}

# makes its sums when it is built, and fails at its next step where a state that it loads lacks them
_NEVER_EMPTY = torch.optim.Adagrad


def fused(optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The same optimizer, newly made, in torch's fused form; or as it is where torch has none for it.

    The fused form computes the same step up to rounding in one pass over parameter, gradient and moments, on a CPU
    (torch 2.4 and later) in a fifth to a third of the time.
    """
    # no fused form takes the gradients of nn.Embedding(sparse=True)
    sparse = any(getattr(module, "sparse", False) for module in model.modules())
    known = inspect.signature(type(optimizer)).parameters
    if sparse or "fused" not in known or optimizer.defaults.get("fused"):
        return optimizer
    defaults = {name: value for name, value in optimizer.defaults.items() if name in known}
    groups = [{**group, "fused": True} for group in optimizer.param_groups]
    try:
        return type(optimizer)(groups, **{**defaults, "fused": True})
    except (RuntimeError, ValueError):  # this torch or this device lacks it
        return optimizer


def left_out(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a loss scaler made the step that was just called change nothing: gradients were not finite.

    A scaler calls a fused optimizer nevertheless and leaves the decision to it; others it does not call.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def add_group(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], settings: Mapping[str, float] | None = None
) -> None:
    """Let an optimizer train further parameters, in a group of their own behind all others.

    Args:
        optimizer: any.
        parameters: what is added; nothing makes no group.
        settings: those in which the group differs from the optimizer.
    """
    added = list(parameters)
    if added:
        optimizer.add_param_group({"params": added, **(settings or {})})


def dense_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, added: Iterable[nn.Parameter] = (), *, moments: bool = True
) -> dict[str, Any]:
    """The ``state_dict`` that RecBole's own optimizer of the dense model would have; the optimizer stays as it is.

    Moments of a compact table or a shrunk tensor become those of the dense one, 0 at pruned entries, and nothing is
    fused: an optimizer that loads the moments of live entries with ``fused`` writes beyond them at its next step. The
    groups of ``added`` (:func:`add_group`) are left out; they are the last, so that no number of another parameter
    changes.

    Without ``moments`` it is the state before the first step, from which an optimizer goes on with new ones.
    """
    state = _without(optimizer, set(map(id, added)))
    if not moments and not isinstance(optimizer, _NEVER_EMPTY):
        state["state"] = {}
    expand: dict[int, Expand] = {
        id(module.values): _unscaled(module.rows.expand) for _, module in compact_modules(model)
    }
    shrunk: Shrunk | None = getattr(model, "shrunk", None)
    if shrunk is not None:
        expand = {id(each): partial(shrunk.expanded, name) for name, each in model.named_parameters()}
    unfused = inspect.signature(type(optimizer)).parameters.get("fused")
    groups = [{**group, "fused": unfused.default} if unfused else group for group in state["param_groups"]]
    kept = dict(state["state"])
    for group, numbers in zip(optimizer.param_groups, groups):
        for parameter, number in zip(group["params"], numbers["params"]):
            if number in kept:
                kept[number] = {
                    name: _dense_form(name, value, parameter, expand.get(id(parameter)))
                    for name, value in kept[number].items()
                }
    dense: dict[str, Any] = unshared({**state, "state": kept, "param_groups": groups})
    return dense


def _without(optimizer: torch.optim.Optimizer, added: set[int]) -> dict[str, Any]:
    state = optimizer.state_dict()
    groups = [
        numbers
        for group, numbers in zip(optimizer.param_groups, state["param_groups"])
        if not added & set(map(id, group["params"]))
    ]
    kept = {number for group in groups for number in group["params"]}
    return {**state, "state": {n: value for n, value in state["state"].items() if n in kept}, "param_groups": groups}


def _dense_form(name: str, value: Any, parameter: torch.Tensor, expand: Expand | None) -> Any:
    if name == "step" and isinstance(value, torch.Tensor):
        return value.cpu()  # only fused optimizers count on the device
    if expand is not None and isinstance(value, torch.Tensor) and value.shape == parameter.shape:
        return expand(value, _POWERS.get(name, 1))
    return value


def _unscaled(expand: Callable[[torch.Tensor], torch.Tensor]) -> Expand:
    return lambda value, power: expand(value)


@contextmanager
def saved_as_dense(
    optimizer: torch.optim.Optimizer, model: nn.Module, added: Iterable[nn.Parameter] = (), *, moments: bool = True
) -> Iterator[None]:
    """While it is open, ``optimizer.state_dict()`` is :func:`dense_state`."""
    state = dense_state(optimizer, model, added, moments=moments)
    optimizer.state_dict = lambda: state  # type: ignore[method-assign]
    try:
        yield
    finally:
        del optimizer.state_dict
