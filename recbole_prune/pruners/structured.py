"""Removing whole units: embedding dimensions, neurons, channels, recurrent units, heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from recbole_prune.anatomy.losses import batch_losses
from recbole_prune.anatomy.units.groups import Anatomy, UnitGroup
from recbole_prune.anatomy.units.table import anatomy_of, is_inherited
from recbole_prune.data.batches import first_batches
from recbole_prune.data.random_streams import preserved_random_streams
from recbole_prune.errors import ConfigError, RecBoleError, in_one_line
from recbole_prune.masking import scores as entry_scores
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.schedule import kept_counts
from recbole_prune.masking.unit_masks import Units, all_units, masks_of, units_of
from recbole_prune.masking.unit_selection import group_scores, most_removed, of_kinds, select_units, units_removed
from recbole_prune.pruners.base import MaskPruner, Promises
from recbole_prune.run.ticket import Plan, Ticket
from recbole_prune.scoring.probe import Probe, Scores, disagreement

if TYPE_CHECKING:
    from recbole_prune.training.model import MaskAware

# of how many parts a schedule over units of any number is thought
_PARTS = 10**6
# batches whose gradients a Taylor score adds up
_TAYLOR_BATCHES = 10
_OUT_OF_SCOPE = ("in prune_exclude", "not in prune_include")


class StructuredPruning(MaskPruner):
    """Train, remove the units that matter least, rewind the rest, repeat; what is left is a smaller dense model.

    Scores and choice: methods/attention_distillation_pruning.md, section 5.2, after Torch-Pruning's group importance
    (Fang et al., CVPR 2023, arXiv 2301.12900). Rates and targets are shares of the units of each kind.
    """

    iterative = True
    promises = Promises(exact=False, refuses=("has no units", "has no .* units", "no unit more"))

    @cached_property
    def anatomy(self) -> Anatomy:
        """The groups of the model, of which masks may be zero on whole units."""
        return anatomy_of(self._model)

    @cached_property
    def _model(self) -> MaskAware:
        return self.experiment.workshop.build_model()

    @cached_property
    def groups(self) -> dict[str, list[UnitGroup]]:
        """The groups from which units may go, by kind: those that ``prune_units`` names and that can be taken out.

        Raises:
            ConfigError: the model has none, or none of a kind that was asked for.
        """
        model, asked = self.experiment.config["model"], self.settings.prune_units
        if not self.anatomy.groups:
            raise ConfigError(f"pruner={self.settings.pruner}: {model} has no units to remove: {self.anatomy.needs}")
        found = of_kinds(self.anatomy, asked)
        explicit = "prune_units" in self.settings.explicit
        if not explicit:
            found = {kind: [each for each in groups if not each.inexact] for kind, groups in found.items()}
        found = {kind: [each for each in groups if self._in_scope(each)] for kind, groups in found.items()}
        found = {kind: groups for kind, groups in found.items() if groups}
        missing = [kind for kind in asked if kind not in found]
        if not found or (explicit and missing):
            present = sorted({group.kind for group in self.anatomy})
            raise ConfigError(
                f"prune_units={','.join(asked)}: {model} has no {' or '.join(missing)} units to remove; "
                f"it has {', '.join(present)}"
            )
        return found

    def _in_scope(self, group: UnitGroup) -> bool:
        """Whether a group has targets, none of them left out by ``prune_include`` or ``prune_exclude``."""
        names = {place.tensor for place in group.places}
        left_out = {each.name for each in self.scope.exclusions if each.reason in _OUT_OF_SCOPE}
        return not names & left_out and any(target.name in names for target in self.scope)

    @cached_property
    def fractions(self) -> list[float]:
        """The share of units that is gone at each ticket, ticket 0 first."""
        settings = self.settings
        target = settings.prune_target_sparsity
        of_initial = settings.prune_rate_of == "initial"
        rounds = self.rounds()
        counts = kept_counts(_PARTS, rate=settings.prune_rate, rounds=rounds, target=target, of_initial=of_initial)
        return [1 - count / _PARTS for count in counts]

    def removed(self, number: int) -> dict[str, int]:
        """Units of each kind that are gone at a ticket: the schedule's share of them, or as many as can go."""
        return {kind: min(self._asked(kind)[number], self._most(kind)) for kind in self.groups}

    def _asked(self, kind: str) -> list[int]:
        """Units of a kind that the schedule removes at each ticket."""
        return units_removed(self.fractions, sum(group.count for group in self.groups[kind]))

    def _most(self, kind: str) -> int:
        return most_removed(self.groups[kind], self.settings.prune_max_ratio)

    def counts(self) -> list[int]:
        """Live entries of each ticket if every layer of a kind lost the same share of its units."""
        counts = [self.scope.prunable]
        for fraction in self.fractions[1:]:
            kept = all_units(self.anatomy)
            for group in (group for groups in self.groups.values() for group in groups):
                kept[group.name] = torch.arange(max(1, group.count - units_removed([fraction], group.count)[0]))
            counts.append(masks_of(self.anatomy, kept, self.scope, self._model).kept)
        return counts

    def check(self) -> None:
        """The model needs units, and every ticket has to remove one more without emptying a layer.

        Kinds that were not asked for by name go as far as they can, if another kind follows the schedule to its end.
        """
        short = [kind for kind in self.groups if self._asked(kind)[-1] > self._most(kind)]
        for kind in short:
            total = sum(group.count for group in self.groups[kind])
            said = (
                f"the schedule removes {self._asked(kind)[-1]} of {total} {kind} units, but only {self._most(kind)} "
                f"can go: every layer keeps one, and prune_max_ratio={self.settings.prune_max_ratio} is the largest "
                "share of a layer that goes"
            )
            if "prune_units" in self.settings.explicit or len(short) == len(self.groups):
                raise ConfigError(
                    f"{said}; lower the final sparsity ({self.fractions[-1]:g}) or leave {kind} out of prune_units"
                )
            self.experiment.logger.info(said)
        kept = all_units(self.anatomy)
        for number in range(1, len(self.fractions)):
            before, kept = kept, self._chosen(self.removed(number), self._any_scores(kept), kept)
            if all(len(kept[name]) == len(before[name]) for name in kept):
                total = sum(group.count for groups in self.groups.values() for group in groups)
                raise ConfigError(
                    f"ticket {number} would remove no unit more than ticket {number - 1}: there are {total} units; "
                    "set a higher prune_rate, fewer prune_rounds or another prune_round_to"
                )
        if is_inherited(self.experiment.config.model_class):
            self._try_out(masks_of(self.anatomy, kept, self.scope, self._model))

    def _try_out(self, masks: MaskSet) -> None:
        """Refuse a class of the user's own that does not score without units as with their weights at 0."""
        try:
            agrees = not disagreement(self._scores_without(masks, "auto"), self._scores_without(masks, "masked"))
        except RecBoleError:
            agrees = False
        if not agrees:
            raise ConfigError(
                f"{self.experiment.config['model']} has no units that can be taken out: it does not score as with "
                "their weights at 0, so it is unlike the class of RecBole's that it inherits from; take --pruner=imp"
            )

    def _scores_without(self, masks: MaskSet, storage: str) -> Scores:
        workshop = self.experiment.workshop
        model = workshop.build_model()
        model.whole_units, model.storage = True, storage
        with in_one_line(f"score with {self.experiment.config['model']} without units"):
            model.set_masks(masks)
            probe = Probe(model, self.experiment.config, workshop.dataset)
            return probe.score(model, next(probe.blocks()))

    def masks(self, number: int, keep: int, previous: Ticket, dense: Ticket) -> MaskSet:
        """Remove the units of lowest score from those of the previous ticket, kind by kind."""
        source = self.source(previous, dense)
        kept = units_of(self.anatomy, self.experiment.masks_of(source))
        return self.without_units(self.removed(number), self.entry_scores(source), kept)

    def without_units(
        self, gone: Mapping[str, int], entries: Mapping[str, torch.Tensor], kept: Units | None = None
    ) -> MaskSet:
        """Masks that are zero on the units of lowest score.

        Args:
            gone: units of each kind that are gone afterwards.
            entries: a score of every entry, by target.
            kept: units that are still there, by group; None: all.
        """
        before = all_units(self.anatomy) if kept is None else kept
        groups = [group for kind in gone for group in self.groups[kind]]
        scores = group_scores(entries, groups, self.scope, before)
        return masks_of(self.anatomy, self._chosen(gone, scores, before), self.scope, self._model)

    def _chosen(
        self, gone: Mapping[str, int], scores: Mapping[str, torch.Tensor], kept: Units
    ) -> dict[str, torch.Tensor]:
        """The units that stay, kind by kind."""
        share, multiple = self.settings.prune_max_ratio, self.settings.prune_round_to
        left = dict(kept)
        for kind, removed in gone.items():
            left.update(select_units(scores, self.groups[kind], kept, removed, share=share, multiple=multiple))
        return left

    def _any_scores(self, kept: Units) -> dict[str, torch.Tensor]:
        """Scores with which it is tried before any training what can go."""
        scores = {}
        for group in self.anatomy:
            scores[group.name] = torch.full((group.count,), torch.inf, dtype=torch.float64)
            scores[group.name][kept[group.name]] = kept[group.name].double() / group.count
        return scores

    def plan(self, number: int, keep: int, previous: Ticket, dense: Ticket) -> Plan:
        """As every mask; tensors get smaller by the units that are gone."""
        plan = super().plan(number, keep, previous, dense)
        assert plan.masks is not None
        kept = units_of(self.anatomy, plan.masks)
        left = {group.name: [len(kept[group.name]), group.count] for groups in self.groups.values() for group in groups}
        epochs = self.settings.prune_round_epochs
        return replace(plan, epochs=epochs, whole_units=True, method={**plan.method, "units": left})

    def entry_scores(self, ticket: Ticket) -> Mapping[str, torch.Tensor]:
        """What every entry adds to the score of its units (``prune_score``)."""
        score, weights = self.settings.prune_score, self.experiment.weights_of(ticket)
        if score == "random":
            return entry_scores.uniform(self.scope, self.experiment.config["seed"])
        if score == "taylor":
            return self._taylor(weights)
        power = {"l1": 1, "l2": 2}[score]
        return {name: values.pow(power) for name, values in entry_scores.magnitude(weights, self.scope).items()}

    def _taylor(self, weights: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """``|w * dL/dw|`` over some batches: how much the loss would change to first order without the entry.

        Molchanov et al., CVPR 2019, arXiv 1906.10771.
        """
        workshop = self.experiment.workshop
        with preserved_random_streams(workshop.loaders):
            model = workshop.build_model()
            model.load_trained(weights, None)
            model.train()
            for batch in first_batches(workshop.train_data, model, _TAYLOR_BATCHES):
                for loss in batch_losses(model, batch.to(model.device)):
                    loss.backward()
        named = dict(model.named_parameters())
        found = {}
        for target in self.scope:
            gradient = named[target.name].grad
            value = named[target.name].detach()
            found[target.name] = torch.zeros_like(value) if gradient is None else (value * gradient.to_dense()).abs()
        return {name: value.cpu().float() for name, value in found.items()}
