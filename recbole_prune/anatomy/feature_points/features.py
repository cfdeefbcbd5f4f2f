"""What a model's layers say of the rows of a batch: feature points, and how they are read.

``places.py`` has the kinds of places; the modules by family say which class has which.
Source: methods/attention_distillation_pruning.md, section 6.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from recbole.data.interaction import Interaction

from recbole_prune.anatomy.losses import recommendation_loss

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
        said = [*self._rows_of(tables, model, batch), *(_Said.by(point, model, batch) for point in self.points)]
        said = [each for each in said if each.calls]
        count = max((len(each.calls) for each in said), default=1)
        return [each.of_calls(count) for each in said]

    def _rows_of(self, tables: Mapping[str, Tables], model: AbstractRecommender, batch: Interaction) -> Iterator[_Said]:
        """Rows of tables, where the batch has ids for them."""
        if not tables:
            return
        users = [batch[name] for name in (model.USER_ID,) if name in batch]
        items = [batch[name] for name in (model.ITEM_ID, model.NEG_ITEM_ID) if name in batch]
        for name, (of_users, of_items) in tables.items():
            mine = [] if of_users is None else [of_users(ids) for ids in users]
            theirs = [] if of_items is None else [of_items(ids) for ids in items]
            yield _Said(f"{name} users".strip(), self.kind, mine)
            yield _Said(f"{name} items".strip(), self.kind, theirs)
            if name == self.product and mine:
                yield _Said(f"{name} products".strip(), VECTOR, [mine[0] * each for each in theirs])


class _Said(NamedTuple):
    """What a point says in each call, and where that is no padding."""

    name: str
    kind: str
    calls: Calls
    valid: Calls | None = None

    @classmethod
    def by(cls, point: Point, model: AbstractRecommender, batch: Interaction) -> _Said:
        """A point; results of several calls that were made as one are taken apart."""
        calls = _by_call(point.read(model, batch), len(batch))
        valid = None if point.valid is None else _by_call(point.valid(model, batch), len(batch))
        return cls(point.name, point.kind, calls, valid)

    def of_calls(self, count: int) -> Feature:
        """The rows of so many calls; what was said once holds for each."""
        values, valid = (None if each is None else _all_calls(each, count) for each in (self.calls, self.valid))
        assert values is not None, "calls are no None"
        return Feature(self.name, self.kind, values, valid)


def _by_call(calls: Calls, rows: int) -> Calls:
    return [part for values in calls for part in (values.split(rows) if len(values) > rows else [values])]


def _all_calls(calls: Calls, count: int) -> torch.Tensor:
    return torch.cat(calls[:count] if len(calls) >= count else [calls[0]] * count)
