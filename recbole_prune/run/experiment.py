"""Trains tickets: data, model, scope and trainer of one run, and its folder.

A pruner says which mask comes next (:class:`~recbole_prune.run.ticket.Plan`); this module trains it, or finds it finished
in the journal, or continues it where a killed process left it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from logging import getLogger
from typing import Any

import torch
from recbole.data import create_dataset, data_preparation
from recbole.utils import ModelType, calculate_valid_score, get_model, init_seed

from recbole_prune.data import random_streams
from recbole_prune.data.batches import assemble_batches_fast
from recbole_prune.data.membership import samplers_over_arrays
from recbole_prune.data.user_uniform import sample_users_uniformly
from recbole_prune.errors import ConfigError, NothingToPrune, PruneError, StoreError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.padding import padding_rule
from recbole_prune.masking.scope import Scope, find_scope
from recbole_prune.run.progress import Progress
from recbole_prune.run.store import RunFolder
from recbole_prune.run.ticket import Plan, Ticket
from recbole_prune.run.ticket_training import REWIND_FILE, TicketTraining, give_weights
from recbole_prune.training import codec
from recbole_prune.training.model import batch_l2, mask_aware


class Experiment:
    """One run over one configuration.

    Attributes:
        config: the :class:`~recbole_prune.config.prune_config.PruneConfig`.
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
            # a saved loader must load where this package is not installed: it keeps RecBole's classes
            with nullcontext() if config["save_dataloaders"] else samplers_over_arrays():
                self.train_data, self.valid_data, self.test_data = data_preparation(config, self.dataset)
        assemble_batches_fast(self.train_data)
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

    @property
    def loaders(self) -> list[Any]:
        """The dataloaders of the three splits."""
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
        random_streams.reseed(self.loaders, config["seed"])
        init_seed(seed, config["reproducibility"])
        model = mask_aware(get_model(config["model"]))(config, self.train_data._dataset).to(config["device"])
        if not self.config.has_own_l2:
            model.l2_weight = self.settings.prune_l2_weight
        model.storage = self.settings.prune_storage
        return model

    def fresh_weights(self, config: Any, offset: int) -> dict[str, torch.Tensor]:
        """Initial weights under the seed moved by ``offset``; the random streams stay where they are."""
        streams = random_streams.random_state()
        init_seed(config["seed"] + offset, config["reproducibility"])
        model = get_model(config["model"])(config, self.train_data._dataset)
        random_streams.set_random_state(streams)
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    def load_journal(self) -> None:
        """Take over the tickets that an earlier process finished."""
        for record in self.folder.tickets():
            ticket = Ticket.from_record(record)
            self.tickets[ticket.ticket] = ticket
        if 0 in self.tickets:
            self.drop_untrained(self.tickets[0].untrained)

    def drop_untrained(self, names: list[str]) -> None:
        """Leave targets out of the scope that the dense training never moved."""
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
            self.tickets[number] = TicketTraining(self, plan()).run()
            self._bench = None
        self.progress.ticket_done(self.tickets[number])
        return self.tickets[number]

    def dense(self) -> Ticket:
        """Ticket 0: the dense model through the same way."""
        return self.obtain(0, lambda: Plan(0, MaskSet.dense(self.scope)))

    def validate(self, weights: dict[str, torch.Tensor], masks: MaskSet) -> float:
        """Validation score of given weights under masks, without any training."""
        if self._bench is None:
            self._bench = TicketTraining(self, Plan(-1, None, train=False)).trainer
        give_weights(self._bench.model, weights, masks)
        random_streams.reseed(self.loaders, self.config["seed"])
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
        model.storage = "masked"  # an export reads whole tables
        model.set_masks(masks)
        model.load_state_dict(checkpoint["state_dict"])
        model.load_other_parameter(checkpoint.get("other_parameter"))
        return model.eval()

    def rewind_state(self) -> dict[str, Any]:
        """The dense run's state before epoch ``prune_rewind_epoch``."""
        path = self.folder.path / REWIND_FILE
        if not path.exists():
            epochs = self.tickets[0].epochs
            raise ConfigError(
                f"prune_rewind_epoch={self.settings.prune_rewind_epoch}: the dense training stopped after "
                f"{epochs} epochs; choose a number below {epochs}"
            )
        return codec.decode(self.folder.read(REWIND_FILE, self.tickets[0].method["rewind_sha256"]))  # type: ignore[no-any-return]


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
