"""Tables in forms that are no mask: everything in them is live, and the table follows from smaller tables.

``factors``  the product of two matrices: ``left`` ``[n, r]`` times ``right`` ``[r, d]``;
``codes``    every row is put together of pieces of ``m`` codebooks: ``codes`` uint8 ``[n, m]`` say which piece, column
             group ``g`` of row ``i`` is that of row ``codes[i, g]`` of ``values`` ``[k, d]``;
``hashed``   row ``i`` is row ``p(i) mod c`` of ``remainder`` ``[c, d]`` times row ``p(i) div c`` of ``quotient``, where
             ``p`` is a permutation drawn with ``seed`` and ``c`` is the ``divider``.

``n`` counts the rows that are no padding; those are stored beside, exactly, in ``padding``. The smaller tables are
:class:`~recbole_prune.artifact.encoding.EncodedTensor`, so each value type of an artifact applies to them, never to
codes. A table decodes to the same bits on every machine: sums run in float64 in a fixed order and are rounded once.
Only numpy is needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_safetensors

from recbole_prune.artifact.encoding import ENCODINGS, Array, EncodedTensor, encode
from recbole_prune.artifact.fields import Fields, parse
from recbole_prune.artifact.files import load_arrays
from recbole_prune.errors import ArtifactError

# the smaller tables of each form
FORMS = {"factors": ("left", "right"), "codes": ("values",), "hashed": ("remainder", "quotient")}

_PADDING = "padding"
_CODES = "codes"
_OPERATION = "product"
_LONGEST_SIDE = 1 << 40
_MOST_PADDING = 1 << 20
_MOST_SEED = (1 << 32) - 1
_ROWS_AT_ONCE = 1 << 14


class WholeTable:
    """What follows from the shape of a table of which nothing is pruned.

    Attributes:
        shape: of the decoded table, padding included.
    """

    shape: tuple[int, ...]

    @property
    def entries(self) -> int:
        """Entries of the decoded table."""
        return math.prod(self.shape)

    @property
    def kept(self) -> int:
        """All of them: none is pruned."""
        return self.entries

    @property
    def rows(self) -> int:
        """Rows of the decoded table, padding included."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """Columns of the decoded table."""
        return self.shape[1]


@dataclass(frozen=True)
class TableForm(WholeTable):
    """One table in a form; make it with :func:`factors`, :func:`codes` or :func:`hashed`.

    Attributes:
        shape: rows and columns of the table.
        encoding: one of :data:`FORMS`.
        tables: the smaller tables by name, ``padding`` among them where there are padding rows.
        padding_rows: ascending.
        codes: of ``codes``: uint8, ``n * m`` of them, row by row.
        divider: of ``hashed``.
        seed: of the permutation of ``hashed``.
        source: file and field that it was read from, for messages.
    """

    shape: tuple[int, int]
    encoding: str
    tables: Mapping[str, EncodedTensor]
    padding_rows: tuple[int, ...] = ()
    codes: Array | None = None
    divider: int = 0
    seed: int = 0
    source: str = field(default="the table", compare=False)

    @property
    def dtype(self) -> str:
        """Numpy name of the decoded dtype."""
        return self.tables[FORMS[self.encoding][0]].dtype

    @property
    def parts(self) -> dict[str, Array]:
        """All arrays, those of a smaller table behind its name."""
        own = {} if self.codes is None else {_CODES: self.codes}
        inner = {f"{name}.{part}": array for name, table in self.tables.items() for part, array in table.parts.items()}
        return {**own, **inner}

    @property
    def counted(self) -> int:
        """Rows that are no padding."""
        return self.rows - len(self.padding_rows)

    @property
    def subspaces(self) -> int:
        """Codes of a row (``codes`` only)."""
        return 0 if self.codes is None or not self.counted else self.codes.size // self.counted

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the decoded table."""
        return self.entries * np.dtype(self.dtype).itemsize

    @property
    def working_nbytes(self) -> int:
        """The most that decoding allocates for good: the table, the smaller ones, and two numbers a row."""
        inner = sum(table.working_nbytes for table in self.tables.values())
        return self.dense_nbytes + inner + 16 * (self.rows + self.columns)

    @property
    def bound_bytes(self) -> float:
        """As :attr:`nbytes`: no position is stored, so there is nothing to do better."""
        return float(self.nbytes)

    @property
    def format_version(self) -> int:
        """The first version of the artifact's format that has such a table."""
        return 2

    def describe(self) -> dict[str, Any]:
        """All that :meth:`from_description` needs beside the parts, as JSON; with sizes in bytes for a reader."""
        own: dict[str, Any] = {}
        if self.encoding == "codes":
            own = {"subspaces": self.subspaces}
        elif self.encoding == "hashed":
            own = {"divider": self.divider, "operation": _OPERATION, "seed": self.seed}
        return {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "encoding": self.encoding,
            "padding_rows": list(self.padding_rows),
            **own,
            "parts": {name: table.describe() for name, table in self.tables.items()},
            "entries": self.entries,
            "kept": self.kept,
            "bytes": self.nbytes,
        }

    @classmethod
    def from_description(cls, description: Fields, parts: Mapping[str, Array]) -> TableForm:
        """Put a table together again; nothing is allocated for it yet.

        Raises:
            ArtifactError: a field is malformed, or description and parts contradict each other.
        """
        encoding = description.text("encoding", list(FORMS))
        shape = description.sizes("shape", 2, _LONGEST_SIDE)
        if len(shape) != 2:
            raise description.wrong("shape", "rows and columns")
        described = description.inner("parts")
        padding = description.sizes("padding_rows", _MOST_PADDING, max(shape[0] - 1, 0)) if shape[0] else ()
        rest = dict(parts)
        tables = {}
        for name in described:
            own = [part for part in rest if part.rpartition(".")[0] == name]
            inner = {part.rpartition(".")[2]: rest.pop(part) for part in own}
            tables[name] = EncodedTensor.from_description(described.inner(name), inner)
        hashed = encoding == "hashed"
        if hashed:
            description.text("operation", [_OPERATION])
        form = cls(
            shape=(shape[0], shape[1]),
            encoding=encoding,
            tables=tables,
            padding_rows=padding,
            codes=rest.pop(_CODES, None),
            divider=description.whole("divider", _LONGEST_SIDE) if hashed else 0,
            seed=description.whole("seed", _MOST_SEED) if hashed else 0,
            source=f"{description.path}: {description.place}",
        )
        if rest:
            raise form._error(f"{encoding} has no part {min(rest)}")
        form._check()
        if encoding == "codes" and description.whole("subspaces", shape[1]) != form.subspaces:
            raise description.wrong("subspaces", f"the {form.subspaces} codes of a row")
        if description.text("dtype") != form.dtype:
            raise description.wrong("dtype", f"that of its parts, {form.dtype}")
        return form

    def _check(self) -> None:
        """Refuse parts that do not make a table of the shape."""
        padding = self.padding_rows
        if list(padding) != sorted(set(padding)) or (padding and not 0 <= padding[0] <= padding[-1] < self.rows):
            raise self._error(f"padding_rows must ascend from 0 to at most {self.rows - 1}")
        wanted = self._shapes()
        if set(self.tables) != set(wanted):
            raise self._error(f"{self.encoding} needs {', '.join(wanted)}, found {', '.join(self.tables) or 'nothing'}")
        for name, table in self.tables.items():
            if table.shape != wanted[name] or table.kept != table.entries:
                raise self._error(
                    f"{name} must be a whole table of {list(wanted[name])}, but is {list(table.shape)}, "
                    f"and {table.kept} of its entries are live"
                )
        dtypes = {table.dtype for table in self.tables.values()}
        if len(dtypes) > 1 or not dtypes <= {"float32", "float64"}:
            raise self._error(f"its tables must all be float32 or all float64, found {', '.join(sorted(dtypes))}")
        if (self.codes is not None) != (self.encoding == "codes"):
            raise self._error("codes are stored with the encoding codes and with no other")
        if self.codes is not None:
            self._check_codes(self.codes)

    def _check_codes(self, codes: Array) -> None:
        if codes.dtype != np.uint8 or codes.ndim != 1:
            raise self._error(f"codes must be a list of uint8, but are {codes.dtype} of shape {list(codes.shape)}")
        if codes.size != self.subspaces * self.counted or not 1 <= self.subspaces <= max(self.columns, 1):
            raise self._error(f"{codes.size} codes do not give {self.counted} rows 1 to {self.columns} each")
        if codes.size and int(codes.max()) >= self.tables["values"].rows:
            raise self._error(f"code {int(codes.max())} is beyond the {self.tables['values'].rows} rows of values")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes that the smaller tables must have, where one of them does not say its own length."""
        first = self.tables.get(FORMS[self.encoding][0])
        length = 0 if first is None or not first.shape else first.shape[-1 if self.encoding == "factors" else 0]
        shapes: dict[str, tuple[int, ...]] = {}
        if self.encoding == "factors":
            shapes = {"left": (self.counted, length), "right": (length, self.columns)}
        elif self.encoding == "codes":
            shapes = {"values": (length, self.columns)}
        else:
            if not 1 <= self.divider <= max(self.counted, 1):
                raise self._error(f"divider must be from 1 to {max(self.counted, 1)}, but is {self.divider}")
            quotients = -(-self.counted // self.divider)
            shapes = {"remainder": (self.divider, self.columns), "quotient": (quotients, self.columns)}
        return {**shapes, **({_PADDING: (len(self.padding_rows), self.columns)} if self.padding_rows else {})}

    def _error(self, problem: str) -> ArtifactError:
        return ArtifactError(f"{self.source}: {problem}")

    def decode(self) -> Array:
        """The table."""
        table = self._combined({name: table.decode() for name, table in self.tables.items()})
        if not np.isfinite(table).all():
            raise self._error("a value of the table is not finite")
        return table

    def rounding_error(self) -> Array:
        """How far rounding the smaller tables can have moved an entry, in the table's shape; 0 where they are exact.

        Every entry is a sum of products, so it moves most where magnitudes and errors all add up.
        """
        size, error = {}, {}
        for name, table in self.tables.items():
            size[name], error[name] = np.abs(table.decode().astype(np.float64)), table.rounding_error()
        moved: Array = self._combined({name: size[name] + error[name] for name in size}) - self._combined(size)
        return moved

    def _combined(self, small: Mapping[str, Array]) -> Array:
        """The table of smaller ones, in their dtype."""
        table = np.empty(self.shape, dtype=small[FORMS[self.encoding][0]].dtype)
        counted = np.ones(self.rows, dtype=bool)
        counted[list(self.padding_rows)] = False
        rows = np.flatnonzero(counted)
        places = permutation(self.counted, self.seed) if self.encoding == "hashed" else None
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                some = slice(start, start + _ROWS_AT_ONCE)
                table[rows[some]] = self._rows_of(small, some, places)
        if self.padding_rows:
            table[list(self.padding_rows)] = small[_PADDING]
        return table

    def _rows_of(self, small: Mapping[str, Array], some: slice, places: NDArray[np.int64] | None) -> Array:
        """Some of the rows that are no padding; ``places`` is the permutation of ``hashed``."""
        if places is not None:
            place = places[some]
            product: Array = small["remainder"][place % self.divider] * small["quotient"][place // self.divider]
            return product
        if self.encoding == "factors":
            left, right = small["left"][some].astype(np.float64), small["right"].astype(np.float64)
            found = np.zeros((len(left), self.columns))
            for column, row in zip(left.T, right):  # no BLAS, whose order of sums differs between machines
                found += column[:, None] * row
            return found
        assert self.codes is not None, "checked"
        picked = self.codes.reshape(self.counted, self.subspaces)[some]
        groups = column_groups(self.columns, self.subspaces)
        pieces = [small["values"][picked[:, g], first:last] for g, (first, last) in enumerate(groups)]
        return np.concatenate(pieces, axis=1)

    def csr(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
        """The decoded table as compressed sparse rows, as :meth:`EncodedTensor.csr` gives others."""
        return encode(self.decode()).csr()

    def stored_by(self, encode_table: Callable[[Array], EncodedTensor]) -> TableForm:
        """The same form with its smaller tables encoded anew; padding rows stay exact.

        Args:
            encode_table: rounds a table, for example to int8.
        """
        tables = {
            name: table if name == _PADDING else encode_table(table.decode()) for name, table in self.tables.items()
        }
        return replace(self, tables=tables)


StoredTensor = Union[EncodedTensor, TableForm]


def read_tensor(description: Fields, parts: Mapping[str, Array]) -> StoredTensor:
    """A tensor of an artifact, in a mask's encoding or in a form.

    Raises:
        ArtifactError: a field is malformed, or description and parts contradict each other.
    """
    encoding = description.text("encoding", [*ENCODINGS, *FORMS])
    kind: type[StoredTensor] = TableForm if encoding in FORMS else EncodedTensor
    return kind.from_description(description, parts)


def column_groups(columns: int, groups: int) -> list[tuple[int, int]]:
    """First column and the one behind the last of consecutive groups, whose widths differ by at most 1."""
    width, wider = divmod(columns, groups)
    ends = np.cumsum([width + 1] * wider + [width] * (groups - wider)).tolist()
    return list(zip([0, *ends], ends))


def permutation(count: int, seed: int) -> NDArray[np.int64]:
    """Where each of ``count`` rows is put before it is divided; numpy's frozen legacy stream, equal everywhere."""
    return np.random.RandomState(seed).permutation(count).astype(np.int64)


def _made(form: TableForm) -> TableForm:
    form._check()
    return form


def _tables(named: Mapping[str, Array], padding: Array | None) -> dict[str, EncodedTensor]:
    given = dict(named) if padding is None or not len(padding) else {**named, _PADDING: padding}
    return {name: encode(np.ascontiguousarray(table)) for name, table in given.items()}


def factors(left: Array, right: Array, padding_rows: tuple[int, ...] = (), padding: Array | None = None) -> TableForm:
    """The form ``factors``.

    Args:
        left: ``[n, r]``, a row for each that is no padding.
        right: ``[r, d]``.
        padding_rows: rows of the table that are padding.
        padding: their values, ``[len(padding_rows), d]``.
    """
    shape = (len(left) + len(padding_rows), right.shape[1])
    return _made(TableForm(shape, "factors", _tables({"left": left, "right": right}, padding), padding_rows))


def codes(picked: Array, values: Array, padding_rows: tuple[int, ...] = (), padding: Array | None = None) -> TableForm:
    """The form ``codes``.

    Args:
        picked: uint8 ``[n, m]``.
        values: the codebooks, ``[k, d]``; columns as :func:`column_groups` divides them.
        padding_rows, padding: as for :func:`factors`.
    """
    shape = (len(picked) + len(padding_rows), values.shape[1])
    tables = _tables({"values": values}, padding)
    return _made(TableForm(shape, "codes", tables, padding_rows, np.ascontiguousarray(picked).reshape(-1)))


def hashed(
    remainder: Array,
    quotient: Array,
    rows: int,
    seed: int,
    padding_rows: tuple[int, ...] = (),
    padding: Array | None = None,
) -> TableForm:
    """The form ``hashed``; the divider is the length of ``remainder``.

    Args:
        remainder: ``[c, d]``.
        quotient: ``[ceil(n / c), d]``.
        rows: ``n``.
        seed: of the permutation.
        padding_rows, padding: as for :func:`factors`.
    """
    tables = _tables({"remainder": remainder, "quotient": quotient}, padding)
    shape = (rows + len(padding_rows), remainder.shape[1])
    return _made(TableForm(shape, "hashed", tables, padding_rows, divider=len(remainder), seed=seed))


# ---- a file of them --------------------------------------------------------------------------------------------------


def forms_to_bytes(forms: Mapping[str, TableForm]) -> bytes:
    """A safetensors file of forms by the names of their tables; its metadata describes them."""
    arrays = {f"{name}/{part}": array for name, form in forms.items() for part, array in form.parts.items()}
    document = json.dumps({name: form.describe() for name, form in forms.items()}, sort_keys=True)
    return save_safetensors(arrays, metadata={"forms": document})


def forms_from_bytes(data: bytes, path: Path) -> dict[str, TableForm]:
    """Undo :func:`forms_to_bytes`; ``path`` is for messages.

    Raises:
        ArtifactError: the file is damaged.
    """
    arrays = load_arrays(data, path)
    header = Fields(parse(data[8 : 8 + int.from_bytes(data[:8], "little")].strip(), path), path)
    text = header.inner("__metadata__").text("forms")
    described = Fields(parse(text.encode(), path), path)
    forms = {}
    for name in described:
        own = [key for key in arrays if key.rpartition("/")[0] == name]
        forms[name] = TableForm.from_description(
            described.inner(name), {key.rpartition("/")[2]: arrays.pop(key) for key in own}
        )
    if arrays:
        raise ArtifactError(f"{path} holds {min(arrays)}, of which its metadata does not speak")
    return forms
