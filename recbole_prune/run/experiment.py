"""The tickets of one run: those that its folder has, and those that are trained now.

A pruner says which mask comes next (:class:`~recbole_prune.run.ticket.Plan`); the experiment finds it finished in the
journal, or has it trained, or continued where a killed process left it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BytesIO
from logging import getLogger
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from recbole.utils import calculate_valid_score

from recbole_prune.anatomy.units.table import anatomy_of
from recbole_prune.artifact.forms import TableForm, forms_from_bytes
from recbole_prune.errors import StoreError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scope import Scope
from recbole_prune.masking.unit_masks import live_of
from recbole_prune.metering.windows import Meter
from recbole_prune.run import checkpoints
from recbole_prune.run.mask_search import MaskSearch, SearchResult, read_search
from recbole_prune.run.progress import Progress
from recbole_prune.run.store import CONFIG, SCOPE, RunFolder
from recbole_prune.run.ticket import Plan, Ticket
from recbole_prune.run.ticket_training import TicketTraining
from recbole_prune.run.workshop import UNTRAINED, Workshop
from recbole_prune.training import codec
from recbole_prune.training.parts import Part
from recbole_prune.training.session import Session
from recbole_prune.training.trainer import MaskAwareTrainer

if TYPE_CHECKING:
    from recbole_prune.config.prune_config import PruneConfig
    from recbole_prune.config.settings import Settings
    from recbole_prune.training.model import MaskAware

Weights = dict[str, torch.Tensor]
T = TypeVar("T", bound=TicketTraining)


class Experiment:
    """One run over one configuration.

    Attributes:
        workshop: its data and models.
        folder: where its files are.
        scope: targets of the model, decided once and stored in the folder.
        tickets: finished tickets by number.
        progress: told about tickets and epochs.
        meter: measures the windows of every ticket's training.
        distiller: makes the part that teaches a ticket; None where there is no teacher.
    """

    def __init__(
        self, workshop: Workshop, folder: RunFolder, progress: Progress | None = None, meter: Meter | None = None
    ) -> None:
        self.workshop = workshop
        self.folder = folder
        self.progress = progress or Progress(enabled=False)
        self.meter = meter or Meter()
        self.distiller: Callable[[], Part] | None = None
        self.logger = getLogger("recbole_prune")
        self.tickets: dict[int, Ticket] = {}
        self._weights: tuple[int, Weights] | None = None
        self._evaluator: MaskAwareTrainer | None = None
        self.load_journal()
        self.scope = self._decide_scope()

    @property
    def config(self) -> PruneConfig:
        """The checked settings of the run."""
        return self.workshop.config

    @property
    def settings(self) -> Settings:
        """The settings of this package among them."""
        return self.workshop.config.settings

    @property
    def bigger(self) -> bool:
        """Whether a higher validation score is better."""
        return bool(self.config["valid_metric_bigger"])

    def load_journal(self) -> None:
        """Take over the tickets that an earlier process finished."""
        for record in self.folder.tickets():
            ticket = Ticket.from_record(record)
            self.tickets[ticket.ticket] = ticket
        if self.tickets and self.folder.identity() is None:
            self.logger.info(f"{self.folder.path / CONFIG} has no seal: an older version began this run")

    def _decide_scope(self) -> Scope:
        """The scope in the folder; in a new one it is found and stored.

        Raises:
            StoreError: ``scope.json`` is damaged, or ``config.yaml`` beside it.
        """
        if self.folder.has(SCOPE):
            try:
                return Scope.from_json(self.folder.read_scope())
            except ValueError as error:
                raise StoreError(f"{self.folder.path / SCOPE} is corrupt: {error}") from error
        scope = self.workshop.find_scope(leave_out_untrained=not self.tickets)
        if 0 in self.tickets:  # version 0.1.0 found in the dense training what is never trained
            names = self.tickets[0].method.get("untrained", [])
            scope = scope.without(names, UNTRAINED).require_targets(self.config["model"])
        self.folder.write_scope(scope.to_json())
        return scope

    def masks_of(self, ticket: Ticket) -> MaskSet:
        """The masks of a finished ticket, hash-checked."""
        if ticket.mask_file is None or ticket.mask_sha256 is None:
            raise StoreError(f"ticket {ticket.ticket} has no mask")
        return MaskSet.from_bytes(self.folder.read(ticket.mask_file, ticket.mask_sha256), self.scope)

    def live_of(self, ticket: Ticket, model: MaskAware) -> dict[str, torch.Tensor]:
        """Which entries of weights are live, by name; of others all are.

        Args:
            ticket: a finished one.
            model: as it is built for the ticket, with tensors of full size.
        """
        if ticket.mask_file is None:
            return {}
        masks = self.masks_of(ticket)
        return live_of(anatomy_of(model), masks, model) if ticket.has_units else dict(masks)

    def forms_of(self, ticket: Ticket) -> dict[str, TableForm]:
        """Small forms of tables of a finished ticket, by the names of the tables; hash-checked."""
        if ticket.forms is None:
            return {}
        file = ticket.forms["file"]
        return forms_from_bytes(self.folder.read(file, ticket.forms["sha256"]), self.folder.path / file)

    def checkpoint_of(self, ticket: Ticket) -> dict[str, Any]:
        """RecBole's checkpoint of a finished ticket, hash-checked, then unpickled.

        Raises:
            StoreError: it was not kept, or it is damaged.
        """
        data = checkpoints.read(self.folder, ticket)
        checkpoint: dict[str, Any] = torch.load(BytesIO(data), map_location="cpu", weights_only=False)
        return checkpoint

    def weights_of(self, ticket: Ticket) -> Weights:
        """The best weights of a finished ticket (a state dict on the CPU)."""
        if self._weights is None or self._weights[0] != ticket.ticket:
            self._weights = ticket.ticket, self.checkpoint_of(ticket)["state_dict"]
        return self._weights[1]

    def obtain(self, number: int, plan: Callable[[], Plan]) -> Ticket:
        """The finished ticket ``number``; it is planned and trained only if the journal does not have it."""
        if number not in self.tickets:
            self.tickets[number] = self._training(TicketTraining, plan()).run()
            self.progress.ticket_done(self.tickets[number], self.config["valid_metric"].lower())
        return self.tickets[number]

    def search(self, plan: Callable[[], Plan]) -> SearchResult:
        """The masks that a training before the tickets found; it is planned and trained only if the folder lacks it."""
        found = read_search(self.folder)
        if found is None:
            found = self._training(MaskSearch, plan()).find()
            self.progress.search_done(found.epochs, found.train_seconds)
        return found

    def _training(self, kind: type[T], plan: Plan) -> T:
        self._evaluator = None  # its tables make room
        return kind(
            self.workshop,
            self.folder,
            self._taught(plan),
            scope=self.scope,
            dense=self.tickets.get(0),
            progress=self.progress,
            meter=self.meter,
            legacy=self._legacy_before(plan.ticket),
        )

    def _legacy_before(self, number: int) -> Mapping[str, Weights]:
        """What the parts of the ticket before left, by their names."""
        before = [ticket for _, ticket in sorted(self.tickets.items()) if ticket.ticket < number]
        left = [ticket.method["legacy"] for ticket in before if "legacy" in ticket.method]
        if not left:
            return {}
        found: dict[str, Weights] = codec.decode(self.folder.read(left[-1]["file"], left[-1]["sha256"]))
        return found

    def _taught(self, plan: Plan) -> Plan:
        """A plan with the distiller among its parts; where nothing is trained its journal line has the teacher too."""
        return replace(plan, parts=(*plan.parts, self.distiller())) if self.distiller and plan.taught else plan

    def dense(self, taught: bool = True) -> Ticket:
        """Ticket 0: the dense model through the same way, with the run's teacher or without."""
        return self.obtain(0, lambda: Plan(0, MaskSet.dense(self.scope), taught=taught))

    def validate(self, weights: Weights, masks: MaskSet) -> float:
        """Validation score of given weights under masks, without any training."""
        workshop = self.workshop
        if self._evaluator is None:
            session = Session("a validation", workshop.loaders, fused=False)
            self._evaluator = workshop.trainer(workshop.build_model(), session)
        self._evaluator.model.load_trained(weights, masks)
        workshop.reseed()
        result = self._evaluator.evaluate(workshop.select_data, load_best_model=False)
        return float(calculate_valid_score(result, self.config["valid_metric"].lower()))

    def trained_model(self, ticket: Ticket) -> MaskAware:
        """The model of a finished ticket with its best weights, as RecBole would test it.

        Raises:
            StoreError: its files are damaged, or it was trained on another dataset.
        """
        masks = None if ticket.mask_file is None else self.masks_of(ticket)
        model = self.workshop.build_model(ticket.changes)
        checkpoint = self.checkpoint_of(ticket)
        model.storage = "masked"  # an export reads whole tables
        try:
            model.set_masks(masks)
            model.load_state_dict(checkpoint["state_dict"])
        except (RuntimeError, IndexError, KeyError) as error:
            raise StoreError(
                f"{self.folder.path / ticket.checkpoint_file} does not fit {self.config['model']} as it is built from "
                f"dataset {self.config['dataset']}: {' '.join(str(error).split())}"
            ) from error
        model.load_other_parameter(checkpoint.get("other_parameter"))
        model.eval()
        return model
