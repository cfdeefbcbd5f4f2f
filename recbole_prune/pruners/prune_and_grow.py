"""The prune-and-grow loop of one training: when masks move, how many entries, and which."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recbole_prune.errors import TrainingError
from recbole_prune.masking import grow
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.schedule import update_ratio
from recbole_prune.masking.scope import Target
from recbole_prune.sparse.compact import compact_modules
from recbole_prune.training import state as states
from recbole_prune.training.gradient_record import GradientRecorder
from recbole_prune.training.parts import Part, State, Training
from recbole_prune.training.replicas import masks_of_first

if TYPE_CHECKING:
    from recbole_prune.config.settings import Settings
    from recbole_prune.training.model import MaskAware


class PruneAndGrow(Part):
    """Moves the live entries of a model while it trains.

    Args:
        settings: interval, ratio, floor, end, growth, window and parity of the updates.
        steps: optimizer steps of the whole training, as far as they are known before it.
        seed: decides ties and random growth, together with the step.
        without_empty_rows: names of tensors in which every row that has an entry keeps one.

    Attributes:
        step: optimizer steps taken.
        steps: those that the whole training is going to take.
        updates: updates made.
        grown: entries that became live over all updates, each counted every time.
    """

    name = "prune_and_grow"

    def __init__(self, settings: Settings, steps: int, seed: int, without_empty_rows: Collection[str] = ()) -> None:
        self.settings = settings
        self.without_empty_rows = without_empty_rows
        self.steps = max(1, steps)
        self.seed = seed
        self.step = self.updates = self.grown = 0
        self._recorder = GradientRecorder()
        self._recording = False
        self._fired: dict[str, np.ndarray] = {}

    @property
    def official(self) -> bool:
        """Whether the rule of the official code is repeated, its leak included."""
        return bool(self.settings.prune_parity == "official")

    @property
    def last_update(self) -> int:
        """The last step after which masks may move; the final step itself never does, except in the official code."""
        last = int(self.settings.prune_end_fraction * self.steps)
        return last if self.official else min(last, self.steps - 1)

    def is_update(self, step: int) -> bool:
        """Whether the masks move after optimizer step ``step``."""
        return step % self.settings.prune_update_interval == 0 and 0 < step <= self.last_update

    def ratio(self, step: int) -> float:
        """Fraction of the live entries that the update after ``step`` replaces."""
        settings = self.settings
        total = self.last_update if settings.pruner == "rigl" else self.steps
        return update_ratio(settings.prune_update_ratio, settings.prune_update_floor, step, max(1, total))

    def attach(self, model: MaskAware) -> None:
        """Moments of pruned entries exist only where the table is held whole."""
        if self.settings.prune_moments == "dense":
            model.storage, model.dense_moments = "masked", True

    def begin(self, trainer: Training) -> None:
        """Note what is live, and record the first batch if an update follows it."""
        if trainer.model.masks is None:
            raise TrainingError("prune-and-grow moves masks, but the model wears none")
        self._remember(trainer.model.masks)
        self._record_next(trainer.model)

    def end_epoch(self, trainer: Training) -> None:
        """Plan with the steps that epochs really take: knowledge-graph passes, two optimizers in turn."""
        self.steps = max(1, round(self.step * trainer.epochs / trainer.epochs_done))

    def after_step(self, trainer: Training) -> None:
        """Count an optimizer step; move the masks if it is time."""
        self.step += 1
        if self._recording:
            self._recorder.end_batch()
        if self.is_update(self.step):
            self._update(trainer)
        self._record_next(trainer.model)

    def step_left_out(self) -> None:
        """A loss scaler left the step out."""
        self._recorder.drop_batch()

    def _record_next(self, model: MaskAware) -> None:
        """Record the dense gradients of the next batch if an update uses them."""
        wanted = self.settings.prune_growth == "gradient" and any(
            self.is_update(self.step + ahead) for ahead in range(1, self.settings.prune_gradient_window + 1)
        )
        if wanted != self._recording:
            self._recording = wanted
            model.record_gradients(self._recorder if wanted else None)

    @torch.no_grad()
    def _update(self, trainer: Training) -> None:
        model, ratio = trainer.model, self.ratio(self.step)
        old = model.masks
        assert old is not None, "begin has seen them"
        optimizers = list(dict.fromkeys(states.optimizers_of(trainer).values()))  # an optimizer may have two names
        new = {}
        for number, target in enumerate(old.scope):
            seed = int(np.random.SeedSequence([self.seed, self.step, number]).generate_state(1)[0])
            new[target.name] = self._moved(target, old[target.name], model, optimizers, ratio, seed)
        moved = masks_of_first(MaskSet(old.scope, new))
        if not self.official:
            for target in old.scope:
                if int(moved.per_row(target.name).sum()) != int(old.per_row(target.name).sum()):
                    raise TrainingError(f"an update changed the number of live entries of {target.name}")
        self.updates += 1
        self.grown += sum(int((new[name] & ~old[name]).sum()) for name in new)
        model.move_masks(moved, optimizers)
        self._remember(moved)

    def _moved(
        self, target: Target, mask: torch.Tensor, model: Any, optimizers: list[Any], ratio: float, seed: int
    ) -> torch.Tensor:
        """The new mask of one tensor, on the CPU."""
        table, countable = mask.reshape(len(mask), -1), target.countable()
        record = self._recorder.take(target.name)
        if self.official:
            weight = model.state_dict()[target.name].cpu().reshape(table.shape)
            gradient = torch.zeros(table.shape) if record is None else record.values.cpu().float()
            if self.settings.prune_growth == "momentum":
                gradient = _adam_direction(model, target.name, optimizers).reshape(table.shape)
            moved = table.clone()
            moved[countable] = grow.update_official(table[countable], weight[countable], gradient[countable], ratio)
            return moved.view(mask.shape)
        positions, magnitudes = _live(model, target, table, countable)
        growth = self.settings.prune_growth

        def choose(empty: torch.Tensor, count: int) -> torch.Tensor:
            if growth == "momentum":
                scores = _adam_direction(model, target.name, optimizers).reshape(table.shape)
                return grow.grow_by_score(empty, None, scores, count, seed)
            if growth == "random" or record is None:
                return grow.grow_at_random(empty, count, seed)
            rows = None if record.rows is None else record.rows.cpu()
            return grow.grow_by_score(empty, rows, record.values.cpu(), count, seed)

        keep_rows = target.name in self.without_empty_rows
        return grow.update(table, countable, positions, magnitudes, ratio, choose, seed, keep_rows).view(mask.shape)

    def _remember(self, masks: MaskSet) -> None:
        """Which entries have ever been live, one bit each (in-time over-parameterisation, Liu et al. 2102.02887)."""
        for name, mask in masks.items():
            bits = np.packbits(mask.cpu().numpy().reshape(-1))
            self._fired[name] = bits | self._fired[name] if name in self._fired else bits

    def exploration_rate(self, masks: MaskSet) -> float:
        """Share of the prunable entries that have been live at some time."""
        fired = 0
        for target in masks.scope:
            ever = np.unpackbits(self._fired[target.name], count=target.shape[0] * target.width)
            fired += int(ever.reshape(target.shape[0], -1)[target.countable().numpy()].sum())
        return fired / masks.prunable

    def report(self, masks: MaskSet | None) -> dict[str, Any]:
        """What the journal line of the ticket says about the updates."""
        explored = None if masks is None else self.exploration_rate(masks)
        return {"updates": self.updates, "grown": self.grown, "exploration_rate": explored}

    def state(self) -> State:
        """What a resume point needs beside masks, weights and moments."""
        counters = {"step": self.step, "steps": self.steps, "updates": self.updates, "grown": self.grown}
        return {**counters, "fired": dict(self._fired), "recorder": self._recorder.state()}

    def restore(self, state: State, device: torch.device) -> None:
        """Undo :meth:`state`."""
        self.step, self.steps = state["step"], state["steps"]
        self.updates, self.grown = state["updates"], state["grown"]
        self._fired = dict(state["fired"])
        self._recorder.restore(state["recorder"], device)


def _live(
    model: Any, target: Target, table: torch.Tensor, countable: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat positions of a tensor's live entries that count, ascending, and their magnitudes, both on the CPU."""
    compact = dict(compact_modules(model)).get(target.name)
    positions = table.reshape(-1).nonzero().view(-1)
    if compact is not None:
        magnitudes = compact.values.detach().abs().cpu().float()
    else:
        weight = dict(model.named_parameters())[target.name].detach().cpu()
        magnitudes = weight.reshape(-1)[positions].abs().float()
    counts = countable[torch.div(positions, table.shape[1], rounding_mode="floor")]
    return positions[counts], magnitudes[counts]


def _adam_direction(model: Any, name: str, optimizers: list[Any]) -> torch.Tensor:
    """|m / (sqrt(v) + 1e-8)| of Adam for every entry: the momentum growth of the official code."""
    parameter = dict(model.named_parameters())[name]
    for kept in _states_of(parameter, optimizers):
        if "exp_avg" in kept:
            direction: torch.Tensor = kept["exp_avg"] / (kept["exp_avg_sq"].sqrt() + 1e-8)
            return direction.abs().cpu().float()
    return torch.zeros(parameter.shape)


def _states_of(parameter: torch.Tensor, optimizers: list[Any]) -> Iterator[dict[str, Any]]:
    for optimizer in optimizers:
        if parameter in optimizer.state:
            yield optimizer.state[parameter]
