"""A student of HetComp whose teachers have lists and no models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recbole.data.dataloader.user_dataloader import UserDataLoader
from training_bench import Bench, MemoryFiles
from zoo import DATASET, config_for

from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.distillers import get_distiller
from recbole_prune.teachers.base import Basics, Teacher
from recbole_prune.teachers.ensemble import Ensemble
from recbole_prune.teachers.pupils import Pupils
from recbole_prune.teachers.store import ListStore

METHOD = "hetcomp"


class Told(Teacher):
    """A teacher that has nothing but lists: random ones of every user's unseen items.

    Args:
        basics: as for any teacher.
        count: of its states.
        random: random numbers.
    """

    def __init__(self, basics: Basics, count: int, random: np.random.Generator) -> None:
        super().__init__(basics)
        self.told = [self._lists(random) for _ in range(count)]

    def _lists(self, random: np.random.Generator) -> np.ndarray:
        pupils, items = self.pupils, np.arange(1, self.pupils.item_count)
        found = np.full((pupils.user_count, self.length), -1, np.int32)
        for user in range(1, pupils.user_count):
            ranked = random.permutation(np.setdiff1d(items, pupils.consumed.values_of(user)))[: self.length]
            found[user, : len(ranked)] = ranked
        return found

    @property
    def states(self) -> Sequence[np.ndarray]:
        return self.told

    def rank_items(self) -> Any:
        raise AssertionError("nobody asks")

    rank_users = rank_items

    def rank_observed(self, length: int) -> np.ndarray:
        """By id."""
        found = np.full((self.pupils.user_count, length), -1, np.int32)
        for user in range(1, len(found)):
            items = self.pupils.consumed.values_of(user)[:length]
            found[user, : len(items)] = items
        return found


class Lab:
    """A student that three teachers without models teach."""

    def __init__(self, data: Path, model: str = "BPR", states: tuple[int, ...] = (3, 1, 2), **changes: Any) -> None:
        lesson = {"distiller": METHOD, "distill_teacher_models": ["BPR", "LightGCN"], "distill_refresh": 1, **changes}
        lesson.setdefault("distill_threshold", 1.015)  # below 1 from the third comparison on
        self.bench = Bench(model, data, epochs=8, train_batch_size=1024, learning_rate=0.02, stopping_step=20)
        self.settings = PruneConfig(model, DATASET, config_dict={**config_for(model, data), **lesson}).settings
        whole_rows = isinstance(self.bench.train, UserDataLoader)
        self.pupils = Pupils(self.bench.train._dataset, of_rows=False, whole_rows=whole_rows)
        random, length = np.random.default_rng(1), self.settings.distill_list_length
        basics = Basics({"path": "somewhere"}, self.pupils, length, ListStore(None, [], length))
        self.members = [Told(basics, count, random) for count in states]
        self.ensemble = Ensemble(self.members, basics.store)

    def part(self) -> Any:
        """A new part, as every ticket gets one."""
        return get_distiller(METHOD)(self.settings, self.ensemble, self.pupils)

    def trainer(self, files: MemoryFiles | None = None, **session: Any) -> Any:
        """Of a new student."""
        model, part = self.bench.model(), self.part()
        part.attach(model)
        return self.bench.trainer(model, files, parts=(part,), **session)
