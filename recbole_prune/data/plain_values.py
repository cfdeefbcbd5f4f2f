"""What a RecBole dataset consists of as JSON and arrays, and back: nothing that is read can name code to run.

Values are None, booleans, numbers, texts, lists, tuples, sets, dicts, RecBole's two enumerations of fields, numpy
arrays of numbers or texts, tensors, interactions and data frames. An object that stands in several places does so
again; numpy's single texts become Python's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType

Array = NDArray[Any]
Node = Any  # JSON: a scalar, or a list of a kind and what belongs to it

_ENUMS = {kind.__name__: kind for kind in (FeatureType, FeatureSource)}
_SCALARS = (bool, int, float, str, type(None))
_NUMBERS = "biuf"
_MOST_GROWTH = 1024


class NotPlain(ValueError):
    """A value of another kind, or a node that stands for none."""


class Encoder:
    """Turns values into nodes, and collects the arrays that they point at.

    Attributes:
        arrays: by name.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self._nodes: dict[int, Node] = {}
        self._kept: list[object] = []  # while they live no other object has their id

    def encode(self, value: object) -> Node:
        """The node of a value.

        Raises:
            NotPlain: it is of another kind.
        """
        if type(value) in _SCALARS:
            return value
        if isinstance(value, np.str_):
            return str(value)
        if isinstance(value, np.generic):
            return ["number", self._array(np.asarray(value)[None])]
        if id(value) in self._nodes:
            return ["again", self._nodes[id(value)]]
        number = len(self._kept)
        self._kept.append(value)
        node = self._compound(value)
        self._nodes[id(value)] = number
        return [*node, number]

    def _compound(self, value: object) -> list[Node]:
        kind = type(value)
        if kind in _ENUMS.values():
            return ["enum", kind.__name__, value.name]  # type: ignore[attr-defined]
        if kind in (list, tuple, set):
            return [kind.__name__, [self.encode(each) for each in value]]  # type: ignore[attr-defined]
        if isinstance(value, dict) and kind is dict:
            return self._mapping(value)
        if isinstance(value, defaultdict) and value.default_factory is int:
            return ["counts", self.encode(dict(value))]
        if isinstance(value, np.ndarray) and kind is np.ndarray:
            return self._ndarray(value)
        if isinstance(value, torch.Tensor) and kind is torch.Tensor and value.device.type == "cpu":
            return ["tensor", self._array(value.detach().numpy())]
        if isinstance(value, Interaction) and kind is Interaction:
            return ["interaction", self.encode(dict(value.interaction))]
        if isinstance(value, pd.DataFrame) and kind is pd.DataFrame:
            columns = [[self.encode(name), self._column(value[name])] for name in value.columns]
            return ["frame", len(value), columns, self._index(value.index)]
        raise NotPlain(f"{kind.__module__}.{kind.__qualname__}")

    def _mapping(self, value: dict[Any, Any]) -> list[Node]:
        """A dict; one from many tokens to their ids takes two arrays."""
        if value and all(isinstance(key, str) and type(each) is int for key, each in value.items()):
            return ["ids", self._texts(value), self._array(np.fromiter(value.values(), np.int64, len(value)))]
        return ["dict", [[self.encode(key), self.encode(each)] for key, each in value.items()]]

    def _ndarray(self, value: Array) -> list[Node]:
        if value.dtype.kind in _NUMBERS:
            return ["array", self._array(value)]
        if value.ndim == 1 and value.dtype.kind == "U":
            return ["unicode", self._texts(value.tolist()), value.dtype.itemsize]
        if value.ndim == 1 and value.dtype == object:
            if all(type(each) is str for each in value):
                return ["texts", self._texts(value)]
            return self._ragged(value)
        raise NotPlain(f"an array of {value.dtype}")

    def _ragged(self, value: Array) -> list[Node]:
        """Arrays of one dtype and of any lengths, as a column of sequences has them."""
        if not all(type(each) is np.ndarray and each.ndim == 1 and each.dtype == value[0].dtype for each in value):
            raise NotPlain("an array of objects")
        lengths = np.fromiter(map(len, value), np.int64, len(value))
        return ["ragged", self._array(np.concatenate(value)), self._array(lengths)]

    def _column(self, column: pd.Series[Any]) -> Node:
        if not isinstance(column.dtype, np.dtype):
            raise NotPlain(f"a column of {column.dtype}")
        return self.encode(column.to_numpy())

    def _index(self, index: pd.Index[Any]) -> Node:
        if isinstance(index, pd.RangeIndex) and (index.start, index.step, index.name) == (0, 1, None):
            return None
        if index.name is not None or type(index) is not pd.Index or index.dtype != np.int64:
            raise NotPlain(f"an index of {index.dtype}")
        return self.encode(index.to_numpy())

    def _texts(self, texts: Iterable[str]) -> list[str]:
        coded = [text.encode("utf-8", "surrogatepass") for text in texts]
        lengths = np.fromiter(map(len, coded), np.int64, len(coded))
        return [self._array(np.frombuffer(b"".join(coded), np.uint8)), self._array(lengths)]

    def _array(self, array: Array) -> str:
        if array.dtype.kind not in _NUMBERS or not array.dtype.isnative:
            raise NotPlain(f"an array of {array.dtype}")
        name = str(len(self.arrays))
        self.arrays[name] = np.ascontiguousarray(array)
        return name


class Decoder:
    """Turns nodes of an :class:`Encoder` into values again.

    Args:
        arrays: by name; a value takes out the one that it is made of, so that nothing grows beyond its file.
    """

    def __init__(self, arrays: dict[str, Array]) -> None:
        self._arrays = arrays
        self._values: dict[int, object] = {}
        self._kinds: dict[str, Callable[..., object]] = {
            "enum": lambda kind, name: _ENUMS[kind][name],
            "list": lambda nodes: [self.decode(node) for node in nodes],
            "tuple": lambda nodes: tuple(self.decode(node) for node in nodes),
            "set": lambda nodes: {self.decode(node) for node in nodes},
            "dict": lambda pairs: {self.decode(key): self.decode(node) for key, node in pairs},
            "counts": lambda node: defaultdict(int, self.decode(node)),
            "ids": lambda texts, ids: dict(zip(self._texts(texts), self._array(ids).tolist())),
            "array": self._array,
            "unicode": self._unicode,
            "texts": lambda texts: _of_objects(self._texts(texts)),
            "ragged": lambda array, lengths: _of_objects(np.split(self._array(array), self._cuts(lengths))),
            "tensor": lambda array: torch.from_numpy(self._array(array)),
            "interaction": lambda node: Interaction(self.decode(node)),
            "frame": self._frame,
        }

    def decode(self, node: Node) -> Any:
        """The value of a node.

        Raises:
            NotPlain: it is no node of an encoder.
        """
        if type(node) in _SCALARS:
            return node
        try:
            kind, *parts = node
            if kind == "number":
                return self._array(parts[0])[0]
            if kind == "again":
                return self._values[parts[0]]
            *parts, number = parts
            value = self._values[number] = self._kinds[kind](*parts)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise NotPlain(f"{type(error).__name__}: {error}") from error
        return value

    def _array(self, name: str) -> Array:
        return self._arrays.pop(name).copy()

    def _cuts(self, lengths: str) -> Array:
        return np.cumsum(self._array(lengths))[:-1]

    def _texts(self, names: list[str]) -> list[str]:
        data, end, texts = self._array(names[0]).tobytes(), 0, []
        for length in self._array(names[1]).tolist():
            texts.append(data[end : end + length].decode("utf-8", "surrogatepass"))
            end += length
        return texts

    def _unicode(self, names: list[str], itemsize: int) -> Array:
        stored = sum(self._arrays[name].nbytes for name in names)
        texts = self._texts(names)
        if itemsize * len(texts) > _MOST_GROWTH * stored:
            raise NotPlain(f"{len(texts)} texts of {itemsize} bytes, out of all proportion")
        return np.array(texts, f"U{itemsize // 4}")

    def _frame(self, rows: int, columns: list[tuple[Node, Node]], index: Node) -> pd.DataFrame:
        if any(kind == "again" for _, (kind, *_) in columns):
            raise NotPlain("a column that stands in several places")
        named = {self.decode(name): self.decode(column) for name, column in columns}
        return pd.DataFrame(named, index=pd.RangeIndex(rows) if index is None else pd.Index(self.decode(index)))


def _of_objects(values: list[Any]) -> Array:
    return np.fromiter(values, dtype=object, count=len(values))
