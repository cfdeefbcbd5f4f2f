"""Which pairs of keys and values are used: arrays in place of RecBole's Python sets, asked for a batch at once."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from recbole_prune.sparse.ascending import ascending
from recbole_prune.sparse.compiling import available, pays

# multiplicative hashing (Knuth, TAOCP 3, 6.4): 2**64 over the golden ratio and over the silver ratio, made odd
_HASHES = np.uint64(0x9E3779B97F4A7C15), np.uint64(0x6A09E667F3BCC909)
# what a compiled loop saves for each pair
_SECONDS_TO_ASK = 5e-8


class UsedIds:
    """The values each key has used, in place of RecBole's numpy array of one Python set per key.

    A pair is the code ``key * values + value``; the codes are stored once, sorted: 8 bytes per pair. A test looks into
    a table of bits (1 to 2 bytes per pair, made at the first test): those of all pairs where there are no more of them,
    else hashed ones, and searches only where the bit is set.

    Args:
        keys, values: integer arrays of equal length, the used pairs; repeated ones count once.
        key_count, value_count: keys are in ``[0, key_count)``, values in ``[0, value_count)``.
    """

    def __init__(self, keys: np.ndarray, values: np.ndarray, key_count: int, value_count: int) -> None:
        self.key_count, self.value_count = key_count, value_count
        self.codes = ascending(keys.astype(np.int64) * value_count + values)
        self._offsets: np.ndarray | None = None
        self._bits = np.zeros(0, np.uint8)  # made when they are needed
        self._shift = np.uint64(0)  # of the hashes; 0 where there are none

    @classmethod
    def from_sets(cls, sets: NDArray[np.object_], value_count: int) -> UsedIds:
        """The same content as an array of sets, index = key."""
        keys = np.repeat(np.arange(len(sets)), [len(used) for used in sets])
        values = np.fromiter((value for used in sets for value in used), dtype=np.int64, count=len(keys))
        return cls(keys, values, len(sets), value_count)

    def without(self, other: UsedIds) -> UsedIds:
        """The pairs that are not in another one of as many keys and values."""
        nothing = np.empty(0, dtype=np.int64)
        kept = UsedIds(nothing, nothing, self.key_count, self.value_count)
        kept.codes = self.codes[~np.isin(self.codes, other.codes, assume_unique=True)]
        return kept

    def __len__(self) -> int:
        return self.key_count

    @overload
    def __getitem__(self, key: None) -> UsedIds: ...

    @overload
    def __getitem__(self, key: list[int] | NDArray[np.integer[Any]]) -> NDArray[np.object_]: ...

    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> set[int]: ...

    def __getitem__(
        self, key: int | np.integer[Any] | list[int] | NDArray[np.integer[Any]] | None
    ) -> UsedIds | NDArray[np.object_] | set[int]:
        """The set of one key; an object array of sets for an array of keys; itself for None (RecBole's first user)."""
        if key is None:
            return self
        if isinstance(key, (list, np.ndarray)):
            sets = np.empty(len(key), dtype=object)
            sets[:] = [self[one] for one in key]
            return sets
        return set(self.values_of(int(key)).tolist())

    def values_of(self, key: int) -> np.ndarray:
        """The values of one key, ascending."""
        if not 0 <= key < self.key_count:
            raise IndexError(f"key {key} is out of range for {self.key_count} keys")
        return self.codes[self.offsets[key] : self.offsets[key + 1]] - key * self.value_count

    @property
    def offsets(self) -> np.ndarray:
        """Where each key's codes begin, and the end, shape ``(key_count + 1,)``."""
        if self._offsets is None:
            self._offsets = np.searchsorted(self.codes, np.arange(self.key_count + 1) * np.int64(self.value_count))
        return self._offsets

    def contains(self, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Whether each pair is used, a boolean array; a value of -1 is used by nobody.

        Raises:
            IndexError: a key or a value is out of range.
        """
        found = np.zeros(len(keys), dtype=bool)
        if not len(keys) or not len(self.codes):
            return found
        if not len(self._bits):
            self._bits = self._make_bits()
        ask = self._ask_by_loop if pays(_SECONDS_TO_ASK * len(keys)) and available() else self._ask
        if not ask(keys, values, found):
            raise IndexError(
                f"a key or a value is out of range for {self.key_count} keys and {self.value_count} values"
            )
        return found

    def _ask_by_loop(self, keys: np.ndarray, values: np.ndarray, found: np.ndarray) -> bool:
        """As :meth:`_ask`, in a twentieth of the time."""
        from recbole_prune.data.used_ids_kernel import contains

        counts = self.key_count, self.value_count
        with np.errstate(over="ignore"):  # NUMBA_DISABLE_JIT has Python multiply the hashes
            in_range: bool = contains(keys, values, counts, self.codes, self._bits, self._shift, _HASHES, found)
        return in_range

    def _ask(self, keys: np.ndarray, values: np.ndarray, found: np.ndarray) -> bool:
        """Fill in for each pair whether it is used; returns whether all are in range, else there is nothing."""
        # negative keys are huge without their sign
        if keys.view(np.uint64).max() >= self.key_count or values.max() >= self.value_count:
            return False
        codes = keys * np.int64(self.value_count) + values
        if not self._shift:
            found[:] = (self._bit(codes) != 0) & (values >= 0)
            return True
        maybe = self._candidates(codes)
        codes = codes[maybe]
        places = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        found[maybe] = (self.codes[places] == codes) & (values[maybe] >= 0)
        return True

    def _make_bits(self) -> np.ndarray:
        pairs, exponent = self.key_count * self.value_count, max(int(8 * len(self.codes) - 1).bit_length(), 3)
        if pairs <= 1 << exponent:
            table = np.zeros(pairs, dtype=bool)
            table[self.codes] = True
        else:
            self._shift = np.uint64(64 - exponent)
            table = np.zeros(1 << exponent, dtype=bool)
            for factor in _HASHES:
                table[self._slots(self.codes, factor)] = True
        return np.packbits(table, bitorder="little")

    def _candidates(self, codes: np.ndarray) -> np.ndarray:
        """Places of the codes whose two bits are set: every present one, and 1 absent one in 25 to 75."""
        first = np.flatnonzero(self._bit(self._slots(codes, _HASHES[0])))
        both: np.ndarray = first[np.flatnonzero(self._bit(self._slots(codes[first], _HASHES[1])))]
        return both

    def _slots(self, codes: np.ndarray, factor: np.uint64) -> np.ndarray:
        return ((codes.view(np.uint64) * factor) >> self._shift).view(np.int64)

    def _bit(self, slots: np.ndarray) -> np.ndarray:
        bits: np.ndarray = (self._bits[slots >> 3] >> (slots & 7).astype(np.uint8)) & np.uint8(1)
        return bits
