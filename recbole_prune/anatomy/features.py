"""What a model's layers say of the rows of a batch: feature points, and how they are read.

Which class has which points say ``feature_points*.py``. Source: methods/attention_distillation_pruning.md, section 6.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from recbole.data.interaction import Interaction
from torch import nn

from recbole_prune.anatomy.losses import recommendation_loss
from recbole_prune.anatomy.shared_calls import calls_of

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

# kinds of features: [B, C, H, W], [B, L, C], [B, F, C], [B, C], and [B, C] gathered of all nodes of a graph
MAP, SEQUENCE, FIELDS, VECTOR, NODES = "map", "sequence", "fields", "vector", "nodes"

Calls = list[torch.Tensor]  # what a point says in each call, positive items first
Read = Callable[["AbstractRecommender", Interaction], Calls]
Lookup = Callable[[torch.Tensor], torch.Tensor]  # vectors [b, C] of ids [b]
Run = Callable[["AbstractRecommender", Interaction], object]


class Feature(NamedTuple):
    """What a point says of the rows of a batch.

    Attributes:
        name: of the point.
        kind: one of the five.
        values: ``[n, ...]`` by kind.
        valid: which places of a sequence are no padding, bool ``[n, L]``; None where there is none.
    """

    name: str
    kind: str
    values: torch.Tensor
    valid: torch.Tensor | None = None

    @property
    def channels(self) -> int:
        """Its width ``C``."""
        return int(self.values.shape[1 if self.kind == MAP else -1])


@dataclass(frozen=True)
class Point:
    """A place in a model that says something of every row.

    Attributes:
        name: of the place.
        kind: of what it says.
        read: gives what it says, ``[B, ...]`` of each call, or ``[k * B, ...]`` of several.
        noted: the methods of the loss whose calls it reads.
        valid: of sequences, which places of each call are no padding.
    """

    name: str
    kind: str
    read: Read
    noted: tuple[str, ...] = ()
    valid: Read | None = None


class Tables(NamedTuple):
    """Vectors of users and of items; None where there are none of those."""

    users: Lookup | None
    items: Lookup | None


def run_loss(model: AbstractRecommender, batch: Interaction) -> object:
    """Compute a model's own loss of a batch.

    Fields on which no layer depends need not be there: labels count as 1, the positive items as negative ones.
    """
    name, kind = recommendation_loss(type(model)), type(model)
    found = dict(batch.interaction)
    for label in (getattr(model, attribute, None) for attribute in ("LABEL", "LABEL_FIELD")):
        if isinstance(label, str) and label not in found:
            found[label] = torch.ones(len(batch), device=model.device)
    items, negatives = (getattr(model, attribute, None) for attribute in ("ITEM_ID", "NEG_ITEM_ID"))
    if isinstance(negatives, str) and negatives not in found and items in found:
        found[negatives] = found[items]
    losses = [vars(each)[name] for each in kind.__mro__ if name in vars(each)]
    both = any("encoder_flag" in inspect.signature(loss).parameters for loss in losses)
    return getattr(model, name)(Interaction(found), **({"encoder_flag": True} if both else {}))


@dataclass(frozen=True)
class FeaturePoints:
    """The feature points of a model.

    Attributes:
        points: its places.
        tables: gives by name tables that hold a row for each user or item; "" are those that are scored with.
        kind: of their rows.
        product: name of the tables whose product of user and item is a point too.
        of_tables: methods whose calls :attr:`tables` reads.
        drawn: a method whose first arguments the loss draws (noise, masks); a teacher of the same class that knows the
            same ids is given those of the student, or the two would say something of different inputs.
        run: makes the places of a teacher say something of a batch; those of a student say it in its own loss.
    """

    points: tuple[Point, ...] = ()
    tables: Callable[[AbstractRecommender], Mapping[str, Tables]] | None = None
    kind: str = VECTOR
    product: str | None = None
    of_tables: tuple[str, ...] = ()
    drawn: str = ""
    run: Run = run_loss

    @property
    def noted(self) -> tuple[str, ...]:
        """The methods whose calls are read."""
        paths = (path for point in self.points for path in point.noted)
        return tuple(dict.fromkeys((*self.of_tables, *paths, *filter(None, [self.drawn]))))

    @property
    def needs_a_run(self) -> bool:
        """Whether a teacher's places say something only where it computes a batch."""
        return any(point.noted for point in self.points)

    def read(
        self, model: AbstractRecommender, batch: Interaction, tables: Mapping[str, Tables] | None = None
    ) -> list[Feature]:
        """What every point says of the rows of a batch whose loss was computed in the open step.

        Args:
            model: the model.
            batch: of ``B`` rows.
            tables: those of the model where they are known already.

        Returns:
            features of the same ``n`` rows: ``B`` for each call, positive items first. Points that say something once
            say it of all.
        """
        if tables is None:
            tables = {} if self.tables is None else self.tables(model)
        read = [(point.name, point.kind, point.read(model, batch), point) for point in self.points]
        found: list[tuple[str, str, Calls, Point | None]] = [
            *self._rows_of(tables, model, batch),
            *((name, kind, _by_call(calls, len(batch)), point) for name, kind, calls, point in read if calls),
        ]
        count = max((len(calls) for _, _, calls, _ in found), default=1)
        valid: dict[Read, Calls] = {}
        for *_, point in found:
            if point is not None and point.valid is not None and point.valid not in valid:
                valid[point.valid] = _by_call(point.valid(model, batch), len(batch))
        return [
            Feature(
                name, kind, _all_calls(calls, count),
                _all_calls(valid[point.valid], count) if point is not None and point.valid is not None else None,
            )
            for name, kind, calls, point in found
        ]  # fmt: skip

    def _rows_of(
        self, tables: Mapping[str, Tables], model: AbstractRecommender, batch: Interaction
    ) -> list[tuple[str, str, Calls, None]]:
        """Rows of tables, where the batch has ids for them."""
        if not tables:
            return []
        users = [batch[name] for name in (model.USER_ID,) if name in batch]
        items = [batch[name] for name in (model.ITEM_ID, model.NEG_ITEM_ID) if name in batch]
        found: list[tuple[str, str, Calls, None]] = []
        for name, (of_users, of_items) in tables.items():
            mine = [] if of_users is None else [of_users(ids) for ids in users]
            theirs = [] if of_items is None else [of_items(ids) for ids in items]
            products = [mine[0] * each for each in theirs] if name == self.product and mine else []
            for what, calls in (("users", mine), ("items", theirs), ("products", products)):
                kind = VECTOR if what == "products" else self.kind
                found += [(f"{name} {what}".strip(), kind, calls, None)] if calls else []
        return found


def _by_call(calls: Calls, rows: int) -> Calls:
    """Results of several calls that were made as one are taken apart."""
    return [part for values in calls for part in (values.split(rows) if len(values) > rows else [values])]


def _all_calls(calls: Calls, count: int) -> torch.Tensor:
    """``[count * B, ...]``; what was said once holds for every call."""
    return torch.cat(calls[:count] if len(calls) >= count else [calls[0]] * count)


# ---- places ----------------------------------------------------------------------------------------------------------


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
