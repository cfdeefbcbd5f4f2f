"""Ranked lists of any model as a teacher: a text file with a line for each user."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from logging import getLogger
from typing import NamedTuple

import numpy as np
import torch

from recbole_prune.errors import ConfigError
from recbole_prune.teachers.base import Basics, Rows, Teacher
from recbole_prune.teachers.ranked_lists import Ranked

_MOST_UNKNOWN = 0.1
_LARGEST = float(np.finfo(np.float32).max)


class Line(NamedTuple):
    """A user's list in a file.

    Attributes:
        number: of the line, from 1.
        user: token.
        items: tokens, best first.
        scores: of the items; None where there are none.
    """

    number: int
    user: str
    items: list[str]
    scores: list[float] | None


def read_lists(data: bytes, suffix: str, place: str) -> list[Line]:
    """The lines of a file of ranked lists.

    Args:
        data: the file.
        suffix: ``.tsv`` or ``.jsonl``.
        place: the file, for messages.

    Raises:
        ConfigError: a line is malformed, a user has two lists or no items, or an item stands twice in a list.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{place} line {wrong} is not valid UTF-8: {error.reason}") from error
    read = _read_tsv if suffix == ".tsv" else _read_json
    lines: list[Line] = []
    first: dict[str, int] = {}
    for number, written in enumerate(text.split("\n"), 1):
        written = written.rstrip("\r")
        if not written:
            continue
        line = read(written, number, f"{place} line {number}")
        if not line.items:
            raise ConfigError(f"{place} line {number}: the list of user {line.user!r} is empty; leave the line out")
        if line.user in first:
            raise ConfigError(
                f"{place} line {number}: user {line.user!r} has a list already, in line {first[line.user]}"
            )
        if len(set(line.items)) < len(line.items):
            twice = next(item for rank, item in enumerate(line.items) if item in line.items[:rank])
            raise ConfigError(f"{place} line {number}: item {twice!r} stands twice in the list of user {line.user!r}")
        first[line.user] = number
        lines.append(line)
    if not lines:
        raise ConfigError(f"{place} holds no lists")
    return lines


def _read_tsv(written: str, number: int, place: str) -> Line:
    user, *items = written.split("\t")
    if not user or not all(items):
        raise ConfigError(f"{place} is malformed: a user's token and those of its items, with one tab between each two")
    return Line(number, user, items, None)


def _read_json(written: str, number: int, place: str) -> Line:
    try:
        record = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is malformed: it is not valid JSON ({error})") from error
    if not isinstance(record, dict) or not {"user", "items"} <= set(record) <= {"user", "items", "scores"}:
        raise ConfigError(f'{place} is malformed: it must be an object with "user", "items" and, optionally, "scores"')
    user, items, scores = record["user"], record["items"], record.get("scores")
    if not _is_token(user) or not isinstance(items, list) or not all(map(_is_token, items)):
        raise ConfigError(f"{place} is malformed: user and items must be tokens, as text or as whole numbers")
    if scores is not None:
        _check_scores(scores, len(items), place)
    return Line(number, str(user), list(map(str, items)), scores)


def _is_token(value: object) -> bool:
    return (isinstance(value, str) and value != "") or (isinstance(value, int) and not isinstance(value, bool))


def _check_scores(scores: object, count: int, place: str) -> None:
    if not isinstance(scores, list) or len(scores) != count:
        raise ConfigError(f"{place} is malformed: scores must be a list with a number for each of the {count} items")
    wrong = [score for score in scores if not _is_score(score)]
    if wrong:
        raise ConfigError(f"{place} is malformed: scores must be finite numbers, but one is {wrong[0]!r}")
    if any(later > earlier for earlier, later in zip(scores, scores[1:])):
        raise ConfigError(f"{place} is malformed: items must stand best first, but a later one has a higher score")


def _is_score(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


class ListTeacher(Teacher):
    """Ranked lists; it teaches rankings only.

    Args:
        lines: of the file.
        basics: as for :class:`Teacher`.

    Raises:
        ConfigError: more than a tenth of its users, or of its items, are unknown to the student.
    """

    without_vectors = "consists of ranked lists, which have no vectors: take a method that learns from rankings"
    without_logits = "consists of ranked lists, which have no scores of other pairs"

    def __init__(self, lines: list[Line], basics: Basics) -> None:
        super().__init__(basics)
        dataset = self.pupils.dataset
        self._users, self._items = (
            {token: number for number, token in enumerate(dataset.field2id_token[field].tolist()) if number}
            for field in (self.pupils.user_field, self.pupils.item_field)
        )
        self._lines = lines
        self._say_unknown("users", [line.user for line in lines], self._users)
        distinct = dict.fromkeys(item for line in lines for item in line.items)
        self._say_unknown("items", list(distinct), self._items)
        self.has_scores = all(line.scores is not None for line in lines)

    def _say_unknown(self, kind: str, tokens: list[str], known: dict[str, int]) -> None:
        unknown = [token for token in tokens if token not in known]
        if not unknown:
            return
        shown = ", ".join(map(repr, unknown[:3])) + (", ..." if len(unknown) > 3 else "")
        text = (
            f"{len(unknown)} of the {len(tokens)} {kind} in {self.identity['path']} are unknown to the student: {shown}"
        )
        if len(unknown) > _MOST_UNKNOWN * len(tokens):
            raise ConfigError(f"{text}; at most {_MOST_UNKNOWN:.0%} may be: are these lists of this dataset?")
        getLogger("recbole_prune").warning(f"{text}; they are left out")

    @property
    def scores(self) -> np.ndarray:
        """Those in the file."""
        self.require_scores()
        return super().scores

    def _pairs(self, observed: bool = False) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Id of a user, ids of its items that it has in training, or else that rankings have, their scores."""
        for line in self._lines:
            user = self._users.get(line.user)
            if user is None:
                continue
            ids = np.array([self._items.get(item, -1) for item in line.items], np.int64)
            scores = np.array(line.scores if self.has_scores else np.zeros(len(ids)), np.float32)
            keys = np.full(len(ids), user)
            wanted = self.pupils.consumed.contains(keys, ids) if observed else ~self.pupils.unranked.contains(keys, ids)
            kept = (ids > 0) & wanted
            yield user, ids[kept], scores[kept]

    def rank_items(self) -> Ranked:
        """The lists, without what rankings leave out."""
        shape = self.pupils.user_count, self.length
        ids, found = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
        for user, items, scores in self._pairs():
            count = min(len(items), self.length)
            ids[user, :count], found[user, :count] = items[:count], scores[:count]
        without = int((ids[1:, 0] < 0).sum())
        if without == self.pupils.user_count - 1:
            raise self.refuse("has no list with an item that its user has not in training already")
        if without:
            getLogger("recbole_prune").warning(
                f"{without} of {self.pupils.user_count - 1} users have no list in {self.identity['path']}"
            )
        return ids, found

    def rank_observed(self, length: int) -> np.ndarray:
        """Those that stand in the lists."""
        ids = np.full((self.pupils.user_count, length), -1, np.int32)
        for user, items, _ in self._pairs(observed=True):
            ids[user, : min(len(items), length)] = items[:length]
        return ids

    def rank_users(self) -> Ranked:
        """The users whose lists have an item: by its score, or by its rank where there are no scores."""
        users, items, keys = [], [], []
        for user, listed, scores in self._pairs():
            users.append(np.full(len(listed), user))
            items.append(listed)
            keys.append(-scores if self.has_scores else np.arange(len(listed), dtype=np.float32))
        of, item, key = (np.concatenate(parts) for parts in (users, items, keys))
        order = np.lexsort((of, key, item))
        of, item, key = of[order], item[order], key[order]
        place = np.arange(len(item)) - np.searchsorted(item, item)
        kept = place < self.length
        shape = self.pupils.item_count, self.length
        ids, found = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
        ids[item[kept], place[kept]], found[item[kept], place[kept]] = of[kept], -key[kept]
        return ids, found

    def offer(self, rows: Rows, count: int, stream: np.random.Generator) -> np.ndarray:
        """Items drawn from the lists of users."""
        lists = self.items_of_users[self._users_in(rows)]
        lengths = (lists >= 0).sum(1, keepdims=True)
        places = (stream.random((len(lists), count)) * lengths).astype(np.int64)
        offered: np.ndarray = np.take_along_axis(lists, places, axis=1)  # -1 begins an empty list
        return offered

    def pair_logits(self, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        """The scores in the lists; NaN for what is in none."""
        codes, scores = self._coded
        users = self._users_in(rows).astype(np.int64)
        asked = users[:, None] * self.pupils.item_count + items.cpu().numpy()
        places = np.searchsorted(codes, asked).clip(max=len(codes) - 1)
        found = np.where((codes[places] == asked) & (items.cpu().numpy() >= 0), scores[places], np.float32(np.nan))
        return torch.from_numpy(found).to(items.device)

    @cached_property
    def _coded(self) -> tuple[np.ndarray, np.ndarray]:
        """The listed pairs as codes ``user * items + item``, ascending, and their scores."""
        users, places = np.nonzero(self.items_of_users >= 0)
        codes = users * np.int64(self.pupils.item_count) + self.items_of_users[users, places]
        order = np.argsort(codes)
        return codes[order], self.scores[users, places][order]

    def _users_in(self, rows: Rows) -> np.ndarray:
        users: np.ndarray = (rows if isinstance(rows, torch.Tensor) else rows[self.pupils.user_field]).cpu().numpy()
        return users
