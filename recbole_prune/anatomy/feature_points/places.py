"""Places in a model that say something of every row: modules, methods, layers of networks and of encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from recbole.data.interaction import Interaction
from torch import nn

from recbole_prune.anatomy.feature_points.features import SEQUENCE, VECTOR, Calls, Lookup, Point, Read
from recbole_prune.anatomy.shared_calls import calls_of

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender


def results(model: AbstractRecommender, path: str) -> list[torch.Tensor]:
    """What a noted method has given in the open step, call by call; of modules ``<path of the module>.forward``."""
    return [known.result for known in calls_of(model, path)]


Change = Callable[[torch.Tensor], torch.Tensor]


def output(
    path: str,
    kind: str = VECTOR,
    *,
    pick: int | None = None,
    calls: slice = slice(None),
    change: Change | None = None,
    valid: Read | None = None,
    name: str = "",
) -> Point:
    """What a module or a method of a model gives.

    Args:
        path: of the module, or of a method with parentheses behind it, ``cross_network()``.
        kind: of feature.
        pick: which part of the result, where that is several.
        calls: which of the calls count.
        change: brings a result into the shape of its kind.
        valid: of sequences, which places are no padding.
        name: of the point; "" for the path.
    """
    method = path[:-2] if path.endswith("()") else f"{path}.forward"

    def read(model: AbstractRecommender, batch: Interaction) -> Calls:
        found = [result if pick is None else result[pick] for result in results(model, method)[calls]]
        return found if change is None else [change(values) for values in found]

    noted = (method, *(valid.noted if isinstance(valid, NoPadding) else ()))
    return Point(name or path, kind, read, noted, valid)


@dataclass(frozen=True)
class NoPadding:
    """Says where the sequence that a model's ``forward`` is given has items.

    Attributes:
        argument: its place among the arguments.
        noted: the methods whose calls are read.
    """

    argument: int = 0
    noted: ClassVar[tuple[str, ...]] = ("forward",)

    def __call__(self, model: AbstractRecommender, batch: Interaction) -> Calls:
        """Bool ``[B, L]`` of each call."""
        sequences = (known.arguments[self.argument] for known in calls_of(model, "forward"))
        return [sequence.gt(0) for sequence in sequences if isinstance(sequence, torch.Tensor)]


def entering(path: str, kind: str, valid: Read, name: str, calls: slice) -> Point:
    """What a module is given as its first argument; arguments as for :func:`output`."""
    method = f"{path}.forward"

    def read(model: AbstractRecommender, batch: Interaction) -> Calls:
        given = (known.arguments[0] for known in calls_of(model, method)[calls])
        return [values for values in given if isinstance(values, torch.Tensor)]

    return Point(name, kind, read, (method, *(valid.noted if isinstance(valid, NoPadding) else ())), valid)


def activations(
    model: AbstractRecommender, path: str, kind: str = VECTOR, valid: Read | None = None
) -> tuple[Point, ...]:
    """What each layer of RecBole's ``MLPLayers`` gives behind its activation; layers of one unit are left out.

    Args:
        model: the model.
        path: of the layers.
        kind: of feature.
        valid: of sequences, which places are no padding.
    """
    layers = list(model.get_submodule(f"{path}.mlp_layers"))
    starts = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    # a layer ends before the dropout of the next one
    ends = [min(place for place in (*drops(layers), len(layers)) if place > start) - 1 for start in starts]
    wide = [end for start, end in zip(starts, ends) if layers[start].out_features > 1]
    return tuple(output(f"{path}.mlp_layers.{end}", kind, valid=valid) for end in wide)


def drops(layers: Sequence[nn.Module]) -> list[int]:
    """Places of dropout among layers."""
    return [place for place, layer in enumerate(layers) if isinstance(layer, nn.Dropout)]


def encoder_layers(
    model: AbstractRecommender, path: str, valid: Read = NoPadding(), calls: slice = slice(None)
) -> tuple[Point, ...]:
    """What each layer of one of RecBole's encoders makes of a sequence, before its last normalisation.

    Behind it the mean of squares over channels, by which sequences are compared, is the same at every place.

    Args:
        model: the model.
        path: of the encoder.
        valid: which places of the sequence are no padding.
        calls: which of the calls count.
    """
    layers = (f"{path}.layer.{number}" for number in range(len(model.get_submodule(f"{path}.layer"))))
    return tuple(entering(f"{layer}.feed_forward.LayerNorm", SEQUENCE, valid, layer, calls) for layer in layers)


def rows_of(table: torch.Tensor) -> Lookup:
    """A tensor with a row for each id as vectors of ids."""
    return lambda ids: table[ids]
