"""PEP: soft thresholds that are learned with the weights decide which entries go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cached_property
from math import log

import numpy as np
import torch
from torch import nn

from recbole_prune.anatomy.losses import adds_rows_up
from recbole_prune.errors import ConfigError
from recbole_prune.masking.allocate import select
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scope import Scope, Target
from recbole_prune.pruners.base import MaskPruner, Promises
from recbole_prune.run.mask_search import FoundMask, Searcher, SearchResult
from recbole_prune.run.ticket import Plan, Ticket
from recbole_prune.training.parts import State, Training

# decay moves s by about the learning rate a step; where none is given, s is to come so far in this share of the search
_TELLING, _SHARE = log(0.01 / 0.99), 1 / 3
_EPS = 1e-8  # torch's, of Adam


class LearnedThresholds(MaskPruner):
    """PEP: one search with learned soft thresholds finds the masks of all tickets; each trains from its initial values.

    Liu et al., "Learnable Embedding Sizes for Recommender Systems", ICLR 2021, arXiv 2101.07577. In the search a model
    has w = sign(v) max(|v| - sigmoid(s), 0) for its weights v, and s is learned with them. The entries of a ticket are
    those of largest |v| - sigmoid(s) at the first step at which no more than its size are not 0.
    """

    searches = True
    promises = Promises(nested=False, above_random=True)

    def check(self) -> None:
        """As every mask; thresholds need Adam, and a learning rate where they start too high for one to be chosen."""
        super().check()
        learner, start = str(self.experiment.config["learner"]), self.settings.prune_pep_start
        if learner.lower() != "adam":
            raise ConfigError(
                f"learner={learner} is not allowed with --pruner={self.settings.pruner}: its thresholds move by their "
                "decay, which only steps of Adam's size carry anywhere; set learner=adam"
            )
        if self.settings.prune_pep_learning_rate is None and start >= _TELLING:
            raise ConfigError(
                f"prune_pep_start={start} is a threshold of {_sigmoid(start):.3g} from the first step: give "
                f"prune_pep_learning_rate, chosen only for prune_pep_start < {_TELLING:.3f} (a threshold of 0.01)"
            )

    @property
    def learning_rate(self) -> float:
        """Of the thresholds; where none is given, decay alone takes them to 0.01 in a third of the search."""
        given = self.settings.prune_pep_learning_rate
        if given is not None:
            return float(given)
        steps = self.experiment.workshop.steps_per_epoch * self.experiment.config["epochs"]
        return float((_TELLING - self.settings.prune_pep_start) / (_SHARE * steps))

    @property
    def rows(self) -> int:
        """What published decays are divided by, since RecBole's losses are means: rows of a batch, or 1 for sums."""
        config = self.experiment.config
        return 1 if adds_rows_up(config.model_class, config["train_stage"]) else int(config["train_batch_size"])

    @cached_property
    def search(self) -> SearchResult:
        """The one search."""
        return self.experiment.search(self._planned_search)

    def _planned_search(self) -> Plan:
        """Nothing decays but the thresholds: weight decay on v would shrink everything below them."""
        thresholds = SoftThresholds(
            self.scope,
            self.counts()[1:],
            self._chosen,
            granularity=self.settings.prune_pep_scope,
            start=self.settings.prune_pep_start,
            optimizer_settings=threshold_settings(self.learning_rate, self.settings.prune_pep_decay, self.rows),
            without_empty_rows=self.without_empty_rows,
        )
        return Plan(1, None, parts=(thresholds,), kept=self.scope.prunable, changes={"weight_decay": 0.0})

    def _chosen(self, scores: Mapping[str, torch.Tensor], keep: int) -> MaskSet:
        return select(
            scores,
            MaskSet.dense(self.scope),
            keep,
            min_per_row=self.minima(self.settings.prune_min_per_row),
            seed=self.experiment.config["seed"],
        )

    def masks(self, number: int, keep: int, previous: Ticket, dense: Ticket) -> MaskSet:
        """What the search found."""
        return MaskSet.from_bytes(self.search.found[number].masks, self.scope)

    def plan(self, number: int, keep: int, previous: Ticket, dense: Ticket) -> Plan:
        """As every mask; the journal line says what the search took, which is one for all tickets."""
        plan = super().plan(number, keep, previous, dense)
        told = {"epochs": self.search.epochs, **self.search.found[number].to_record()}
        return replace(plan, method={"search": told, "search_seconds": self.search.train_seconds})


def threshold_settings(learning_rate: float, decay: float, rows: int) -> dict[str, float]:
    """Settings of Adam with which a mean over ``rows`` moves thresholds just as their sum would with ``decay``."""
    return {"lr": learning_rate, "weight_decay": decay / rows, "eps": _EPS / rows}


def soft_threshold(values: torch.Tensor, thresholds: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """sign(v) max(|v| - sigmoid(s), 0), of some entries; others stay as they are.

    Args:
        values: v, any shape.
        thresholds: s, of a shape that broadcasts to it.
        where: which entries have a threshold, bool, of a shape that broadcasts to it.
    """
    return torch.where(where, values.sign() * (values.abs() - thresholds.sigmoid()).relu(), values)


class SoftThresholds(Searcher):
    """Trains a model whose targets are soft-thresholded, and takes masks when they have become sparse enough.

    Between two steps the model's parameters hold w, and this part v; a step of the optimizer moves v.

    Args:
        scope: the targets.
        keeps: live entries of every mask, falling.
        choose: masks of so many entries, given a score of every entry.
        granularity: what has a threshold of its own: ``global`` (all targets one), ``column``, ``row`` or ``entry``.
        start: s at the start.
        optimizer_settings: of the thresholds' group.
        without_empty_rows: names of targets in which the largest entry of every row has no threshold, since the model
            cannot do with a row of zeros.
    """

    name = "soft_thresholds"

    def __init__(
        self,
        scope: Scope,
        keeps: list[int],
        choose: Callable[[Mapping[str, torch.Tensor], int], MaskSet],
        *,
        granularity: str,
        start: float,
        optimizer_settings: Mapping[str, float],
        without_empty_rows: Collection[str] = (),
    ) -> None:
        self.found: list[FoundMask] = []
        self._scope, self._keeps, self._choose = scope, keeps, choose
        self._granularity, self._start, self._settings = granularity, start, optimizer_settings
        self._without_empty_rows = without_empty_rows
        self._step = 0
        self._values: dict[str, torch.Tensor] = {}

    @property
    def is_over(self) -> bool:
        """Whether every mask is found."""
        return len(self.found) == len(self._keeps)

    def attach(self, model: nn.Module) -> None:
        """Make thresholds on the model's device."""
        device = next(model.parameters()).device
        self._counts = {t.name: t.countable(device).view(-1, *[1] * (len(t.shape) - 1)) for t in self._scope}
        self._thresholds = {
            name: nn.Parameter(torch.full(shape, self._start, device=device)) for name, shape in self._shapes().items()
        }

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        if self._granularity == "global":
            return {"global": ()}
        shape_of: dict[str, Callable[[Target], tuple[int, ...]]] = {
            "column": lambda target: (1, *target.shape[1:]),
            "row": lambda target: (target.shape[0], *[1] * (len(target.shape) - 1)),
            "entry": lambda target: target.shape,
        }
        return {target.name: shape_of[self._granularity](target) for target in self._scope}

    def _threshold(self, name: str) -> nn.Parameter:
        return self._thresholds["global" if self._granularity == "global" else name]

    @torch.no_grad()
    def _thresholded(self, name: str) -> torch.Tensor:
        """Which entries of a target have a threshold; broadcasts to its shape."""
        counts = self._counts[name]
        if name not in self._without_empty_rows:
            return counts
        magnitudes = self._values[name].abs().flatten(1)
        largest = torch.zeros_like(magnitudes, dtype=torch.bool).scatter_(1, magnitudes.argmax(1, keepdim=True), True)
        return counts & ~largest.view(self._values[name].shape)

    def _worn(self, name: str) -> torch.Tensor:
        """w of a target."""
        return soft_threshold(self._values[name], self._threshold(name), self._thresholded(name))

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The thresholds s."""
        return self._thresholds

    def optimizer_settings(self) -> Mapping[str, float]:
        """Their own learning rate and decay."""
        return self._settings

    def begin(self, trainer: Training) -> None:
        """From now on the model's targets are thresholded."""
        named = dict(trainer.model.named_parameters())
        self._weights = {target.name: named[target.name] for target in self._scope}
        if not self._values:
            self._values = {name: weight.detach().clone() for name, weight in self._weights.items()}
        for name, weight in self._weights.items():
            weight.register_hook(lambda gradient, name=name: self._passed_on(name, gradient))
        self._wear()

    def _passed_on(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of v from that of w; that of s is added to what it has."""
        threshold = self._threshold(name)
        with torch.enable_grad():
            values = self._values[name].requires_grad_()
            of_values, of_threshold = torch.autograd.grad(self._worn(name), (values, threshold), gradient)
        values.requires_grad_(False)
        threshold.grad = of_threshold if threshold.grad is None else threshold.grad + of_threshold
        return of_values

    @torch.no_grad()
    def _wear(self) -> int:
        """Write w into the model; the number of its entries that are not 0."""
        live = 0
        for name, weight in self._weights.items():
            weight.copy_(self._worn(name))
            live += int(((weight != 0) & self._counts[name]).sum())
        return live

    @torch.no_grad()
    def before_step(self, trainer: Training) -> None:
        """The step is one of v."""
        for name, weight in self._weights.items():
            weight.copy_(self._values[name])

    @torch.no_grad()
    def after_step(self, trainer: Training) -> None:
        """Count what is left, and take the masks of every size that it has come to."""
        for name, weight in self._weights.items():
            self._values[name].copy_(weight)
        live = self._wear()
        self._step += 1
        while not self.is_over and live <= self._keeps[len(self.found)]:
            self._take(trainer, reached=True)

    def step_left_out(self) -> None:
        """Back to w."""
        self._wear()

    def end_search(self, trainer: Training) -> None:
        """The sizes that were not reached."""
        while not self.is_over:
            self._take(trainer, reached=False)

    @torch.no_grad()
    def _take(self, trainer: Training, reached: bool) -> None:
        scores = {name: (values.abs() - self._threshold(name).sigmoid()).cpu() for name, values in self._values.items()}
        masks = self._choose(scores, self._keeps[len(self.found)])
        self.found.append(FoundMask(masks.to_bytes(), trainer.epoch + 1, self._step, reached))

    def state(self) -> State:
        """Weights v, what is found and how far the search has come."""
        found = [{**each.to_record(), "masks": np.frombuffer(each.masks, np.uint8)} for each in self.found]
        return {"step": self._step, "values": dict(self._values), "found": found}

    def restore(self, state: State, device: torch.device) -> None:
        """Undo :meth:`state`."""
        self._step = state["step"]
        self._values = {name: values.to(device) for name, values in state["values"].items()}
        self.found = [FoundMask(**{**each, "masks": each["masks"].tobytes()}) for each in state["found"]]


def _sigmoid(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).sigmoid())
