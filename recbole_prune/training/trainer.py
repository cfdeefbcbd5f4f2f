"""A mask-aware subclass of any RecBole trainer, made on the fly. No epoch loop is copied."""

from __future__ import annotations

from functools import cache, cached_property, wraps
from io import BytesIO
from math import prod
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from torch import nn

from recbole_prune.compat.places import trainers_write_to
from recbole_prune.errors import ConfigError, TrainingError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.ranks import group
from recbole_prune.scoring.evaluation import BlockEvaluation, UserBlock
from recbole_prune.scoring.popularity import Popularity, PopularityRecord
from recbole_prune.scoring.user_values import UserValues, Values
from recbole_prune.training import state as states
from recbole_prune.training.lazy_adam import LazyTable, lazy_tables, rows_wait
from recbole_prune.training.optimizers import add_group, fused, left_out, saved_as_dense
from recbole_prune.training.replicas import Replicas, metrics_of_first
from recbole_prune.training.resumable import Resumable
from recbole_prune.training.session import Session

if TYPE_CHECKING:  # any trainer class of RecBole, see mask_aware_trainer
    from recbole.config import Config
    from recbole.data.dataloader import AbstractDataLoader
    from recbole.data.interaction import Interaction
    from recbole.trainer import Trainer as _Trainer

    from recbole_prune.training.model import MaskAware
else:
    _Trainer = object


class MaskAwareTrainer(Resumable, _Trainer):
    """What :func:`mask_aware_trainer` adds to a trainer.

    Attributes:
        history: (epochs trained, validation score) of every validation.
        best_epoch: epochs trained when the best checkpoint was written.
        best_masks: the masks of that checkpoint; None before the first.
        best_values: of users in the validation before it; None where that was not seen.
        epochs_done: epochs trained.
        train_seconds, eval_seconds: wall-clock seconds spent in epochs and validations.
        last_evaluation_seconds: those of the last evaluation, from its first batch to its metrics.
    """

    model: MaskAware

    def __init__(self, config: Config, model: MaskAware, session: Session) -> None:
        self.session = session
        self.history: list[tuple[int, float]] = []
        self.best_epoch = 0
        self.best_masks: MaskSet | None = None
        self.best_values: Values | None = None
        self.epochs_done = 0
        self.train_seconds = 0.0
        self.eval_seconds = 0.0
        self.last_evaluation_seconds = 0.0
        self._first_masks = model.masks
        self._began = False
        self._added: dict[str, torch.Tensor] = {}
        self._watch = states.AttributeWatch(model)
        if session.parts:
            model.added_losses = self._losses_of_parts
            model.own_loss = lambda: prod(part.own_loss for part in session.parts)
        with trainers_write_to(None):
            super().__init__(config, model)
        self._replicas = Replicas(self, self._every_added_parameter()) if group.are_several() else None
        self._base_rates = [
            [group["lr"] for group in optimizer.param_groups] for optimizer in states.optimizers_of(self).values()
        ]

    @cached_property
    def user_values(self) -> UserValues:
        """Listens to every evaluation."""
        return UserValues(self.evaluator)

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """RecBole's optimizer; momentum moves pruned entries, so every step ends with the masks."""
        optimizer: torch.optim.Optimizer = super()._build_optimizer(**kwargs)
        for part in self.session.parts:
            add_group(optimizer, self._added_parameters[part.name].values(), part.optimizer_settings())
        if self.session.fused:
            optimizer = fused(optimizer, self.model)
        step = optimizer.step

        @wraps(step)
        def step_and_mask(*args: Any, **step_kwargs: Any) -> Any:
            for part in self.session.parts:
                part.before_step(self)
            result = step(*args, **step_kwargs)
            self.model.apply_masks()
            for part in self.session.parts:
                if left_out(optimizer):
                    part.step_left_out()
                else:
                    part.after_step(self)
            self.session.watcher.batch_done()
            return result

        optimizer.step = step_and_mask  # type: ignore[method-assign]
        return optimizer

    def _every_added_parameter(self) -> list[nn.Parameter]:
        return [parameter for named in self._added_parameters.values() for parameter in named.values()]

    def _losses_of_parts(self, interaction: Interaction) -> dict[str, torch.Tensor]:
        """What parts add to the loss of a batch, summed by name for the log.

        Raises:
            ValueError: two parts give a loss the same name.
        """
        found: dict[str, torch.Tensor] = {}
        for part in self.session.parts:
            losses = part.losses(self.model, interaction)
            if found.keys() & losses.keys():
                raise ValueError(f"{part.name} gives a loss a name that is taken: {', '.join(losses)}")
            found.update(losses)
        for name, value in found.items():
            value = value.detach()
            self._added[name] = self._added[name] + value if name in self._added else value
        return found

    def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        """One epoch of RecBole's trainer; before it the state is restored or stored."""
        session = self.session
        if session.start is not None:
            self._start_from(session.start)
            session.start = None
        else:
            session.files.before_epoch(epoch_idx, self)
        self._set_learning_rate(epoch_idx)
        self.model.apply_masks()
        self.epoch = epoch_idx
        if not self._began:
            if self._replicas is not None:
                self._replicas.begin()
            for part in session.parts:
                part.begin(self)
            self._began = True
        session.watcher.epoch_begins(self)
        if self._replicas is not None:
            train_data = self._replicas.begin_epoch(train_data)
        start = perf_counter()
        with session.meter.window("train"), rows_wait(self._lazy_tables(), self.optimizer) as waiting:
            if self._replicas is not None:
                self._replicas.read_by_rows(waiting)
            losses = super()._train_epoch(train_data, epoch_idx, *args, **kwargs)
            if self._replicas is not None:
                losses = self._replicas.end_epoch(losses)
        self.train_seconds += perf_counter() - start
        self.epochs_done = epoch_idx + 1
        for part in session.parts:
            part.end_epoch(self)
        self._log_added_losses(epoch_idx)
        return losses

    def _lazy_tables(self) -> list[LazyTable]:
        """Those whose rows may wait: nothing but the loss of a batch and the optimizer sees them in an epoch."""
        seen = self.session.parts or self.clip_grad_norm or self.enable_amp or self.enable_scaler
        if seen or not self.session.fused or len(set(map(id, states.optimizers_of(self).values()))) > 1:
            return []
        return lazy_tables(self.model, self.optimizer, self.config["train_batch_size"], self.model.masked_parameters)

    def _log_added_losses(self, epoch: int) -> None:
        """Sums over the epoch, as RecBole logs its own losses."""
        if self._added:
            sums = {name: float(total) for name, total in self._added.items()}
            self.logger.info(f"epoch {epoch} added losses: " + ", ".join(f"{n} {v:.6g}" for n, v in sums.items()))
            for name, value in sums.items():
                self.tensorboard.add_scalar(f"Loss/{name}", value, epoch)
            # they join RecBole's own loss of the epoch, which it logs next
            self.wandblogger.log_metrics({f"loss_{n}": v for n, v in sums.items()}, head="train", commit=False)
        self._added = {}

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> Any:
        self.session.watcher.evaluation_begins("validation")
        start = perf_counter()
        with self.session.meter.window("validate"):
            score, result = super()._valid_epoch(*args, **kwargs)
        self.eval_seconds += perf_counter() - start
        score = float(score)  # as a resume point gives it back: it stands in the checkpoint
        self.history.append((self.epochs_done, score))
        self.session.watcher.validated(self)
        return score, result

    def count_start(self, data: AbstractDataLoader) -> None:
        """Validate what the training starts from, and count it as the best so far, of epoch 0.

        Args:
            data: the dataloader that picks epochs.
        """
        self.best_valid_score, self.best_valid_result = self._valid_epoch(data, show_progress=False)
        self._save_checkpoint(-1)

    def _check_nan(self, loss: torch.Tensor) -> None:
        if self._replicas is not None:
            self._replicas.watch(loss)
        elif torch.isnan(loss):
            raise self.nan_error()

    def nan_error(self) -> TrainingError:
        """What is said where a loss is no number."""
        return TrainingError(
            f"the training loss of {self.session.name} became NaN in epoch {self.epoch}: "
            f"lower learning_rate={self.config['learning_rate']} or set clip_grad_norm{self._empty_rows()}"
        )

    def _empty_rows(self) -> str:
        """That tables have rows without a live entry, by whose length a model may divide; "" if none has."""
        masks = self.model.masks
        counts = {} if masks is None else {t.name: int((masks.per_row(t.name) == 0).sum()) for t in masks.scope}
        name = max(counts, key=lambda name: counts[name], default="")
        if not counts.get(name):
            return ""
        return (
            f", or prune less: {counts[name]} rows of {name} have no live entry, and a loss may divide by their length"
        )

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """RecBole's checkpoint, handed to the run folder."""
        self.model.apply_masks()
        buffer = BytesIO()
        added, moments = self._every_added_parameter(), self.session.keep_moments
        with saved_as_dense(self.optimizer, self.model, added, moments=moments), self.model.of_full_size():
            super()._save_checkpoint(epoch, verbose=False, saved_model_file=buffer)
        self.session.files.save_checkpoint(buffer.getvalue())
        self.best_epoch = epoch + 1
        self.best_masks = self.model.masks
        self.best_values = dict(self.user_values.last)
        for part in self.session.parts:
            part.checkpoint_saved(self, buffer.getvalue())

    def save_pretrained_model(self, epoch: int, saved_model_file: str) -> None:
        """The pretraining stages of S3Rec and RaCT write the ticket's checkpoint like any other training."""
        self._save_checkpoint(epoch)

    def load_best(self) -> None:
        """Put the checkpoint of this ticket into the model, as RecBole does before testing."""
        # written by this run and hash-checked by the run folder; RecBole's format needs the full unpickler
        checkpoint = torch.load(
            BytesIO(self.session.files.load_checkpoint()),
            map_location=self.device,
            weights_only=False,
        )
        masks = self._first_masks if self.best_masks is None else self.best_masks
        if masks is not self.model.masks:
            self.model.set_masks(masks)
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
                f"model_file={model_file} is not allowed: evaluate() takes the checkpoint of "
                f"{self.session.name}; load other weights yourself and pass load_best_model=False"
            )
        if eval_data and load_best_model:
            self.load_best()
        self.model.apply_masks()
        self.user_values.last.clear()
        if eval_data:
            eval_data = self._block_evaluation.blocks(eval_data) or eval_data
        start = perf_counter()
        result = metrics_of_first(super().evaluate(eval_data, load_best_model=False, show_progress=show_progress))
        self.last_evaluation_seconds = perf_counter() - start
        return result

    def evaluate_by_popularity(
        self, eval_data: Any, popularity: Popularity | None, load_best_model: bool = True
    ) -> tuple[Any, PopularityRecord | None]:
        """:meth:`evaluate`, and of the same ranking how popular what it lists and what it finds is.

        Args:
            eval_data: the dataloader.
            popularity: of the training data; None does not look at it.
            load_best_model: as there.

        Returns:
            (metrics, what the journal says; None without ``popularity``, without data and where nothing is ranked).
        """
        collector = self._block_evaluation.collector if eval_data and popularity is not None else None
        if collector is None or popularity is None:
            return self.evaluate(eval_data, load_best_model), None
        collector.popularity = popularity.to(self.device)
        collector.ranks_all = isinstance(eval_data, FullSortEvalDataLoader)
        try:
            return self.evaluate(eval_data, load_best_model), collector.by_popularity
        finally:
            collector.popularity = None

    @property
    def evaluation_way(self) -> str | None:
        """How the last evaluation ranked, in words."""
        return self._block_evaluation.way

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
        if self.session.learning_rate.is_constant:
            return
        factor = self.session.learning_rate.factor(epoch, self.epochs)
        for optimizer, rates in zip(states.optimizers_of(self).values(), self._base_rates):
            for settings, rate in zip(optimizer.param_groups, rates):
                settings["lr"] = rate * factor


@cache
def mask_aware_trainer(trainer_class: type) -> type:
    """The mask-aware subclass of a RecBole trainer class."""
    return type(trainer_class.__name__, (MaskAwareTrainer, trainer_class), {"__doc__": trainer_class.__doc__})
