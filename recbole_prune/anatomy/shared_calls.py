"""What a model's loss has computed in a step, used again by what is added to the loss: one propagation per step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from recbole_prune.anatomy.caches import forget_caches

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

Watched = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Call:
    """A call of a model's method; two are the same where they were given the very same objects in the same mode."""

    path: str
    mode: tuple[bool, bool]
    arguments: tuple[object, ...]
    named: Mapping[str, object]
    result: Any
    watched: Watched

    def is_of(
        self, path: str, mode: tuple[bool, bool], arguments: tuple[object, ...], named: Mapping[str, Any]
    ) -> bool:
        """Whether it is the call of a method with these arguments in this mode."""
        return (
            (self.path, self.mode) == (path, mode)
            and len(self.arguments) == len(arguments)
            and self.named.keys() == named.keys()
            and all(_same(mine, other) for mine, other in zip(self.arguments, arguments))
            and all(_same(value, named[name]) for name, value in self.named.items())
        )


def _same(one: object, other: object) -> bool:
    plain = isinstance(one, (bool, int, float, str)) and type(one) is type(other)
    return one is other or (plain and one == other)


@dataclass
class _Step:
    """The calls that are remembered while :func:`sharing` is open.

    Attributes:
        layer: a layer of the model whose inputs and outputs are kept with each call.
        noted: paths of methods whose calls are kept without gradients too.
    """

    layer: nn.Module | None
    noted: frozenset[str] = frozenset()
    calls: list[Call] = field(default_factory=list)


_open: WeakKeyDictionary[nn.Module, _Step] = WeakKeyDictionary()


@contextmanager
def watched(layer: nn.Module | None) -> Iterator[Watched]:
    """The (input, output) of every call of a layer that is made inside."""
    seen: Watched = []
    if layer is None:
        yield seen
        return
    handle = layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def sharing(
    model: nn.Module, methods: tuple[str, ...], layer: nn.Module | None = None, noted: tuple[str, ...] = ()
) -> Iterator[None]:
    """While it is open, :func:`call` gives the results of calls that the model itself has made.

    The model's own calls always compute, so its loss is what it is without (FEARec calls ``forward`` twice with the
    same sequences for two draws of dropout). They are remembered where gradients are on; what evaluation computes is
    not, but for whole tables. Afterwards nothing is left: neither results, nor tables that the model keeps for ranking.
    Inside another one for the same model it does nothing.

    Args:
        model: a RecBole model whose weights do not change inside.
        methods: paths from the model of the methods to remember, for example ``forward`` or ``GcEncoder.forward``.
        layer: a layer of the model to be watched in each of these calls.
        noted: paths of further methods, whose calls :func:`calls_of` gives with and without gradients.
    """
    if model in _open:
        yield
        return
    step = _open[model] = _Step(layer, frozenset(noted))
    forget_caches(model)
    with ExitStack() as undo:
        undo.callback(forget_caches, model)
        undo.callback(_open.pop, model)
        for path in dict.fromkeys((*methods, *noted)):
            owner, name = _owner(model, path)
            vars(owner)[name] = _remembering(step, model, path, getattr(owner, name))
            undo.callback(vars(owner).pop, name, None)  # a module may have two paths
        yield


def is_sharing(model: nn.Module) -> bool:
    """Whether :func:`sharing` is open for a model."""
    return model in _open


def _owner(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    place, _, name = path.rpartition(".")
    return model.get_submodule(place), name


def _mode(model: nn.Module) -> tuple[bool, bool]:
    return model.training, torch.is_grad_enabled()


def _remembering(step: _Step, model: nn.Module, path: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def call_and_remember(*arguments: object, **named: object) -> Any:
        with watched(step.layer if torch.is_grad_enabled() else None) as seen:
            result = method(*arguments, **named)
        if torch.is_grad_enabled() or path in step.noted:
            step.calls.append(Call(path, _mode(model), arguments, named, result, seen))
        return result

    return call_and_remember


def call(model: AbstractRecommender, path: str, *arguments: object, whole: bool = False, **named: object) -> Any:
    """Call a model's method, or give the result that the same call had before in the same step.

    Args:
        model: a RecBole model.
        path: of the method, as in :func:`sharing`.
        whole: the result is a table of all users or items, worth keeping without gradients too.
    """
    step = _open.get(model)
    mode = _mode(model)
    for known in step.calls if step else ():
        if known.is_of(path, mode, arguments, named):
            return known.result
    owner, name = _owner(model, path)
    result = getattr(owner, name)(*arguments, **named)
    if step and whole and not any(known.is_of(path, mode, arguments, named) for known in step.calls):
        step.calls.append(Call(path, mode, arguments, named, result, []))
    return result


def calls_of(model: nn.Module, path: str) -> list[Call]:
    """The calls of a noted method in the open step, in their order."""
    return [known for known in _open[model].calls if known.path == path]


def input_of(layer: nn.Module, model: AbstractRecommender, path: str, *arguments: object) -> torch.Tensor:
    """The last input of a layer in a call of a model's method, or in the same call before in the same step."""
    step = _open.get(model)
    for known in step.calls if step and step.layer is layer else ():
        if known.is_of(path, _mode(model), arguments, {}):
            return known.watched[-1][0]
    owner, name = _owner(model, path)
    with watched(layer) as seen:
        getattr(owner, name)(*arguments)
    return seen[-1][0]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module's own mode, without the work that ``train()`` does in SGL."""
    modes = [(module, module.training) for module in model.modules()]
    if any(mode for _, mode in modes):
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
