"""The unit groups of what RecBole's models are built of: tables, networks, convolutions, GRUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from torch import nn

from recbole_prune.anatomy.units.groups import UNSCALED, Along, Anatomy, Counts, Scaling, UnitGroup

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

LAYER_NORM = "LayerNorm divides by the deviation over all dimensions, those at 0 included"
Setting = Callable[[Counts], object]


def width(
    name: str,
    count: int,
    *places: Along,
    tables: Iterable[str] = (),
    inexact: str = "",
    alike: str = "",
    chunks: int = 1,
    scaled: Scaling = UNSCALED,
    constant: bool = False,
) -> UnitGroup:
    """The dimensions of tables ``[rows, count]``, with what else belongs to them."""
    columns = tuple(Along(f"{table}.weight", 1) for table in tables)
    return UnitGroup(name, "embedding", count, (*columns, *places), inexact, chunks, alike, scaled, constant)


def field_tables(model: AbstractRecommender, path: str = "") -> list[Along]:
    """The columns of all tables that fields are looked up in, in the model or in a module of it; they have one width.

    Tables of numbers per feature, of width 1, are other modules and have no units.
    """
    kinds = ("token_embedding_table", "token_seq_embedding_table", "float_embedding_table", "float_seq_embedding_table")
    prefix = f"{path}." if path else ""
    roots = tuple(f"{prefix}{kind}." for kind in kinds)
    return [Along(name, 1) for name, _ in model.named_parameters() if name.startswith(roots)]


def linears(model: nn.Module, path: str) -> list[str]:
    """Names of the linear layers inside a module, in their order."""
    root = model.get_submodule(path)
    found = [name for name, module in root.named_modules() if isinstance(module, nn.Linear)]
    return [f"{path}.{name}" if name else path for name in found]


def outputs(model: nn.Module, layer: str) -> list[Along]:
    """What makes the outputs of a layer: rows of its weight and its bias."""
    module = model.get_submodule(layer)
    return [Along(f"{layer}.{name}") for name in ("weight", "bias") if getattr(module, name, None) is not None]


def inputs(layer: str, **where: int) -> Along:
    """What reads the inputs of a layer: columns of its weight; ``where`` as in :class:`Along`."""
    return Along(f"{layer}.weight", 1, **where)


def normalisation(model: nn.Module, path: str) -> list[Along]:
    """All that a normalisation keeps for each of its features."""
    module = model.get_submodule(path)
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return [Along(f"{path}.{name}") for name, tensor in held.items() if tensor.dim() == 1]


def neurons(model: nn.Module, path: str, after: Sequence[Along] = (), kind: str = "neuron") -> Iterator[UnitGroup]:
    """The neurons of a network of linear layers one after another.

    Args:
        model: what has it.
        path: of the network (``MLPLayers``, ``nn.Sequential``); batch norms stand behind the layer they belong to.
        after: what reads its last layer; without, that layer's outputs are no units.
        kind: of the units.
    """
    makers = network(model, path)
    layers = list(makers)
    for place, layer in enumerate(layers):
        readers = [inputs(layers[place + 1])] if place + 1 < len(layers) else list(after)
        if readers:
            count = len(model.get_parameter(f"{layer}.weight"))
            yield UnitGroup(layer, kind, count, (*makers[layer], *readers))


def network(model: nn.Module, path: str) -> dict[str, list[Along]]:
    """What makes the outputs of every linear layer of a network: its rows, and the batch norm behind it."""
    makers: dict[str, list[Along]] = {}
    for name, module in model.get_submodule(path).named_modules(prefix=path):
        if isinstance(module, nn.Linear):
            makers[name] = outputs(model, name)
        elif isinstance(module, nn.modules.batchnorm._NormBase) and makers:
            makers[next(reversed(makers))] += normalisation(model, name)
    return makers


def channels(model: nn.Module, path: str, after: Sequence[Along]) -> Iterator[UnitGroup]:
    """The channels of convolutions one after another; ``after`` reads those of the last."""
    root = model.get_submodule(path)
    layers = [f"{path}.{name}" for name, module in root.named_modules() if isinstance(module, (nn.Conv1d, nn.Conv2d))]
    for place, layer in enumerate(layers):
        readers = [inputs(layers[place + 1])] if place + 1 < len(layers) else list(after)
        count = len(model.get_parameter(f"{layer}.weight"))
        yield UnitGroup(layer, "channel", count, (*outputs(model, layer), *readers))


def recurrent_units(model: nn.Module, path: str, after: Sequence[Along], alike: str = "") -> Iterator[UnitGroup]:
    """The units of every layer of an ``nn.GRU`` (rule R7: three gates); ``after`` reads those of the last.

    The module has one size for all its layers, which lose as many units as each other.
    """
    gru: Any = model.get_submodule(path)
    alike = alike or (path if gru.num_layers > 1 else "")
    for layer in range(gru.num_layers):
        last = layer + 1 == gru.num_layers
        readers = list(after) if last else [Along(f"{path}.weight_ih_l{layer + 1}", 1)]
        places = (*gates(model, path, f"_l{layer}"), *readers)
        yield UnitGroup(f"{path}.{layer}", "recurrent", gru.hidden_size, places, alike=alike)


def gates(model: nn.Module, path: str, layer: str = "", parts: int = 1) -> list[Along]:
    """What makes the units of a layer of a GRU, or of a cell like it, and what it reads of its own units.

    Args:
        model: what has it.
        path: of the module.
        layer: what the names of its parameters end with.
        parts: how often all units of the group stand one after another in each gate.
    """
    module = model.get_submodule(path)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    held = [f"{name}{layer}" for name in names if getattr(module, f"{name}{layer}", None) is not None]
    rows = [Along(f"{path}.{name}", 0, repeats=3 * parts) for name in held]
    return [*rows, Along(f"{path}.weight_hh{layer}", 1, repeats=parts)]


def recurrent_inputs(path: str) -> Along:
    """What reads the inputs of a recurrent module."""
    return Along(f"{path}.weight_ih_l0", 1)


def left(name: str, of: int = 1) -> Setting:
    """How many units of a group are left, in each ``of`` so many equal parts."""
    return lambda counts: counts[name] // of


def product(*names: str) -> Setting:
    """The units that some groups have left, multiplied."""
    return lambda counts: prod(counts[name] for name in names)


def equal(counts: Counts, names: Iterable[str]) -> int | None:
    """How many units every one of some groups has left; None where they differ."""
    found = {counts[name] for name in names}
    return found.pop() if len(found) == 1 else None


def one_width(
    count: int,
    *places: Along,
    tables: Iterable[str] = (),
    attributes: Iterable[str] = ("embedding_size",),
    inexact: str = "",
    chunks: int = 1,
    scaled: Scaling = UNSCALED,
    constant: bool = False,
) -> Anatomy:
    """A model whose units are the dimensions of its tables alone, which ``embedding_size`` sets.

    Args:
        count: how many dimensions.
        places: what else belongs to them.
        tables: paths of embeddings.
        attributes: those of the model that hold the width.
        inexact, chunks, scaled, constant: of the group.
    """
    group = width(
        "width", count, *places, tables=tables, inexact=inexact, chunks=chunks, scaled=scaled, constant=constant
    )
    held = {attribute: left("width") for attribute in attributes}
    return Anatomy([group], held, lambda counts: {"embedding_size": counts["width"]})
