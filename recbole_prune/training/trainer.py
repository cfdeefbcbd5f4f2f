"""A mask-aware subclass of any RecBole trainer, made on the fly. No epoch loop is copied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property, wraps
from io import BytesIO
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recbole_prune.data import random_streams
from recbole_prune.errors import ConfigError, TrainingError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.scoring.evaluation import BlockEvaluation, UserBlock
from recbole_prune.sparse.compact import take_writes
from recbole_prune.training import state as states
from recbole_prune.training.learning_rate import learning_rate_factor
from recbole_prune.training.optimizers import fused, left_out, saved_as_dense

if TYPE_CHECKING:  # any trainer class of RecBole, see mask_aware_trainer
    from recbole.trainer import Trainer as _Trainer
else:
    _Trainer = object


@dataclass
class Session:
    """What one training needs from outside of RecBole's trainer.

    Attributes:
        ticket: number of the ticket that is trained.
        loaders: the dataloaders whose generators belong to the state.
        watch: finds changed attributes of the model.
        save_checkpoint: writes the bytes of RecBole's checkpoint, called at every improvement.
        load_checkpoint: the bytes last written.
        save_state: writes a resume point ``(epoch, state)``.
        keep_state: called once before epoch ``keep_epoch`` with what late rewinding needs: weights, attributes, random
            streams and data order.
        resume: the state to continue from.
        rewind: a state of the dense run whose random streams, data order and counters are taken over.
        report: called after each epoch and validation.
        learning_rate_schedule, warmup, learning_rate_floor: see :func:`recbole_prune.masking.schedule.learning_rate_factor`.
        dynamics: moves the masks between optimizer steps (:class:`~recbole_prune.pruners.prune_and_grow.PruneAndGrow`).
        fused: use the fused form of the optimizer.
        fixed_progress: hold the schedule at its end (training that continues after the schedule has run out).
    """

    ticket: int
    loaders: list[Any]
    watch: states.AttributeWatch
    save_checkpoint: Callable[[bytes], None]
    load_checkpoint: Callable[[], bytes]
    save_state: Callable[[int, dict[str, Any]], None] | None = None
    save_interval: int = 1
    keep_state: Callable[[int, dict[str, Any]], None] | None = None
    keep_epoch: int | None = None
    resume: dict[str, Any] | None = None
    rewind: dict[str, Any] | None = None
    report: Callable[[MaskAwareTrainer], None] = field(default=lambda trainer: None)
    learning_rate_schedule: str = "constant"
    warmup: int = 0
    learning_rate_floor: float = 0.0
    fixed_progress: bool = False
    fused: bool = True
    dynamics: Any = None


_COUNTERS = ("cur_step", "best_valid_score", "best_valid_result", "train_loss_dict")
_OWN = ("history", "best_epoch", "epochs_done", "train_seconds", "eval_seconds")


class MaskAwareTrainer(_Trainer):
    """What :func:`mask_aware_trainer` adds to a trainer.

    Attributes:
        history: (epochs trained, validation score) of every validation.
        best_epoch: epochs trained when the best checkpoint was written.
        best_masks: the masks of that checkpoint.
        epochs_done: epochs trained.
        train_seconds, eval_seconds: wall-clock seconds spent in epochs and validations.
    """

    def __init__(self, config: Any, model: Any, session: Session) -> None:
        self.session = session
        self.history: list[tuple[int, float]] = []
        self.best_epoch = 0
        self.best_masks: MaskSet | None = None
        self._began = False
        self.epochs_done = 0
        self.train_seconds = 0.0
        self.eval_seconds = 0.0
        super().__init__(config, model)
        self._base_rates = [
            [group["lr"] for group in optimizer.param_groups] for optimizer in states.optimizers_of(self).values()
        ]

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """RecBole's optimizer; momentum moves pruned entries, so every step ends with the masks."""
        optimizer: torch.optim.Optimizer = super()._build_optimizer(**kwargs)
        if self.session.fused:
            optimizer = fused(optimizer, self.model)
        step = optimizer.step

        @wraps(step)
        def step_and_mask(*args: Any, **step_kwargs: Any) -> Any:
            result = step(*args, **step_kwargs)
            self.model.apply_masks()
            dynamics = self.session.dynamics
            if dynamics is not None and left_out(optimizer):
                dynamics.forget_batch()
            elif dynamics is not None:
                dynamics.after_step(self)
            return result

        optimizer.step = step_and_mask  # type: ignore[method-assign]
        return optimizer

    def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        """One epoch of RecBole's trainer; before it the state is restored or stored."""
        session = self.session
        if session.resume is not None:
            self._restore(session.resume)
            session.resume = None
        elif session.rewind is not None:
            self._take_over(session.rewind)
            session.rewind = None
        else:
            if session.keep_state is not None and epoch_idx == session.keep_epoch:
                session.keep_state(epoch_idx, self._rewind_state())
            if session.save_state is not None and epoch_idx and epoch_idx % session.save_interval == 0:
                session.save_state(epoch_idx, self._state())
        self._set_learning_rate(epoch_idx)
        self.model.apply_masks()
        if session.dynamics is not None and not self._began:
            session.dynamics.begin(self.model)
            self._began = True
        self.epoch = epoch_idx
        start = perf_counter()
        losses = super()._train_epoch(train_data, epoch_idx, *args, **kwargs)
        self.train_seconds += perf_counter() - start
        self.epochs_done = epoch_idx + 1
        if session.dynamics is not None:
            session.dynamics.end_epoch(self.epochs_done, self.epochs)
        session.report(self)
        return losses

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        score, result = super()._valid_epoch(*args, **kwargs)
        self.eval_seconds += perf_counter() - start
        self.history.append((self.epochs_done, float(score)))
        self.session.report(self)
        return score, result

    def _check_nan(self, loss: torch.Tensor) -> None:
        if torch.isnan(loss):
            raise TrainingError(
                f"the training loss of ticket {self.session.ticket} became NaN in epoch {self.epoch}: "
                f"lower learning_rate={self.config['learning_rate']} or set clip_grad_norm"
            )

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """RecBole's checkpoint, handed to the run folder."""
        self.model.apply_masks()
        buffer = BytesIO()
        with saved_as_dense(self.optimizer, self.model):
            super()._save_checkpoint(epoch, verbose=False, saved_model_file=buffer)
        self.session.save_checkpoint(buffer.getvalue())
        self.best_epoch = epoch + 1
        self.best_masks = self.model.masks

    def save_pretrained_model(self, epoch: int, saved_model_file: str) -> None:
        """The pretraining stages of S3Rec and RaCT write the ticket's checkpoint like any other training."""
        self._save_checkpoint(epoch)

    def load_best(self) -> None:
        """Put the checkpoint of this ticket into the model, as RecBole does before testing."""
        # written by this run and hash-checked by the run folder; RecBole's format needs the full unpickler
        checkpoint = torch.load(
            BytesIO(self.session.load_checkpoint()),
            map_location=self.device,
            weights_only=False,
        )
        if self.best_masks is not self.model.masks:
            self.model.set_masks(self.best_masks)
        self.model.load_state_dict(checkpoint["state_dict"])
        self.model.load_other_parameter(checkpoint.get("other_parameter"))

    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: Any = None, show_progress: bool = False
    ) -> Any:
        """RecBole's evaluation with pruned entries exactly 0.

        Raises:
            ConfigError: ``model_file`` is given; its weights belong to masks that it does not hold.
        """
        if load_best_model and model_file:
            raise ConfigError(
                f"model_file={model_file} is not allowed: evaluate() takes the checkpoint of ticket "
                f"{self.session.ticket}; load other weights yourself and pass load_best_model=False"
            )
        if eval_data and load_best_model:
            self.load_best()
        self.model.apply_masks()
        if eval_data:
            eval_data = self._block_evaluation.blocks(eval_data) or eval_data
        return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)

    @cached_property
    def _block_evaluation(self) -> BlockEvaluation:
        return BlockEvaluation(
            self,
            batch_scores=super()._full_sort_batch_eval,
            evaluate=super().evaluate,
            train_data=self.session.loaders[0],
        )

    def _full_sort_batch_eval(self, batched_data: Any) -> Any:
        """RecBole's scores of a batch, or the ranking of a block of users."""
        if isinstance(batched_data, UserBlock):
            return None, self._block_evaluation.rank(batched_data), None, None
        return super()._full_sort_batch_eval(batched_data)

    def _set_learning_rate(self, epoch: int) -> None:
        session = self.session
        if session.learning_rate_schedule == "constant" and not session.warmup:
            return
        epochs: int = self.epochs
        at = epochs - 1 if session.fixed_progress else epoch
        factor = learning_rate_factor(
            session.learning_rate_schedule, at, epochs, session.warmup, session.learning_rate_floor
        )
        for optimizer, rates in zip(states.optimizers_of(self).values(), self._base_rates):
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * factor

    def _state(self) -> dict[str, Any]:
        model = self.model
        dynamics = self.session.dynamics
        take_writes(model)
        return {
            "dynamics": None if dynamics is None else {**dynamics.state(), "masks": self._masks_now()},
            "weights": states.weights_of(model),
            "attributes": self.session.watch.changed(),
            "optimizers": states.optimizer_state(self),
            "random": random_streams.random_state(),
            "loaders": [loader.generator.get_state() for loader in random_streams.dataloaders(self.session.loaders)],
            "trainer": {name: _plain(getattr(self, name)) for name in (*_COUNTERS, *_OWN)},
        }

    def _masks_now(self) -> list[np.ndarray | None]:
        """The masks in force and those of the best epoch, packed; None before the first checkpoint."""
        both = self.model.masks, self.best_masks
        return [None if masks is None else np.frombuffer(masks.to_bytes(), np.uint8) for masks in both]

    def _rewind_state(self) -> dict[str, Any]:
        """What a rewound ticket starts from; without clocks, so that equal trainings keep equal bytes."""
        state = self._state()
        return {name: state[name] for name in ("weights", "attributes", "random", "loaders")}

    def _take_over(self, state: dict[str, Any]) -> None:
        """Counters, random streams and data order of a state; weights and optimizers stay."""
        self.session.watch.restore(state["attributes"])
        for loader, generator in zip(random_streams.dataloaders(self.session.loaders), state["loaders"]):
            loader.generator.set_state(generator)
        random_streams.set_random_state(state["random"])

    def _restore(self, state: dict[str, Any]) -> None:
        if state["dynamics"] is not None:
            self._restore_dynamics(state["dynamics"])
        states.set_weights(self.model, state["weights"])
        states.set_optimizer_state(self, state["optimizers"])
        for name, value in state["trainer"].items():
            setattr(self, name, value)
        self._take_over(state)

    def _restore_dynamics(self, state: dict[str, Any]) -> None:
        model = self.model
        scope = model.masks.scope
        now, best = (data if data is None else MaskSet.from_bytes(data.tobytes(), scope) for data in state["masks"])
        model.move_masks(now, [])
        self.best_masks = best
        self.session.dynamics.restore(state, self.device)


def _plain(value: Any) -> Any:
    """RecBole's ordered dicts and numpy numbers as plain values."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.item() if hasattr(value, "item") and not isinstance(value, torch.Tensor) else value


@cache
def mask_aware_trainer(trainer_class: type) -> type:
    """The mask-aware subclass of a RecBole trainer class."""
    return type(trainer_class.__name__, (MaskAwareTrainer, trainer_class), {"__doc__": trainer_class.__doc__})
