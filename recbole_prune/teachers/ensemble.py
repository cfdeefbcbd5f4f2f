"""Several teachers as one: what they rank together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recbole_prune.disk.seals import digest_of
from recbole_prune.errors import ConfigError
from recbole_prune.teachers.base import Basics, Rows, Teacher, same_draws
from recbole_prune.teachers.ranked_lists import Ranked, best_of_sums

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction

    from recbole_prune.teachers.store import ListStore

# a rank counts exp(-rank / 10), which is below 5e-5 behind the first 100
DECAY, CUT = 10.0, 100


def consensus(lists: Sequence[np.ndarray], length: int, cut: int = CUT) -> Ranked:
    """What several lists rank highest together: an entry counts exp(-rank / 10) in each, with ranks from 0.

    Args:
        lists: ids ``[rows, *]`` of each, best first, -1 behind the end; rows of an array stand for the same key in all.
        length: how many to keep.
        cut: how much of each list counts.

    Returns:
        (ids int32, sums float32), each ``[rows, length]``, best first, lower ids first among equal sums; -1 and 0
        behind the end. The order of the lists makes no difference, not to the last bit.

    Raises:
        ValueError: the lists are not of the same keys, having different numbers of rows.
    """
    parts = [part[:, :cut] for part in lists]
    if any(len(part) != len(parts[0]) for part in parts):
        raise ValueError(f"lists of {', '.join(str(len(part)) for part in parts)} rows have no consensus")
    ranks = np.concatenate([np.arange(part.shape[1]) for part in parts])
    order = ranks.argsort(kind="stable")  # sums of floats depend on their order
    counts = torch.from_numpy(np.exp(-ranks[order] / DECAY))

    def entries(some: slice) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.from_numpy(np.concatenate([part[some] for part in parts], axis=1)[:, order].astype(np.int64))
        return ids, counts.expand(ids.shape)

    return best_of_sums(entries, len(parts[0]), len(ranks), length, nothing=-1)


class Ensemble(Teacher):
    """Several teachers of any kinds, which teach what they rank together (:func:`consensus`).

    Args:
        members: opened for the same student.
        store: keeps what they rank together.

    Attributes:
        members: the teachers.
    """

    without_vectors = "have no vectors in common to copy: take a method that learns from rankings"
    without_logits = "have no logits in common to copy: take a method that learns from rankings"
    without_features = "have no layers in common to copy: take a method that learns from rankings"

    def __init__(self, members: Sequence[Teacher], store: ListStore) -> None:
        first = members[0]
        super().__init__(Basics(_identity([member.identity for member in members]), first.pupils, first.length, store))
        self._members = tuple(members)

    @property
    def members(self) -> tuple[Teacher, ...]:
        """The teachers."""
        return self._members

    def refuse(self, reason: str) -> ConfigError:
        """The error that names the teachers."""
        return ConfigError(f"the teachers {self.identity['path']} {reason}")

    def rank_items(self) -> Ranked:
        """The consensus of what each ranks first for a user."""
        return consensus([member.items_of_users for member in self.members], self.length)

    def rank_users(self) -> Ranked:
        """The consensus of what each ranks first for an item."""
        return consensus([member.users_of_items for member in self.members], self.length)

    def rank_rows(self, batch: Interaction) -> Ranked:
        """The consensus of what each ranks first for a row."""
        return consensus([member.rank_rows(batch)[0] for member in self.members], self.length)

    def rank_in_groups(self, rows: Rows, groups: Sequence[np.ndarray]) -> np.ndarray:
        """The consensus, group by group, of what each ranks first there: lists of unpopular groups are as long."""
        ranked = [member.rank_in_groups(rows, groups) for member in self.members]
        return np.stack(
            [consensus([lists[:, group] for lists in ranked], self.length)[0] for group in range(len(groups))], axis=1
        )

    def rank_observed(self, length: int) -> np.ndarray:
        """The consensus of how each ranks what a user has in training; items that none ranks stand behind, by id.

        A rank is that among the user's training items: these are compared with each other alone (section 7 of the
        method has no formula for it). Ranks among all items have the same order for each teacher, but how much it
        counts would depend on how many other items stand between, and a teacher that fits a user badly would have no
        say.
        """
        cut = max(CUT, length)
        ranked = consensus([member.rank_observed(cut) for member in self.members], cut, cut)[0]
        return _completed(ranked, self.pupils.consumed.codes, self.pupils.item_count)[:, :length]

    def observed(self, count: int) -> np.ndarray:
        """The first training items of every user in the ensemble's order, int32 ``[U, count]``, -1 where it has fewer.

        They are computed once for a run folder.
        """
        with same_draws(self.pupils.seed):
            found: np.ndarray = self._store.get(
                f"{count}_observed_items_of_users", lambda: {"ids": self.rank_observed(count)}
            )["ids"]
        return found


def _completed(lists: np.ndarray, codes: np.ndarray, items: int) -> np.ndarray:
    """Lists, and behind them what they lack of each user's items (codes ``user * items + item``), as far as it fits."""
    users, places = np.nonzero(lists >= 0)
    lacking = np.setdiff1d(codes, users * np.int64(items) + lists[users, places])
    users, ids = np.divmod(lacking, items)
    places = (lists >= 0).sum(1)[users] + np.arange(len(users)) - np.searchsorted(users, users)
    kept = places < lists.shape[1]
    completed = lists.copy()
    completed[users[kept], places[kept]] = ids[kept]
    return completed


def _identity(members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the journal says of the teachers together; ``members`` is what it says of each."""
    sizes = [member.get("parameters") for member in members]
    return {
        "kind": "ensemble",
        "path": ", ".join(member["path"] for member in members),
        "sha256": digest_of({"members": [member.get("sha256") for member in members]}),
        "model": None,
        "parameters": None if None in sizes else sum(size for size in sizes if size is not None),
        "metrics": {},
        "members": list(members),
    }
