"""Trains tickets: data, model, scope and trainer of one run, and its folder.

A pruner says which mask comes next (:class:`~recbole_prune.ticket.Plan`); this module trains it, or finds it finished
in the journal, or continues it where a killed process left it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from logging import getLogger
from math import isfinite
from typing import Any

import torch
from recbole.data import create_dataset, data_preparation
from recbole.utils import ModelType, calculate_valid_score, get_model, get_trainer, init_seed

from recbole_prune.errors import ConfigError, NothingToPrune, PruneError, StoreError, TrainingError
from recbole_prune.masks import MaskSet
from recbole_prune.progress import Progress
from recbole_prune.scope import Scope, find_scope
from recbole_prune.store import RunFolder
from recbole_prune.ticket import Plan, Ticket
from recbole_prune.training import codec
from recbole_prune.training import state as states
from recbole_prune.training.model import batch_l2, mask_aware, padding_rule
from recbole_prune.training.trainer import Session, mask_aware_trainer
from recbole_prune.training.user_uniform import sample_users_uniformly
from recbole_prune.verdict import judge

REWIND_FILE = "resume-rewind.safetensors"


class Experiment:
    """One run over one configuration.

    Attributes:
        config: the :class:`~recbole_prune.config.PruneConfig`.
        settings: its frozen settings.
        scope: targets of the model; after ticket 0 those that never received a gradient are gone from it.
        tickets: finished tickets by number.
    """

    def __init__(self, config: Any, folder: RunFolder) -> None:
        self.config = config
        self.settings = config.settings
        self.folder = folder
        self.logger = getLogger()
        if config["MODEL_TYPE"] in (ModelType.TRADITIONAL, ModelType.DECISIONTREE):
            raise NothingToPrune(f"{config['model']} is not trained by gradient: it has no weights to prune")
        init_seed(config["seed"], config["reproducibility"])
        with _recbole_says(f"load the dataset {config['dataset']}"):
            self.dataset = create_dataset(config)
            self.logger.info(self.dataset)
            self.train_data, self.valid_data, self.test_data = data_preparation(config, self.dataset)
        self.select_data = self.test_data if self.settings.prune_select == "test" else self.valid_data
        if self.settings.prune_user_uniform:
            sample_users_uniformly(self.train_data, config)
        self.tickets: dict[int, Ticket] = {}
        self.progress = Progress(enabled=False)
        self._weights: tuple[int, dict[str, torch.Tensor]] | None = None
        self._bench: Any = None
        self.scope = self._find_scope()

    @property
    def bigger(self) -> bool:
        """Whether a higher validation score is better."""
        return bool(self.config["valid_metric_bigger"])

    def _loaders(self) -> list[Any]:
        return [self.train_data, self.valid_data, self.test_data]

    def _find_scope(self) -> Scope:
        with _recbole_says(f"build {self.config['model']}"):
            model = self.build_model()
        scope = find_scope(
            model,
            scope=self.settings.prune_scope,
            include=self.settings.prune_include,
            exclude=self.settings.prune_exclude,
            padding=padding_rule(model, self.train_data._dataset),
        ).require_targets(self.config["model"])
        if model.l2_weight:
            batch_l2(model, next(iter(self.train_data)))
        return scope

    def build_model(self, config: Any = None) -> Any:
        """RecBole's model as a mask-aware subclass, built under the run's seed with everything reset.

        Building anew is the rewind: weights, caches, counters and what a model samples in its constructor come
        out as in the dense run, and the random streams and data order start over.
        """
        config = config or self.config
        seed = config["seed"] + config["local_rank"]
        states.reseed(self._loaders(), config["seed"])
        init_seed(seed, config["reproducibility"])
        model = mask_aware(get_model(config["model"]))(config, self.train_data._dataset).to(config["device"])
        if not self.config.has_own_l2:
            model.l2_weight = self.settings.prune_l2_weight
        return model

    def _fresh_weights(self, config: Any, seed: int) -> dict[str, torch.Tensor]:
        """Weights of another random initialisation; the random streams stay where they are."""
        streams = states.random_state()
        init_seed(seed, config["reproducibility"])
        model = get_model(config["model"])(config, self.train_data._dataset)
        states.set_random_state(streams)
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    def load_journal(self) -> None:
        """Take over the tickets that an earlier process finished."""
        for record in self.folder.tickets():
            ticket = Ticket.from_record(record)
            self.tickets[ticket.ticket] = ticket
        if 0 in self.tickets:
            self._drop_untrained(self.tickets[0].untrained)

    def _drop_untrained(self, names: list[str]) -> None:
        reason = "received no gradient in the dense training"
        self.scope = self.scope.without(names, reason).require_targets(self.config["model"])

    def masks_of(self, ticket: Ticket) -> MaskSet:
        """The masks of a finished ticket, hash-checked."""
        if ticket.mask_file is None or ticket.mask_sha256 is None:
            raise StoreError(f"ticket {ticket.ticket} has no mask")
        return MaskSet.from_bytes(self.folder.read(ticket.mask_file, ticket.mask_sha256), self.scope)

    def checkpoint_of(self, ticket: Ticket) -> dict[str, Any]:
        """RecBole's checkpoint of a finished ticket, hash-checked, then unpickled."""
        data = self.folder.read(ticket.checkpoint_file, ticket.checkpoint_sha256)
        return torch.load(BytesIO(data), map_location="cpu", weights_only=False)  # type: ignore[no-any-return]

    def weights_of(self, ticket: Ticket) -> dict[str, torch.Tensor]:
        """The best weights of a finished ticket (a state dict on the CPU)."""
        if self._weights is None or self._weights[0] != ticket.ticket:
            self._weights = ticket.ticket, self.checkpoint_of(ticket)["state_dict"]
        return self._weights[1]

    def obtain(self, number: int, plan: Callable[[], Plan]) -> Ticket:
        """The finished ticket ``number``; it is planned and trained only if the journal does not have it."""
        if number not in self.tickets:
            self.tickets[number] = self._train(plan())
            self._bench = None
        self.progress.ticket_done(self.tickets[number])
        return self.tickets[number]

    def dense(self) -> Ticket:
        """Ticket 0: the dense model through the same way."""
        return self.obtain(0, lambda: Plan(0, MaskSet.dense(self.scope)))

    def validate(self, weights: dict[str, torch.Tensor], masks: MaskSet) -> float:
        """Validation score of given weights under masks, without any training."""
        if self._bench is None:
            self._bench = self._trainer(Plan(-1, None, train=False), self.config)
        plan = Plan(-1, masks, rewind="none", weights=weights, train=False)
        self._set_up(self._bench.model, plan, self.config)
        states.reseed(self._loaders(), self.config["seed"])
        init_seed(self.config["seed"], self.config["reproducibility"])
        result = self._bench.evaluate(self.select_data, load_best_model=False)
        return float(calculate_valid_score(result, self.config["valid_metric"].lower()))

    def trained_model(self, ticket: Ticket) -> Any:
        """The model of a finished ticket with its best weights, as RecBole would test it."""
        masks = None if ticket.mask_file is None else self.masks_of(ticket)
        changes = ticket.method.get("changes", {})
        config = self.config.with_changes(**changes) if changes else self.config
        model = self.build_model(config)
        checkpoint = self.checkpoint_of(ticket)
        model.set_masks(masks)
        model.load_state_dict(checkpoint["state_dict"])
        model.load_other_parameter(checkpoint.get("other_parameter"))
        return model.eval()

    def _set_up(self, model: Any, plan: Plan, config: Any) -> None:
        """Give a newly built model the weights and masks of a plan."""
        if plan.rewind == "reinit":
            states.set_weights(model, self._fresh_weights(config, config["seed"] + 7919 * (plan.ticket + 1)))
        elif plan.rewind == "late" and plan.ticket > 0:
            states.set_weights(model, self._rewind_state()["weights"])
        elif plan.weights is not None:
            model.load_state_dict(plan.weights)
        model.set_masks(plan.masks)
        if plan.weights is not None and hasattr(model, "update_attentive_A"):
            with torch.no_grad():  # KGAT's graph follows from its weights but is not saved with them
                model.update_attentive_A()

    def _rewind_state(self) -> dict[str, Any]:
        """The dense run's state before epoch ``prune_rewind_epoch``."""
        path = self.folder.path / REWIND_FILE
        if not path.exists():
            epochs = self.tickets[0].epochs
            raise ConfigError(
                f"prune_rewind_epoch={self.settings.prune_rewind_epoch}: the dense training stopped after "
                f"{epochs} epochs; choose a number below {epochs}"
            )
        return codec.decode(self.folder.read(REWIND_FILE, self.tickets[0].method["rewind_sha256"]))  # type: ignore[no-any-return]

    def _trainer(self, plan: Plan, config: Any) -> Any:
        """Model and trainer of a plan, nothing trained yet."""
        model = self.build_model(config)
        if plan.prepare is not None:
            plan.prepare(model)
        self._set_up(model, plan, config)
        name = f"checkpoints/ticket-{plan.ticket:03d}.pth"
        digest: dict[str, str] = {}

        def save_checkpoint(data: bytes) -> None:
            digest["sha256"] = self.folder.write(name, data)

        session = Session(
            ticket=plan.ticket,
            loaders=self._loaders(),
            watch=states.AttributeWatch(model),
            save_checkpoint=save_checkpoint,
            load_checkpoint=lambda: self.folder.read(name, digest["sha256"]),
            save_interval=self.settings.prune_save_interval,
            report=self.progress.epoch_done,
            learning_rate_schedule=self.settings.prune_lr_schedule,
            warmup=self.settings.prune_lr_warmup,
            fixed_progress=plan.rewind == "none" and plan.ticket > 0,
        )
        trainer_class = mask_aware_trainer(get_trainer(config["MODEL_TYPE"], config["model"]))
        trainer = trainer_class(config, model, session)
        trainer.saved_model_file = str(self.folder.path / name)
        trainer.checkpoint_digest = digest
        return trainer

    def _train(self, plan: Plan) -> Ticket:
        config = self.config.with_changes(**plan.changes) if plan.changes else self.config
        sparsity = plan.masks.sparsity if plan.masks is not None else 1 - (plan.kept or 0) / self.scope.prunable
        self.logger.info(f"ticket {plan.ticket}: sparsity {sparsity:.4f}")
        self.progress.ticket_started(plan.ticket, sparsity)
        trainer = self._trainer(plan, config)
        method = dict(plan.method)
        received = set()
        if plan.ticket == 0:
            received = trainer.model.watch_gradients([target.name for target in self.scope])
        valid: Any = None
        if plan.train:
            self._connect_state(trainer, plan, method, received)
            valid = self._fit(trainer, config)
        if valid is None:  # a pretraining stage, no validation data, or nothing to train
            if not plan.train or not trainer.best_epoch:
                trainer._save_checkpoint(trainer.epochs_done - 1)
            valid = trainer.evaluate(self.select_data, load_best_model=True)
        show = config["show_progress"]
        test = trainer.evaluate(self.test_data, load_best_model=True, show_progress=show)
        untrained = [t.name for t in self.scope if t.name not in received] if plan.ticket == 0 and plan.train else []
        return self._finish(plan, trainer, _finite(valid, plan), _finite(test, plan), untrained, method)

    def _fit(self, trainer: Any, config: Any) -> Any:
        _, valid = trainer.fit(
            self.train_data, self.select_data, saved=True, show_progress=config["show_progress"], verbose=True
        )
        return valid

    def _first_epoch(self, plan: Plan) -> int:
        return int(self.settings.prune_rewind_epoch) if plan.rewind == "late" and plan.ticket > 0 else 0

    def _connect_state(self, trainer: Any, plan: Plan, method: dict[str, Any], received: set[str]) -> None:
        """Resume points, late rewinding, and what of both is found on disk."""
        session = trainer.session

        def save_state(epoch: int, state: dict[str, Any]) -> None:
            extra = {"checkpoint": dict(trainer.checkpoint_digest), "received": sorted(received), "method": method}
            self.folder.save_resume(plan.ticket, epoch, codec.encode(state), extra)

        session.save_state = save_state
        late = self.settings.prune_rewind == "late"
        if plan.ticket == 0 and late:

            def keep_state(epoch: int, state: dict[str, Any]) -> None:
                method["rewind_epoch"] = epoch
                method["rewind_sha256"] = self.folder.write(REWIND_FILE, codec.encode(state))

            session.keep_state, session.keep_epoch = keep_state, self.settings.prune_rewind_epoch
        if plan.rewind == "late" and plan.ticket > 0:
            session.rewind = self._rewind_state()
            trainer.start_epoch = self._first_epoch(plan)
        found = self.folder.load_resume(plan.ticket)
        if found is not None:
            point, data = found
            self.logger.info(f"ticket {plan.ticket} continues at epoch {point['epoch']}")
            session.resume, session.rewind = codec.decode(data), None
            trainer.start_epoch = point["epoch"]
            trainer.checkpoint_digest.update(point["checkpoint"])
            received.update(point["received"])
            method.update(point["method"])

    def _finish(
        self,
        plan: Plan,
        trainer: Any,
        valid: dict[str, float],
        test: dict[str, float],
        untrained: list[str],
        method: dict[str, Any],
    ) -> Ticket:
        """Write mask and journal line of a trained ticket."""
        masks = plan.masks
        if untrained:
            self._drop_untrained(untrained)
            masks = None if masks is None else masks.restricted_to(self.scope)
        mask_file = None if masks is None else f"masks/ticket-{plan.ticket:03d}.safetensors"
        kept = masks.kept if masks is not None else int(plan.kept or 0)
        score = float(calculate_valid_score(valid, self.config["valid_metric"].lower()))
        dense = self.tickets.get(0)
        wins_metric, wins, relative = (
            (None, None, None)
            if dense is None
            else judge(score, trainer.best_epoch, trainer.history, dense, self.bigger)
        )
        if plan.changes:
            method = {**method, "changes": plan.changes}
        ticket = Ticket(
            ticket=plan.ticket,
            sparsity=1 - kept / self.scope.prunable,
            kept=kept,
            prunable=self.scope.prunable,
            parameters=self.scope.parameters,
            epochs=trainer.epochs_done - self._first_epoch(plan) if plan.train else 0,
            best_epoch=trainer.best_epoch if plan.train else 0,
            valid=valid,
            test=test,
            valid_score=score,
            wins_metric=wins_metric,
            wins=wins,
            train_seconds=round(trainer.train_seconds, 3),
            eval_seconds=round(trainer.eval_seconds, 3),
            seed=self.config["seed"],
            mask_file=mask_file,
            mask_sha256=None if masks is None or mask_file is None else self.folder.write(mask_file, masks.to_bytes()),
            checkpoint_file=f"checkpoints/ticket-{plan.ticket:03d}.pth",
            checkpoint_sha256=trainer.checkpoint_digest["sha256"],
            history=[list(point) for point in trainer.history],
            relative_epochs=relative,
            untrained=untrained,
            method=method,
        )
        self.folder.append_ticket(ticket.to_record())
        self.folder.drop_resume()
        return ticket


@contextmanager
def _recbole_says(what: str) -> Iterator[None]:
    """Turn RecBole's refusal of data or a model into one message, before any training."""
    try:
        yield
    except (PruneError, MemoryError):
        raise
    except Exception as error:
        getLogger().debug("cause", exc_info=True)
        text = " ".join(str(error).split()) or "no reason given"
        raise ConfigError(f"RecBole cannot {what}: {type(error).__name__}: {text}") from error


def _finite(metrics: Any, plan: Plan) -> dict[str, float]:
    """Metrics as plain floats.

    Raises:
        TrainingError: one is NaN or infinite.
    """
    plain = {name: float(value) for name, value in metrics.items()}
    for name, value in plain.items():
        if not isfinite(value):
            raise TrainingError(f"ticket {plan.ticket}: the metric {name} is {value}; check the data and the model")
    return plain
