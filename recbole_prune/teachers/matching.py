"""Teacher and student on the same data: users and items by token, and the training interactions that must be equal."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Optional

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_prune.data.training_pairs import training_pairs
from recbole_prune.data.used_ids import UsedIds
from recbole_prune.errors import ConfigError

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

    from recbole_prune.teachers.pupils import Pupils

Ids = Optional[torch.Tensor]


class Matching:
    """The teacher's ids of what the student's ids stand for.

    Args:
        student: RecBole's training dataset of the student.
        teacher: that of the teacher.
        device: where ids are asked for.

    Attributes:
        users, items: the teacher's ids ``[U]`` and ``[N]`` of the student's; None where they are the same.
    """

    def __init__(self, student: Dataset, teacher: Dataset, device: torch.device) -> None:
        self.student, self.teacher, self.device = student, teacher, device
        self._maps: dict[str, Ids] = {}
        self.users = self._of_field(student.uid_field)
        self.items = self._of_field(student.iid_field)

    def rows(self, batch: Interaction) -> Interaction:
        """A batch of the student's as the teacher would have it; the same object where nothing differs."""
        found: dict[str, torch.Tensor] = {}
        for name, values in batch.interaction.items():
            field, renamed = self._names(name)
            ids = self._of_field(field)
            values = values if ids is None else ids[values.long()]
            if renamed.endswith(self._list_suffix) and values.dim() == 2:
                values = self._resized(values, batch)
            found[renamed] = values
        same = found.keys() == batch.interaction.keys() and all(found[name] is batch[name] for name in found)
        return batch if same else Interaction(found)

    @property
    def _list_suffix(self) -> str:
        suffix: str = self.teacher.config["LIST_SUFFIX"]
        return suffix

    def _names(self, name: str) -> tuple[str, str]:
        """The field that a column of the student's batches holds, and the teacher's name of the column."""
        mine, other = self.student.config, self.teacher.config
        if name == mine["ITEM_LIST_LENGTH_FIELD"]:
            return "", other["ITEM_LIST_LENGTH_FIELD"]
        field, before, after = name, "", ""
        known = self.student.field2id_token
        if name not in known and name.startswith(mine["NEG_PREFIX"]):
            field, before = name[len(mine["NEG_PREFIX"]) :], other["NEG_PREFIX"]
        elif name not in known and name.endswith(mine["LIST_SUFFIX"]):
            field, after = name[: -len(mine["LIST_SUFFIX"])], other["LIST_SUFFIX"]
        return field, f"{before}{self._theirs(field)}{after}"

    def _theirs(self, field: str) -> str:
        """The teacher's name of a field of the student's."""
        same: dict[str, str] = {
            self.student.uid_field: self.teacher.uid_field,
            self.student.iid_field: self.teacher.iid_field,
        }
        return same.get(field, field)

    def _of_field(self, field: str | None) -> Ids:
        """The teacher's ids of a field's tokens; None where they are the same or the field has none."""
        if field is None or field not in self.student.field2id_token:
            return None
        if field not in self._maps:
            theirs = self._theirs(field)
            known = self.teacher.field2id_token.get(theirs)
            self._maps[field] = None if known is None else self._map(field, known)
        return self._maps[field]

    def _map(self, field: str, known: np.ndarray) -> Ids:
        tokens = self.student.field2id_token[field]
        if len(tokens) == len(known) and (np.asarray(tokens[1:]) == np.asarray(known[1:])).all():
            return None
        numbers = {token: number for number, token in enumerate(known.tolist())}
        ids = [0, *(numbers.get(token, -1) for token in tokens.tolist()[1:])]
        if -1 in ids and field not in (self.student.uid_field, self.student.iid_field):
            raise ConfigError(
                f"the teacher does not know {ids.count(-1)} of the values of {field}, the first is "
                f"{tokens[ids.index(-1)]!r}"
            )
        return torch.tensor(ids, device=self.device)

    def _resized(self, histories: torch.Tensor, batch: Interaction) -> torch.Tensor:
        """Histories as wide as the teacher's: their last items, with padding behind."""
        width = int(self.teacher.config["MAX_ITEM_LIST_LENGTH"])
        if histories.shape[1] == width:
            return histories
        lengths = batch[self.student.config["ITEM_LIST_LENGTH_FIELD"]].to(histories.device)
        places = (lengths - width).clamp(min=0)[:, None] + torch.arange(width, device=histories.device)
        inside = places < lengths[:, None]
        kept: torch.Tensor = histories.gather(1, places.clamp(max=histories.shape[1] - 1)) * inside
        return kept


def require_same_data(pupils: Pupils, teacher: Dataset, whole: Dataset, matching: Matching) -> None:
    """Refuse a teacher of other data: tokens and training interactions must be the student's.

    What the teacher has only in its files of features, without any interaction, is no matter.

    Args:
        pupils: the student's data.
        teacher: RecBole's training dataset of the teacher.
        whole: RecBole's dataset of all its interactions.
        matching: of the two.

    Raises:
        ConfigError: all that differs, in one message.
    """
    student = pupils.dataset
    sides = zip(("users", "items"), (student.uid_field, student.iid_field), (whole.uid_field, whole.iid_field))
    used = training_pairs(whole) if whole.uid_field and whole.iid_field else (None, None)
    differing = []
    for (kind, mine, theirs), ids in zip(sides, used):
        tokens, known = (list(_tokens(dataset, field)) for dataset, field in ((student, mine), (whole, theirs)))
        differing += _only_one_has("student", kind, tokens, set(known))
        with_rows = known if ids is None else [known[number - 1] for number in np.unique(ids) if number]
        differing += _only_one_has("teacher", kind, with_rows, set(tokens))
    if not differing and student.uid_field and student.iid_field:
        differing = _other_interactions(pupils, teacher, matching)
    if differing:
        of_graphs = hasattr(student, "item2entity") != hasattr(teacher, "item2entity")
        why = "; for a knowledge-aware model RecBole drops the items without an entity" if of_graphs else ""
        raise ConfigError(
            f"it was trained on other data, another split or another filter: {'; '.join(differing)}; teacher and "
            f"student need the same dataset, filters, split and seed{why}"
        )


def _tokens(dataset: Dataset, field: str | None) -> list[str]:
    tokens: list[str] = dataset.field2id_token[field].tolist()[1:] if field else []
    return tokens


def _only_one_has(owner: str, kind: str, tokens: list[str], others: set[str]) -> list[str]:
    missing = [token for token in tokens if token not in others]
    return [f"only the {owner} has {len(missing)} of its {len(tokens)} {kind}, first {missing[0]!r}"] if missing else []


def _other_interactions(pupils: Pupils, teacher: Dataset, matching: Matching) -> list[str]:
    """How many training interactions only one of the two has."""
    users, items = training_pairs(teacher)
    users = _back(matching.users, users, teacher.user_num)
    items = _back(matching.items, items, teacher.item_num)
    theirs = UsedIds(users, items, pupils.user_count, pupils.item_count).codes
    mine = pupils.consumed.codes
    counts = {
        "student": len(np.setdiff1d(mine, theirs, assume_unique=True)),
        "teacher": len(np.setdiff1d(theirs, mine, assume_unique=True)),
    }
    return [f"only the {owner} trains on {count} interactions" for owner, count in counts.items() if count]


def _back(ids: Ids, theirs: np.ndarray, count: int) -> np.ndarray:
    """The student's ids of some of the teacher's, which has so many; 0 for those that the student has not."""
    if ids is None:
        return theirs
    inverse = np.zeros(count, np.int64)
    inverse[ids.cpu().numpy()] = np.arange(len(ids))
    found: np.ndarray = inverse[theirs]
    return found


class LastStates:
    """Rows that a sequential teacher is asked about where the student knows users only: all their training items.

    ``user_ids`` that it is asked for are the teacher's.
    """

    def __init__(self, teacher: Dataset, device: torch.device) -> None:
        self.teacher, self.device = teacher, device

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The history of every user with its last target ``[users, width]``, and its length."""
        dataset, config = self.teacher, self.teacher.config
        rows = dataset.inter_feat
        lists, lengths, users, targets = (
            rows[name].numpy()
            for name in (
                dataset.iid_field + config["LIST_SUFFIX"],
                config["ITEM_LIST_LENGTH_FIELD"],
                dataset.uid_field,
                dataset.iid_field,
            )
        )
        width = lists.shape[1]
        last = np.lexsort((np.arange(len(users)), lengths, users))
        last = last[np.append(users[last][1:] != users[last][:-1], True)]  # the longest history of a user, the last one
        joined = np.concatenate([lists[last], np.zeros((len(last), 1), lists.dtype)], axis=1)
        joined[np.arange(len(last)), lengths[last]] = targets[last]
        full = lengths[last] == width
        joined[full, :-1] = joined[full, 1:]
        histories = np.zeros((dataset.user_num, width), np.int64)
        count = np.zeros(dataset.user_num, np.int64)
        histories[users[last]], count[users[last]] = joined[:, :width], np.minimum(lengths[last] + 1, width)
        return histories, count

    def known(self) -> np.ndarray:
        """The teacher's ids of the users that have a history."""
        return np.flatnonzero(self._arrays[1])

    def rows(self, user_ids: torch.Tensor) -> Interaction:
        """The rows of some users; those without a history get one item of padding."""
        histories, lengths = (torch.from_numpy(array[user_ids.cpu().numpy()]) for array in self._arrays)
        config = self.teacher.config
        return Interaction(
            {
                self.teacher.uid_field: user_ids.cpu(),
                self.teacher.iid_field + config["LIST_SUFFIX"]: histories,
                config["ITEM_LIST_LENGTH_FIELD"]: lengths.clamp(min=1),
            }
        ).to(self.device)
