"""What a RecBole dataset consists of as JSON and arrays, and back: nothing that is read can name code to run.

Values are None, booleans, numbers, texts, lists, dicts, RecBole's two enumerations of fields, numpy arrays of numbers,
of texts or of sequences, and data frames: nothing else is in a dataset. An object that stands in several places does so
again; numpy's single texts become Python's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from recbole.utils import FeatureSource, FeatureType

Array = NDArray[Any]
Node = Any  # JSON: a scalar, or a list of a kind and what belongs to it

_ENUMS = {kind.__name__: kind for kind in (FeatureType, FeatureSource)}
_SCALARS = (bool, int, float, str, type(None))
_NUMBERS = "biuf"
_MOST_GROWTH = 1024
_OF_COLUMNS = ("array", "ragged")


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
        if id(value) in self._nodes:
            return ["again", self._nodes[id(value)]]
        number = len(self._kept)
        self._kept.append(value)
        node = self._compound(value)
        self._nodes[id(value)] = number
        return [*node, number]

    def _compound(self, value: object) -> list[Node]:
        kind = type(value)
        if isinstance(value, (FeatureType, FeatureSource)):
            return ["enum", kind.__name__, value.name]
        if isinstance(value, list) and kind is list:
            return ["list", [self.encode(each) for each in value]]
        if isinstance(value, dict) and kind is dict:
            return self._mapping(value)
        if isinstance(value, defaultdict) and value.default_factory is int:
            return ["counts", self.encode(dict(value))]
        if isinstance(value, np.ndarray) and kind is np.ndarray:
            return self._ndarray(value)
        if isinstance(value, pd.DataFrame) and kind is pd.DataFrame:
            columns = [[self.encode(name), self._column(value[name])] for name in value.columns]
            return ["frame", len(value), columns, self._index(value.index)]
        raise NotPlain(f"{kind.__module__}.{kind.__qualname__}")

    def _mapping(self, value: dict[Any, Any]) -> list[Node]:
        """A dict; one from many tokens to their ids takes two arrays."""
        if value and all(isinstance(key, str) and type(each) is int for key, each in value.items()):
            return ["ids", self._texts(value), self._array(np.fromiter(value.values(), np.int64, len(value)))]
        if not all(type(key) in (*_SCALARS, np.str_) for key in value):
            raise NotPlain("a dict with other keys than numbers and texts")
        return ["dict", [[self.encode(key), self.encode(each)] for key, each in value.items()]]

    def _ndarray(self, value: Array) -> list[Node]:
        if value.dtype.kind in _NUMBERS:
            return ["array", self._array(value)]
        if value.ndim == 1 and value.dtype.kind == "U":
            return self._unicode(value)
        if value.ndim == 1 and value.dtype == object:
            return self._ragged(value)
        raise NotPlain(f"an array of {value.dtype}")

    def _unicode(self, value: Array) -> list[Node]:
        names = self._texts(value.tolist())
        if value.nbytes > _MOST_GROWTH * sum(self.arrays[name].nbytes for name in names):
            raise NotPlain(f"{len(value)} texts of {value.dtype.itemsize} bytes each, few of them so long")
        return ["unicode", names, value.dtype.itemsize]

    def _ragged(self, value: Array) -> list[Node]:
        """Arrays of one dtype and of any lengths, as a column of sequences has them."""
        if not all(type(each) is np.ndarray and each.ndim == 1 and each.dtype == value[0].dtype for each in value):
            raise NotPlain("an array of objects")
        if not len(value):
            raise NotPlain("a column of no sequences")
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
            "dict": lambda pairs: {_scalar(key): self.decode(node) for key, node in pairs},
            "counts": self._counts,
            "ids": lambda texts, ids: dict(zip(self._texts(texts), self._vector(ids).tolist())),
            "array": self._array,
            "unicode": self._unicode,
            "ragged": self._ragged,
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
            if kind == "again":
                return self._values[parts[0]]
            *parts, number = parts
            value = self._values[number] = self._kinds[kind](*parts)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise NotPlain(f"{type(error).__name__}: {error}") from error
        return value

    def _array(self, name: str) -> Array:
        found = self._arrays.pop(name)
        if found.ndim != 1 and not found.size:  # no bytes, and any number of rows
            raise NotPlain(f"an array of shape {list(found.shape)}")
        return found.copy()

    def _vector(self, name: str) -> Array:
        found = self._array(name)
        if found.ndim != 1:
            raise NotPlain(f"an array of shape {list(found.shape)} where a list is needed")
        return found

    def _ends(self, lengths: str, total: int) -> NDArray[np.int64]:
        """Where parts end of which an array says the lengths."""
        found = self._vector(lengths)
        if found.dtype != np.int64 or (found < 0).any() or (found > total).any() or int(found.sum()) != total:
            raise NotPlain(f"lengths of parts that do not make {total}")
        return np.cumsum(found)

    def _texts(self, names: list[str]) -> list[str]:
        data = self._vector(names[0]).tobytes()
        start, texts = 0, []
        for end in self._ends(names[1], len(data)).tolist():
            texts.append(data[start:end].decode("utf-8", "surrogatepass"))
            start = end
        return texts

    def _unicode(self, names: list[str], itemsize: int) -> Array:
        stored = sum(self._arrays[name].nbytes for name in names)
        texts = self._texts(names)
        if itemsize < 4 or itemsize % 4 or itemsize * len(texts) > _MOST_GROWTH * stored:
            raise NotPlain(f"{len(texts)} texts of {itemsize} bytes, out of all proportion")
        return np.array(texts, f"U{itemsize // 4}")

    def _ragged(self, array: str, lengths: str) -> Array:
        numbers = self._vector(array)
        parts = np.split(numbers, self._ends(lengths, len(numbers))[:-1])
        found = np.empty(len(parts), dtype=object)
        for place, part in enumerate(parts):
            found[place] = part
        return found

    def _counts(self, node: Node) -> defaultdict[Any, int]:
        found = self.decode(node)
        if type(found) is not dict:
            raise NotPlain("counts that are no dict")
        return defaultdict(int, found)

    def _frame(self, rows: int, columns: list[tuple[Node, Node]], index: Node) -> pd.DataFrame:
        named = {}
        for name, column in columns:
            if column[0] not in _OF_COLUMNS:
                raise NotPlain(f"a column that is {column[0]}")
            values = named[name] = self.decode(column)
            if type(name) is not str or values.shape != (rows,):
                raise NotPlain(f"column {name} of shape {list(values.shape)} in a table of {rows} rows")
        if not named or (index is not None and (index[0] != "array" or len(index) != 3)):
            raise NotPlain("a table without columns, or with other numbers of rows")
        return pd.DataFrame(named, index=pd.RangeIndex(rows) if index is None else pd.Index(self.decode(index)))


def _scalar(node: Node) -> Any:
    if type(node) not in _SCALARS:
        raise NotPlain("a key that is no number and no text")
    return node
