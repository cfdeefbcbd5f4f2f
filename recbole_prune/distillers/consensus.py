"""ConCF: a model and heads of other objectives learn from what they agree on, without a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from logging import getLogger
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from recbole_prune.anatomy.logits import row_logits
from recbole_prune.anatomy.shared_calls import evaluating
from recbole_prune.anatomy.shared_parts import own_objective, shared_parts, sources_of
from recbole_prune.anatomy.vectors import Vectors, shared_propagation
from recbole_prune.distillers.base import Distiller, Promises, Terms
from recbole_prune.distillers.batch_lists import listed_logits
from recbole_prune.distillers.consensus_lists import Consensus, Decay, Lists
from recbole_prune.distillers.heads import HEADS, ITEM_MULTINOMIAL, Head, Scores, Sharing, clamped
from recbole_prune.distillers.losses.balance import Balance, pull_of
from recbole_prune.distillers.losses.listwise import plackett_luce
from recbole_prune.distillers.pairs import pairs_of
from recbole_prune.distillers.student_lists import best_in_training
from recbole_prune.errors import ConfigError
from recbole_prune.sparse.distinct import distinct
from recbole_prune.teachers.ranked_lists import Score
from recbole_prune.training.parts import State, Training

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_prune.config.settings import Settings
    from recbole_prune.masking.masks import MaskSet
    from recbole_prune.teachers.base import Teacher
    from recbole_prune.teachers.pupils import Pupils
    from recbole_prune.training.model import MaskAware

_USERS_AT_ONCE = 1 << 12
_OWN = "own"  # the model itself, the target head


class ConsensusLearning(Distiller):
    """ConCF of Kang et al., WWW 2022: consensus of heterogeneous objectives (methods/distillation_ranking.md 6).

    The target head is the model itself: its own loss, its own scores. The other heads read what the model shares with
    them, its vectors or its tables, and are dropped after the training.
    """

    promises = Promises(
        teacher=False,
        lists=True,
        parts=True,
        closed_users=True,
        refuses=(r"no list", r"are histories and no closed set", r"no vectors|has vectors of items only"),
    )

    def __init__(self, settings: Settings, teacher: Teacher | None, pupils: Pupils) -> None:
        super().__init__(settings, teacher, pupils)
        self._official = settings.distill_parity == "official"
        self._balance: Balance | None = None
        decay = Decay(settings.distill_sharpness, settings.distill_steadiness)
        self._consensus = Consensus(settings.distill_window, decay, self._official)

    @classmethod
    def check(cls, settings: Settings, pupils: Pupils, student: AbstractRecommender) -> None:
        """Refuse a head that the model has anyway, and data with too few items for lists."""
        own, items, kind = own_objective(student), pupils.item_count - 1, type(student).__name__
        upper = settings.distill_interesting
        if own in settings.distill_heads:
            others = ", ".join(name for name in HEADS if name != own)
            raise ConfigError(
                f"distill_heads={settings.distill_heads} is not allowed: {own} is the objective of {kind} itself, "
                f"which is a head in any case; the others are {others}"
            )
        if settings.distill_weight and upper >= min(items, settings.distill_list_length):
            raise ConfigError(
                f"distill_interesting={upper} is not allowed: a list has the best "
                f"distill_list_length={settings.distill_list_length} of {items} items, and some must lie below the "
                "interesting ones"
            )

    # ---- what is built -----------------------------------------------------------------------------------------------

    def helpers(self, model: MaskAware) -> nn.ModuleDict:
        """The other heads."""
        parts = self._parts(model)
        counts = self.pupils.user_count, self.pupils.item_count
        one_space = parts.shared_space
        return nn.ModuleDict({name: HEADS[name](parts.widths(model), one_space, counts) for name in self._names(model)})

    def attach(self, model: MaskAware) -> None:
        """Build the heads, and the balance of all."""
        super().attach(model)
        rate = float(self.pupils.dataset.config["learning_rate"])
        heads = 1 + len(self._helpers)
        self._balance = Balance(heads, rate, self.settings.distill_balance_power, torch.device(model.device))

    def _names(self, model: AbstractRecommender) -> list[str]:
        """Those that were asked for, or all but the model's own objective."""
        own = own_objective(model)
        return self.settings.distill_heads or [name for name in HEADS if name != own]

    def _parts(self, model: AbstractRecommender) -> Vectors:
        found = shared_parts(model)
        assert found is not None, "the student was checked before any training"
        return found

    @property
    def _heads(self) -> dict[str, Head]:
        return {name: head for name, head in self._helpers.items() if isinstance(head, Head)}

    def begin(self, trainer: Training) -> None:
        """Say when the consensus begins, if it does."""
        super().begin(trainer)
        first = trainer.epoch - self._epochs_taught + self.settings.distill_refresh * self.settings.distill_window
        if self.settings.distill_weight and first + 1 >= trainer.epochs:
            getLogger("recbole_prune").warning(
                f"the heads' consensus would teach from epoch {first + 1} on, and epochs={trainer.epochs}: the heads "
                "train, their consensus does not; lower distill_refresh or distill_window"
            )

    # ---- a batch -----------------------------------------------------------------------------------------------------

    def terms(self, model: MaskAware, interaction: Interaction) -> Terms:
        """The other heads' losses, and those of all heads on the consensus; sets the weight of the model's own."""
        settings, share, balance = self.settings, self.share_of_sum(interaction), self._balance
        assert balance is not None, "it is built before any training"
        shared, listed, places = self._share(model, interaction)
        scores = {
            name: head.scores(shared.user_ids, shared.user_vectors, shared.item_ids, shared.item_vectors)
            for name, head in self._heads.items()
        }
        losses = {name: head.loss(scores[name], shared) for name, head in self._heads.items()}
        consensus: dict[str, torch.Tensor] = {}
        if listed is not None:
            consensus = self._consensus_losses(listed_logits(model, shared.user_ids, listed), scores, listed, places)
        weights = balance.weights
        if settings.distill_head_weight:  # else there is nothing to balance
            scaled = {_OWN: _total(model.loss_in_work)}
            scaled.update({name: settings.distill_head_weight * share * loss for name, loss in losses.items()})
            added = {name: settings.distill_weight * share * loss for name, loss in consensus.items()}
            self._move_weights(balance, model, shared.user_ids, scaled, added)
            self.own_loss = weights[0]
        by_name = dict(zip((_OWN, *losses), weights))
        found: dict[str, tuple[float | torch.Tensor, torch.Tensor]] = {
            f"concf_{name}": (settings.distill_head_weight * by_name[name], loss) for name, loss in losses.items()
        }
        if consensus:
            agreed = [by_name[name].clamp(0.5, 2) * loss for name, loss in consensus.items()]
            found["concf_consensus"] = settings.distill_weight, torch.stack(agreed).sum()
        return found

    def _share(self, model: MaskAware, batch: Interaction) -> tuple[Sharing, torch.Tensor | None, torch.Tensor]:
        """What heads share of a batch; the consensus of its users, -1 behind the end, and the places of that."""
        pupils, parts = self.pupils, self._parts(model)
        stream = np.random.default_rng([pupils.seed, self.epoch, 3, self._batch])
        owners, positives, negatives = pairs_of(pupils, batch, stream)
        whole = pupils.item_field not in batch  # the very users that the model's own loss has asked about
        users = batch[pupils.user_field] if whole else batch[pupils.user_field].unique()
        listed, ids = self._listed(users), [positives, negatives]
        if listed is not None:
            ids.append(listed.clamp(min=1).flatten())
        items, places = distinct(torch.cat(ids), pupils.item_count)
        where = torch.zeros(pupils.user_count, dtype=torch.long, device=users.device)
        where[users] = torch.arange(len(users), device=users.device)
        vectors = parts.user_vectors(model, users), parts.item_vectors(model, items)
        count = len(positives)
        pairs = where[owners], places[:count], places[count : 2 * count]
        shared = Sharing(users, items, *vectors, *pairs, pupils.consumed, pupils.consumers)
        return shared, listed, places[2 * count :].reshape(len(users), -1)

    def _listed(self, users: torch.Tensor) -> torch.Tensor | None:
        """The consensus lists of users ``[b, length]``, -1 behind the end; None before it begins."""
        lists = self._consensus.lists
        if lists is None or not self.settings.distill_weight:
            return None
        ids = torch.from_numpy(lists[users.cpu().numpy()].astype(np.int64)).to(users.device)
        return ids.masked_fill(ids == 0, -1)

    def _consensus_losses(
        self, own: torch.Tensor, scores: Mapping[str, Scores], listed: torch.Tensor, places: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The listwise loss of every head but the item side's, the model's own logits of the lists first."""
        logits = {_OWN: own}
        for name, head in scores.items():
            if name != ITEM_MULTINOMIAL:
                logits[name] = head.of_lists(places).masked_fill(listed < 0, torch.nan)
        if self._official:
            bounded = {name for name in scores if HEADS[name].bounded} | {_OWN}
            logits = {name: clamped(found) if name in bounded else found for name, found in logits.items()}
        upper = self.settings.distill_interesting
        return {name: plackett_luce(found[:, :upper], found[:, upper:]).sum() for name, found in logits.items()}

    def _move_weights(
        self,
        balance: Balance,
        model: MaskAware,
        users: torch.Tensor,
        losses: Mapping[str, torch.Tensor],
        consensus: Mapping[str, torch.Tensor],
    ) -> None:
        """From the gradients of every head at what they share; the step of the model has none of this."""
        sources = sources_of(model, users)
        pulls = []
        for name, loss in losses.items():
            factors = Head.sides if name == _OWN else HEADS[name].sides
            sides = [pull_of(loss, consensus.get(name), *side) for side in zip(sources, factors)]
            pulls.append([pull for pull in sides if pull is not None])
        model.forget_recorded_gradients()
        heads = torch.stack([loss.detach() for loss in losses.values()])
        balance.step(heads, pulls, self._epochs_taught <= self.settings.distill_reference_epoch)

    # ---- after an epoch ----------------------------------------------------------------------------------------------

    def end_epoch(self, trainer: Training) -> None:
        """Every so many epochs, from the first on, have all heads rank."""
        more = trainer.epochs_done < trainer.epochs
        if more and self.settings.distill_weight and self._epochs_taught % self.settings.distill_refresh == 0:
            start = perf_counter()
            self._consensus.add(self._rankings(trainer.model))
            self.seconds += perf_counter() - start
        super().end_epoch(trainer)

    def _rankings(self, model: MaskAware) -> Sequence[Lists]:
        """Lists of all users, the model's own first: no dropout, no stream of the student moves, nothing is kept."""
        modes = evaluating(model), evaluating(self._helpers), shared_propagation(model)
        with torch.no_grad(), self._draws(self.epoch, self._batch), modes[0], modes[1], modes[2]:
            parts, device = self._parts(model), model.device
            ids = [torch.arange(count, device=device) for count in (self.pupils.user_count, self.pupils.item_count)]
            users = torch.cat([parts.user_vectors(model, some) for some in ids[0].split(_USERS_AT_ONCE)])
            items = parts.item_table(model)
            found = [self._lists(partial(row_logits, model), _OWN, device)]
            for name, head in self._heads.items():
                found.append(self._lists(head.scores(ids[0], users, ids[1], items).of_all, name, device))
            return found

    def _lists(self, score: Score, name: str, device: torch.device) -> Lists:
        pupils, length = self.pupils, self.settings.distill_list_length
        users = np.arange(1, pupils.user_count)
        what = f"items of users by the head {name}"
        best = best_in_training(score, pupils.consumed, length, what, device, users)
        # half the memory where ids are small
        return best.clip(min=0).astype(np.uint16 if pupils.item_count <= 1 << 16 else np.int32)

    # ---- what is kept ------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """The weights of the heads' losses, and the rankings of the last evaluations."""
        assert self._balance is not None
        return {**super().state(), "balance": self._balance.state(), "consensus": self._consensus.state()}

    def restore(self, state: State, device: torch.device) -> None:
        """Undo :meth:`state`."""
        super().restore(state, device)
        assert self._balance is not None, "attached before"
        self._balance.restore(state["balance"])
        self._consensus.restore(state["consensus"])

    def report(self, masks: MaskSet | None) -> dict[str, Any]:
        """The weights in the end, the model's own first; nothing of that is in the ticket."""
        names = (_OWN, *self._helpers)
        weights = [] if self._balance is None else [round(weight, 6) for weight in self._balance.weights.tolist()]
        return {**super().report(masks), "concf": {"heads": dict(zip(names, weights))}}


def _total(losses: torch.Tensor | tuple[torch.Tensor, ...] | None) -> torch.Tensor:
    assert losses is not None, "parts are asked while the model's loss is in work"
    several = losses if isinstance(losses, tuple) else (losses,)
    return torch.stack([loss.reshape(()) for loss in several]).sum()
