"""The unit groups of what RecBole's models are built of: tables, networks, convolutions, GRUs, transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from typing import Any

from torch import nn

from recbole_prune.anatomy.units import Along, Anatomy, Counts, UnitGroup

LAYER_NORM = "LayerNorm divides by the deviation over all dimensions, those at 0 included"
Setting = Callable[[Counts], object]


def width(name: str, count: int, *places: Along, tables: Iterable[str] = (), **more: Any) -> UnitGroup:
    """The dimensions of tables ``[rows, count]``, with what else belongs to them."""
    columns = tuple(Along(f"{table}.weight", 1) for table in tables)
    return UnitGroup(name, "embedding", count, (*columns, *places), **more)


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


def neurons(
    model: nn.Module, path: str, after: Sequence[Along] = (), kind: str = "neuron", **more: Any
) -> Iterator[UnitGroup]:
    """The neurons of a network of linear layers one after another.

    Args:
        model: what has it.
        path: of the network (``MLPLayers``, ``nn.Sequential``); batch norms stand behind the layer they belong to.
        after: what reads its last layer; without, that layer's outputs are no units.
        kind: of the units.
        more: further arguments of every group.
    """
    layers = linears(model, path)
    of_layer: dict[str, list[Along]] = {}
    current = ""
    for name, module in model.get_submodule(path).named_modules(prefix=path):
        if isinstance(module, nn.Linear):
            current = name
        elif isinstance(module, nn.modules.batchnorm._NormBase) and current:
            of_layer.setdefault(current, []).extend(normalisation(model, name))
    for place, layer in enumerate(layers):
        readers = [inputs(layers[place + 1])] if place + 1 < len(layers) else list(after)
        if readers:
            count = len(model.get_parameter(f"{layer}.weight"))
            yield UnitGroup(layer, kind, count, (*outputs(model, layer), *of_layer.get(layer, ()), *readers), **more)


def channels(model: nn.Module, path: str, after: Sequence[Along]) -> Iterator[UnitGroup]:
    """The channels of convolutions one after another; ``after`` reads those of the last."""
    root = model.get_submodule(path)
    layers = [f"{path}.{name}" for name, module in root.named_modules() if isinstance(module, (nn.Conv1d, nn.Conv2d))]
    for place, layer in enumerate(layers):
        readers = [inputs(layers[place + 1])] if place + 1 < len(layers) else list(after)
        count = len(model.get_parameter(f"{layer}.weight"))
        yield UnitGroup(layer, "channel", count, (*outputs(model, layer), *readers))


def recurrent_units(model: nn.Module, path: str, after: Sequence[Along], **more: Any) -> Iterator[UnitGroup]:
    """The units of every layer of an ``nn.GRU`` (rule R7: three gates); ``after`` reads those of the last."""
    gru: Any = model.get_submodule(path)
    gates, size = 3, gru.hidden_size
    for layer in range(gru.num_layers):
        rows = [
            Along(f"{path}.{name}_l{layer}", 0, repeats=gates)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            if hasattr(gru, f"{name}_l{layer}")
        ]
        last = layer + 1 == gru.num_layers
        readers = list(after) if last else [Along(f"{path}.weight_ih_l{layer + 1}", 1)]
        own = Along(f"{path}.weight_hh_l{layer}", 1)
        yield UnitGroup(f"{path}.{layer}", "recurrent", size, (*rows, own, *readers), **more)


def recurrent_inputs(path: str) -> Along:
    """What reads the inputs of a recurrent module."""
    return Along(f"{path}.weight_ih_l0", 1)


def transformer(model: nn.Module, path: str) -> tuple[list[UnitGroup], dict[str, Setting]]:
    """Heads, head dimensions and feed-forward neurons of RecBole's ``TransformerEncoder``, and sizes to set.

    The scale of attention stays that of the full head (rule R4).
    """
    groups: list[UnitGroup] = []
    sizes: dict[str, Setting] = {}
    layers: Any = model.get_submodule(f"{path}.layer")
    for number in range(len(layers)):
        layer = f"{path}.layer.{number}"
        attention, feed = f"{layer}.multi_head_attention", f"{layer}.feed_forward"
        module: Any = model.get_submodule(attention)
        heads, size = module.num_attention_heads, module.attention_head_size
        projections = [place for name in ("query", "key", "value") for place in outputs(model, f"{attention}.{name}")]
        places = [*projections, inputs(f"{attention}.dense")]
        whole = [Along(p.tensor, p.axis, block=size) for p in places]
        single = [Along(p.tensor, p.axis, repeats=heads, period=size) for p in places]
        of_heads, of_sizes = f"{attention}.heads", f"{attention}.head_dimensions"
        groups.append(UnitGroup(of_heads, "head", heads, tuple(whole)))
        groups.append(UnitGroup(of_sizes, "head_dimension", size, tuple(single)))
        sizes[f"{attention}.num_attention_heads"] = left(of_heads)
        sizes[f"{attention}.attention_head_size"] = left(of_sizes)
        sizes[f"{attention}.all_head_size"] = product(of_heads, of_sizes)
        inner = len(model.get_parameter(f"{feed}.dense_1.weight"))
        both = (*outputs(model, f"{feed}.dense_1"), inputs(f"{feed}.dense_2"))
        groups.append(UnitGroup(f"{feed}.dense_1", "neuron", inner, both))
    return groups, sizes


def left(name: str) -> Setting:
    """How many units of a group are left."""
    return lambda counts: counts[name]


def product(*names: str) -> Setting:
    """The units that some groups have left, multiplied."""
    return lambda counts: prod(counts[name] for name in names)


def equal(counts: Counts, names: Iterable[str]) -> int | None:
    """How many units every one of some groups has left; None where they differ."""
    found = {counts[name] for name in names}
    return found.pop() if len(found) == 1 else None


def one_width(
    count: int, *places: Along, tables: Iterable[str], attributes: Iterable[str] = ("embedding_size",), **more: Any
) -> Anatomy:
    """A model whose units are the dimensions of its tables alone, which ``embedding_size`` sets.

    Args:
        count: how many dimensions.
        places: what else belongs to them.
        tables: paths of embeddings.
        attributes: those of the model that hold the width.
        more: further arguments of the group.
    """
    group = width("width", count, *places, tables=tables, **more)
    held = {attribute: left("width") for attribute in attributes}
    return Anatomy([group], held, lambda counts: {"embedding_size": counts["width"]})
