"""Which entries of a tensor can be other than 0, followed from masked weights through look-ups and views."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Key = tuple  # where a tensor lies: address, shape, strides, type


@dataclass(frozen=True)
class Factor:
    """What is known of a tensor that depends on weights.

    Attributes:
        live: boolean, shape of the tensor; None if every entry is live.
        density: share of live entries of the weight that the tensor shows.
        is_table: whether it is a weight, rows of one, or a view or scaling of those, not something computed.
    """

    live: torch.Tensor | None = None
    density: float = 1.0
    is_table: bool = False


COMPUTED = Factor()

# the result shows the entries of its arguments, in other places
VIEWS = frozenset(
    "alias _unsafe_view _reshape_alias cat chunk clone contiguous detach embedding expand flip gather "
    "index index_select lift_fresh masked_select narrow permute repeat reshape roll select slice split "
    "split_with_sizes squeeze stack swapaxes t take transpose unbind unflatten unfold unsafe_chunk unsafe_split "
    "unsafe_split_with_sizes unsqueeze view".split()
)
# the result is 0 where the first argument is
_SCALINGS = frozenset("_to_copy div dropout leaky_relu mul native_dropout neg relu tanh".split())
# the result has the shape of an argument, not its values
_NEW = re.compile("^new_|_like$")


class Factors:
    """The factors of all tensors of a running model.

    A tensor is known by the memory it shows, since autograd hands out copies of Python objects. An entry is replaced or
    dropped whenever an operation returns that memory again.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, torch.Tensor], densities: Mapping[str, float]) -> None:
        """Args:
        model: its parameters are the weights; tables that are stored without their pruned entries must be dense.
        masks: boolean, by name in ``state_dict``; other weights are live throughout.
        densities: share of live entries of every mask.
        """
        self._known: dict[Key, Factor] = {}
        for name, parameter in model.named_parameters():
            live = masks.get(name)
            # a mask without a False is none: products with it need not be counted entry by entry
            live = None if live is None or bool(live.all()) else live.to(parameter.device)
            self.set(parameter, Factor(live, densities[name] if live is not None else 1.0, is_table=True))

    def of(self, value: object) -> Factor | None:
        """The factor of a tensor; None if it does not depend on weights or is no tensor."""
        key = _key(value)
        return None if key is None else self._known.get(key)

    def set(self, value: torch.Tensor, factor: Factor | None) -> None:
        """Note what is known of a tensor."""
        key = _key(value)
        if key is None:
            return
        if factor is not None and factor.live is not None and factor.live.shape != value.shape:
            factor = COMPUTED  # broadcast against something else
        if factor is None:
            self._known.pop(key, None)
        else:
            self._known[key] = factor

    def result(
        self,
        name: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        known: list[tuple[torch.Tensor, Factor | None]],
    ) -> Factor | list[Factor] | None:
        """The factor of what an operation returns, or a list of them, one for each tensor it returns.

        Args:
            name: of the operation without the underscore of the one that works in place.
            func, args, kwargs: the call.
            known: (tensor, factor) of its floating-point arguments, as they were before the call.
        """
        factors = [factor for _, factor in known if factor is not None]
        if not factors or _NEW.search(name):
            return None
        if name in _SCALINGS:
            return known[0][1] or COMPUTED
        if name == "copy":
            return known[-1][1]
        if name not in VIEWS:
            return COMPUTED
        is_table = len(factors) == len(known) and all(factor.is_table for factor in factors)
        if all(factor.live is None for factor in factors):
            return Factor(is_table=is_table)
        sizes = [tensor.numel() for tensor, _ in known]
        shares = [1.0 if factor is None else factor.density for _, factor in known]
        density = sum(size * share for size, share in zip(sizes, shares)) / max(1, sum(sizes))
        masks = {id(tensor): _mask(tensor, factor) for tensor, factor in known}
        if name.endswith("view") or name == "_reshape_alias":  # strides of a mask may be others than the tensor's
            shape = args[1] if len(args) > 1 else None
            return Factor(masks[id(args[0])].reshape(shape), density, is_table) if isinstance(shape, list) else COMPUTED
        shown = [_exchange(value, masks) for value in args]
        lives = func(*shown, **{key: _exchange(value, masks) for key, value in kwargs.items()})
        if isinstance(lives, torch.Tensor):
            return Factor(lives, density, is_table)
        return [Factor(live, density, is_table) for live in lives]


def product_factor(a: Factor | None, b: Factor | None, shape: Iterable[int]) -> Factor:
    """The factor of an element-wise product of broadcastable tensors."""
    lives = [f.live for f in (a, b) if f is not None and f.live is not None]
    density = min(f.density for f in (a, b) if f is not None)
    is_table = (a is None or b is None) and (a or b or COMPUTED).is_table  # scaled by what is no weight
    if not lives:
        return Factor(is_table=is_table)
    live = lives[0] if len(lives) == 1 else lives[0] & lives[1]
    return Factor(live.expand(torch.Size(shape)), density, is_table)


def floating_tensors(value: object) -> Iterator[torch.Tensor]:
    """All floating-point tensors among the arguments of an operation, in order."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from floating_tensors(part)


def _mask(tensor: torch.Tensor, factor: Factor | None) -> torch.Tensor:
    if factor is not None and factor.live is not None:
        return factor.live.detach()  # an operation in place changes the shape of this view only
    return torch.ones((), dtype=torch.bool, device=tensor.device).expand(tensor.shape)


def _exchange(value: object, masks: dict[int, torch.Tensor]) -> object:
    if isinstance(value, (list, tuple)):
        return type(value)(_exchange(part, masks) for part in value)
    return masks.get(id(value), value) if isinstance(value, torch.Tensor) else value


def _key(value: object) -> Key | None:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or not value.numel():
        return None
    return value.data_ptr(), tuple(value.shape), value.stride(), value.dtype
