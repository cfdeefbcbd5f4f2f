"""DCD: the student's errors in ranking what the teacher ranks first, of users and of items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from recbole_prune.anatomy.logits import evaluated_factors, row_logits, user_logits
from recbole_prune.anatomy.shared_calls import evaluating
from recbole_prune.distillers.base import Distiller, Promises
from recbole_prune.distillers.batch_lists import listed_logits, listwise_loss, where_listed
from recbole_prune.distillers.draws import draw_weighted
from recbole_prune.distillers.losses.listwise import plackett_luce_of
from recbole_prune.distillers.losses.products import loops_take
from recbole_prune.distillers.ranking import ItemSideRanking
from recbole_prune.sparse.best_products import ranks_of_products
from recbole_prune.training.parts import State

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_prune.teachers.base import Teacher
    from recbole_prune.training.model import MaskAware

_PAIRS_AT_ONCE = 1 << 18
_LEAST_WEIGHT = 1e-5  # of what is not ranked wrongly, so that there are always enough to draw from

# the logits of keys [n] and what the teacher lists for them [n, k]; NaN where that is -1
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Drawn(NamedTuple):
    """Ids of what is ranked too low, and of what is ranked too high, ``[n, K]`` each; -1 where there are fewer."""

    under: np.ndarray
    over: np.ndarray


class DualCorrection(Distiller):
    """DCD of Lee and Kim, CIKM 2021: what the student ranks too low is to stand above what it ranks too high.

    Source: methods/more_methods.md, A3. The errors of the ranks are computed at the first batch of every third epoch,
    when the weights are those of a resume point; what follows from them is drawn batch by batch.
    """

    promises = Promises(lists=True, closed_users=True, refuses=ItemSideRanking.promises.refuses)

    def attach(self, model: MaskAware) -> None:
        """Begin without errors."""
        super().attach(model)
        self._third_party = self.settings.distill_parity == "kds"
        self._errors: dict[str, np.ndarray] = {}

    @classmethod
    def ask(cls, student: AbstractRecommender, teacher: Teacher) -> None:
        """For its rankings of items and of users."""
        ItemSideRanking.ask(student, teacher)

    def begin_epoch(self) -> None:
        """Forget errors that are old."""
        self._drawn: Drawn | None = None
        if self._third_party or self.epoch % self.settings.distill_refresh == 0:
            self._errors = {}

    def state(self) -> State:
        """The errors that are still in use: the weights that they follow from are gone."""
        return {**super().state(), "errors": self._errors}

    def restore(self, state: State, device: torch.device) -> None:
        """Undo :meth:`state`."""
        super().restore(state, device)
        self._errors = {side: np.asarray(errors) for side, errors in state["errors"].items()}

    def terms(self, model: MaskAware, interaction: Interaction) -> Mapping[str, tuple[float, torch.Tensor]]:
        """The listwise losses of the distinct users and of the distinct items of the batch."""
        if not self._errors:
            self._errors = self._errors_of(model)
        settings, users = self.settings, interaction[self.pupils.user_field].unique()
        under, over = self._of_users(users)
        of_users = listwise_loss(model, users, _beside(under, over, users.device), under.shape[1])
        found = {"dcd_users": (settings.distill_weight, of_users)}
        if not self._third_party:
            items = self.pupils.entities(interaction).items
            under, over = self._draw("items", items, settings.distill_item_interesting)
            logits = _of_items(model)(items, _beside(under, over, items.device))
            found["dcd_items"] = settings.distill_item_weight, plackett_luce_of(logits, under.shape[1]).sum()
        return found

    # ---- what is drawn -----------------------------------------------------------------------------------------------

    def _of_users(self, users: torch.Tensor) -> Drawn:
        """Of a batch; the third party's code draws for all users at the begin of an epoch."""
        if not self._third_party:
            return self._draw("users", users, self.settings.distill_interesting)
        if self._drawn is None:
            self._drawn = self._draw("users", torch.arange(self.pupils.user_count), self.settings.distill_interesting)
        places = users.cpu().numpy()
        return Drawn(*(table[places] for table in self._drawn))

    def _draw(self, side: str, keys: torch.Tensor, count: int) -> Drawn:
        places = keys.cpu().numpy()
        stream = np.random.default_rng([self.pupils.seed, self.epoch, 3 + (side == "items"), self._batch])
        ids = self._candidates(side)[places]
        sharpness, ordered = self.settings.distill_sharpness, not self._third_party
        return draw_corrections(ids, self._errors[side][places], count, sharpness, ordered, stream)

    def _candidates(self, side: str) -> np.ndarray:
        return self.teacher.items_of_users if side == "users" else self.teacher.users_of_items

    # ---- errors ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _errors_of(self, model: MaskAware) -> dict[str, np.ndarray]:
        """By the student as it is in evaluation; each module's mode is afterwards what it was."""
        with evaluating(model):
            if self._third_party:
                return {"users": self._errors_among_all(model)}
            score = {"users": _of_users(model), "items": _of_items(model)}
            return {side: self._errors_on(side, _within(score[side]), model) for side in score}

    def _errors_among_all(self, model: MaskAware) -> np.ndarray:
        """Of users, by the ranks among all items; in one loop where logits are products."""
        factors = evaluated_factors(model)
        if factors is None or not loops_take(*factors):
            return self._errors_on("users", lambda users, ids: _ranks_among_all(model, users, ids), model)
        lists, (users, items) = self._candidates("users"), (factor.numpy() for factor in factors)
        ranks = ranks_of_products(users, np.arange(1, len(lists)), items, lists, torch.get_num_threads())
        ranks[1:] -= np.arange(lists.shape[1], dtype=np.int32)
        return ranks

    def _errors_on(self, side: str, ranks: Score, model: MaskAware) -> np.ndarray:
        """For all keys but padding, some at a time, int32 ``[U, P]`` or ``[N, P]``."""
        candidates = self._candidates(side)
        found = np.zeros(candidates.shape, np.int32)
        width = self.pupils.item_count if self._third_party else candidates.shape[1]
        for keys in torch.arange(1, len(candidates)).split(max(1, _PAIRS_AT_ONCE // width)):
            ids = torch.from_numpy(candidates[keys]).to(model.device, torch.long)
            own = ranks(keys.to(model.device), ids).cpu().numpy()
            found[keys] = own - np.arange(candidates.shape[1])
        return found


def _beside(under: np.ndarray, over: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([under, over], axis=1)).to(device, torch.long)


def _of_users(model: MaskAware) -> Score:
    return lambda users, items: listed_logits(model, users, items)


def _of_items(model: MaskAware) -> Score:
    return lambda items, users: where_listed(lambda found: user_logits(model, items, found), users)


def _within(score: Score) -> Score:
    return lambda keys, ids: ranks_within(score(keys, ids))


def ranks_within(scores: torch.Tensor) -> torch.Tensor:
    """Which place each score of a row has among the row's, 0 for the largest ``[n, P]``.

    The first of equal scores stands first, NaN last.
    """
    order = scores.masked_fill(scores.isnan(), -torch.inf).sort(dim=1, descending=True, stable=True)[1]
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def ranks_among(scores: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """How many columns of a row, padding left out, score above each of some columns ``ids`` ``[n, P]``."""
    ordered = scores[:, 1:].contiguous().sort(1)[0]
    asked = scores.gather(1, ids.clamp(min=0)).contiguous()
    return ordered.shape[1] - torch.searchsorted(ordered, asked, right=True)


def _ranks_among_all(model: MaskAware, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    return ranks_among(row_logits(model, users).float(), items)


def error_weights(errors: np.ndarray, sharpness: float) -> np.ndarray:
    """``tanh(max(e / T, 0))``, but at least 1e-5: with which weights what is ranked by ``e`` too low is drawn."""
    weights: np.ndarray = np.maximum(np.tanh(np.maximum(errors / sharpness, 0)), _LEAST_WEIGHT)
    return weights


def draw_corrections(
    ids: np.ndarray, errors: np.ndarray, count: int, sharpness: float, ordered: bool, stream: np.random.Generator
) -> Drawn:
    """Draw what is ranked too low and what is ranked too high; nothing for a row in which nothing is too low.

    Args:
        ids: what the teacher ranks first, ``[n, P]``, best first, -1 behind the end of a list.
        errors: how many ranks lower the student ranks each, ``[n, P]``.
        count: how many of each to draw.
        sharpness: the ``T`` of the paper.
        ordered: give what is too low in the teacher's order, not in that of the draw.
        stream: random numbers.
    """
    listed = ids >= 0
    drawable = listed & (listed & (errors > 0)).any(1, keepdims=True)
    largest = int(np.abs(errors).max(initial=0))
    by_error = np.log(error_weights(np.arange(-largest, largest + 1), sharpness)).astype(np.float32)
    found = []
    for signed in (errors, -errors):
        log_weights = np.where(drawable, by_error[signed + largest], np.float32(-np.inf))
        places = draw_weighted(log_weights, count, stream)
        if ordered:
            last = ids.shape[1]
            places = np.sort(np.where(places < 0, last, places), axis=1)
            places = np.where(places < last, places, -1)
        found.append(np.where(places < 0, -1, np.take_along_axis(ids, places.clip(min=0), axis=1)))
    return Drawn(*found)
