"""Which tables of a model are stored compact, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from recbole_prune.sparse.compact import CompactEmbedding

STORAGES = ("auto", "compact", "masked")


def compact_is_smaller(rows: int, width: int, live: int) -> bool:
    """Whether training a compact table takes fewer bytes than a dense one: the rule of ``prune_storage=auto``.

    Training holds a value, a gradient and Adam's two moments of every stored entry, 16 bytes; a compact table adds the
    column of every live entry and a pointer for every row. On a CPU it is then also faster than a masked table, which
    pays for a mask over the whole table with every gradient and every step.
    """
    column = 1 if width <= 2**8 else 2 if width <= 2**15 else 4
    return (16 + column) * live + 4 * (rows + 1) < 16 * rows * width


def choose_compact(
    model: nn.Module, masks: Mapping[str, torch.Tensor], storage: str
) -> tuple[dict[str, nn.Embedding], dict[str, str]]:
    """The tables to store compact.

    Args:
        model: any module.
        masks: boolean masks by parameter name; True is live.
        storage: ``compact`` (wherever something is pruned and the table allows it), ``masked`` (nowhere) or ``auto``
            (where in addition :func:`compact_is_smaller`).

    Returns:
        modules by parameter name; and the reason by name for tables that cannot be compact though something is pruned.
    """
    chosen: dict[str, nn.Embedding] = {}
    refused: dict[str, str] = {}
    if storage == "masked":
        return chosen, refused
    modules = dict(model.named_modules())
    shared = _other_holders(model)
    for name, mask in masks.items():
        prefix, _, local = name.rpartition(".")
        module = modules[prefix]
        if not isinstance(module, nn.Embedding) or local != "weight" or bool(mask.all()):
            continue
        reason = _refusal(module) or shared.get(id(module._parameters.get("weight")), "")
        if reason:
            refused[name] = reason
        elif storage == "compact" or compact_is_smaller(mask.shape[0], mask.shape[1], int(torch.count_nonzero(mask))):
            chosen[name] = module
    return chosen, refused


def _refusal(module: nn.Embedding) -> str:
    if type(module) not in (nn.Embedding, CompactEmbedding):
        return f"a {type(module).__name__}, not a plain nn.Embedding"
    for option in ("max_norm", "scale_grad_by_freq", "sparse"):
        if getattr(module, option):
            return f"uses the option {option} of nn.Embedding"
    if not isinstance(module, CompactEmbedding) and module.weight._backward_hooks:
        return "has a gradient hook of its own"
    return ""


def _other_holders(model: nn.Module) -> dict[int, str]:
    """Parameters that are reached in another way than as the weight of one module, by id, with that way."""
    owners: dict[int, str] = {}
    shared: dict[int, str] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                where = f"{prefix}.{name}" if prefix else name
                if id(parameter) in owners:
                    shared[id(parameter)] = f"is the same tensor as {where}"
                owners[id(parameter)] = where
        for name, value in vars(module).items():
            if name != "_parameters":
                for parameter in _parameters_in(value):
                    shared[id(parameter)] = f"the model also keeps it in the attribute {name}"
    return shared


def _parameters_in(value: object) -> Iterator[nn.Parameter]:
    if isinstance(value, nn.Parameter):
        yield value
    elif isinstance(value, (list, tuple)) and len(value) <= 1000:
        for item in value:
            yield from _parameters_in(item)
    elif isinstance(value, dict) and len(value) <= 1000:
        yield from _parameters_in(list(value.values()))
