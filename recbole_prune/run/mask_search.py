"""A training before the tickets that finds the masks of all of them and is no ticket itself."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from recbole_prune.errors import StoreError
from recbole_prune.run.store import SEARCH, SERIES, RunFolder
from recbole_prune.run.ticket import mask_file
from recbole_prune.run.ticket_training import TicketTraining
from recbole_prune.training.parts import Part, Training
from recbole_prune.training.tracking import tracked


@dataclass(frozen=True)
class FoundMask:
    """The masks of one ticket.

    Attributes:
        masks: as :meth:`~recbole_prune.masking.masks.MaskSet.to_bytes` gives them.
        epoch: of the search in which they were found, 1 for the first.
        step: optimizer steps of the search before.
        reached: whether the search came to the size of the ticket by itself; else it ended and what was best was taken.
    """

    masks: bytes
    epoch: int
    step: int
    reached: bool

    def to_record(self) -> dict[str, Any]:
        """All but the masks, in JSON's types."""
        return {name: value for name, value in vars(self).items() if name != "masks"}


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        found: masks by the number of the ticket.
        epochs: that were trained.
        train_seconds: wall-clock seconds of these.
        energy: joules and watts, as of a ticket; None where nothing was measured.
    """

    found: Mapping[int, FoundMask]
    epochs: int
    train_seconds: float
    energy: dict[str, Any] | None = None


class Searcher(Part):
    """A part that finds masks while a model trains.

    Attributes:
        found: masks, those of ticket 1 first.
    """

    found: list[FoundMask]

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to find."""
        raise NotImplementedError

    def end_search(self, trainer: Training) -> None:
        """Find now what is missing: the last epoch is over."""
        raise NotImplementedError


class _SearchEndedError(Exception):
    """Leaves RecBole's epoch loop between two epochs."""


class MaskSearch(TicketTraining):
    """Trains until the masks are found, at most the epochs of a ticket; nothing is validated, tested or checkpointed.

    It can be killed and continued as any training. The number of its plan is that of the first ticket, which it goes
    before; among the plan's parts is one :class:`Searcher`.
    """

    stage: ClassVar[str] = "search"

    @property
    def name(self) -> str:
        """For messages."""
        return "the search for masks"

    @property
    def _searcher(self) -> Searcher:
        return next(part for part in self.parts if isinstance(part, Searcher))

    def find(self) -> SearchResult:
        """Search, or continue to, and write what is found."""
        trainer, searcher = self.trainer, self._searcher
        self.progress.search_begins(self.workshop.steps_per_epoch)
        self.meter.begin()
        self._connect_state()
        series = self.folder.subfolder(SERIES) / self.stage
        with tracked(trainer, series, self.folder.path.name), suppress(_SearchEndedError):
            trainer.fit(self.workshop.train_data, None, saved=False, show_progress=False)
        if not searcher.is_over:
            searcher.end_search(trainer)
        found = dict(enumerate(searcher.found, self.plan.ticket))
        result = SearchResult(found, trainer.epochs_done, round(trainer.train_seconds, 3), self.meter.record())
        _write(result, self.folder)
        self.folder.drop_resume()
        return result

    def before_epoch(self, epoch: int, trainer: Training) -> None:
        """Stop if all is found, else as before every epoch."""
        if self._searcher.is_over:
            raise _SearchEndedError
        super().before_epoch(epoch, trainer)

    def save_checkpoint(self, data: bytes) -> None:
        """Keep none: pretraining stages write some anyway."""


def _write(result: SearchResult, folder: RunFolder) -> None:
    tickets = []
    for number, found in result.found.items():
        name = mask_file(number)
        digest = folder.write(name, found.masks)
        tickets.append({"ticket": number, "mask_file": name, "mask_sha256": digest, **found.to_record()})
    cost = {"epochs": result.epochs, "train_seconds": result.train_seconds, "energy": result.energy}
    folder.write_search({**cost, "tickets": tickets})


def read_search(folder: RunFolder) -> SearchResult | None:
    """What an earlier process found; None where the search has not ended yet.

    Raises:
        StoreError: it is damaged or of another run.
    """
    record = folder.read_search()
    if record is None:
        return None
    try:
        found = {
            line["ticket"]: FoundMask(
                folder.read(line["mask_file"], line["mask_sha256"]),
                *(line[name] for name in ("epoch", "step", "reached")),
            )
            for line in record["tickets"]
        }
        return SearchResult(found, record["epochs"], record["train_seconds"], record["energy"])
    except (KeyError, TypeError) as error:
        raise StoreError(f"{folder.path / SEARCH} is no record of a search: {type(error).__name__} {error}") from error
