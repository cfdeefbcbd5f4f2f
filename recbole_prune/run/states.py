"""The recorder of teacher states: checkpoints of a training before its end, spaced by validation score.

Which epochs they are follows from the best score, which is known at the end only, and no training is repeated for them.
So more are kept meanwhile, a bounded number, and of these the ones of the rule stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from logging import getLogger
from typing import Any

import torch

from recbole_prune.masking.masks import MaskSet
from recbole_prune.run.store import STATES, RunFolder
from recbole_prune.training.parts import Part, State, Training

# for every state that is to stay, so many are kept while the training goes on
_KEPT_PER_STATE = 4


def fractions(count: int) -> list[float]:
    """At which fractions of the best validation score the states before the last one stand.

    The steps fall evenly: 4/10, 3/10, 2/10 and 1/10 of the way for four states, hence 40, 70 and 90 %
    (methods/distillation_ranking.md, section 7); 2/3 for two, 1/2 and 5/6 for three.

    Args:
        count: of all states, the best checkpoint included.
    """
    whole = count * (count + 1) / 2
    return [1 - (left * (left + 1) / 2) / whole for left in range(count - 1, 0, -1)]


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that may become a state.

    Attributes:
        epoch: trained epochs.
        score: of the validation.
        file, sha256: where it is.
    """

    epoch: int
    score: float
    file: str
    sha256: str


def reached(score: float, first: float, best: float) -> float:
    """How far a score is: its fraction of the best one; of the way from the first to the best where lower is better."""
    return score / best if best > max(first, 0) else (score - first) / (best - first)


class StateRecorder(Part):
    """Records the states of a training.

    A checkpoint becomes a candidate when its score is better than every score before, for the first epoch past any
    fraction of the best score is one of these. Those below the lowest fraction never come into question again. Where
    there are still too many, the one goes whose neighbours are nearest to each other in score: an epoch of the rule
    that went is replaced by the next one that stayed, and the journal says so.

    Args:
        folder: of the run.
        ticket: number of the ticket.
        count: of the states that stay, the ticket's own checkpoint included.
    """

    name = "states"

    def __init__(self, folder: RunFolder, ticket: int, count: int) -> None:
        self._folder, self._ticket, self._count = folder, ticket, count
        self._fractions = fractions(count)
        self._history: list[tuple[int, float]] = []
        self._candidates: list[Candidate] = []
        self._in_point: set[str] = set()

    def begin(self, trainer: Training) -> None:
        """Remove what a process left that was killed behind the resume point."""
        self._history = trainer.history
        self._sweep()

    def checkpoint_saved(self, trainer: Training, data: bytes) -> None:
        """Make it a candidate if it is better than those before."""
        self._history = trainer.history
        if not self._history or self._history[-1][0] != trainer.epochs_done:
            return  # not by a validation, as in stages of pretraining
        epoch, score = self._history[-1]
        if self._candidates and self._candidates[-1].score == score:
            return
        file = f"{STATES}/ticket-{self._ticket:03d}-epoch-{epoch:05d}.pth"
        self._candidates.append(Candidate(epoch, score, file, self._folder.write(file, data)))
        self._thin()
        self._sweep()

    def _thin(self) -> None:
        """Drop candidates until there are few enough."""
        places = [self._reached(candidate.score) for candidate in self._candidates]
        while len(places) > 1 and places[0] < self._fractions[0]:
            del places[0], self._candidates[0]
        while len(places) > _KEPT_PER_STATE * self._count:
            before = [self._fractions[0], *places[:-2]]
            gaps = [after - earlier for earlier, after in zip(before, places[1:])]
            dropped = gaps.index(min(gaps))
            del places[dropped], self._candidates[dropped]

    def _reached(self, score: float) -> float:
        first, best = self._history[0][1], self._candidates[-1].score
        return 1.0 if score == best else reached(score, first, best)

    def _sweep(self) -> None:
        """Remove files of this training that neither it nor its resume point has any more."""
        needed = {candidate.file for candidate in self._candidates} | self._in_point
        for file in self._folder.names(STATES):
            if file.startswith(f"{STATES}/ticket-{self._ticket:03d}-") and file not in needed:
                self._folder.remove(file)

    def state(self) -> State:
        """The candidates."""
        return {"candidates": [asdict(candidate) for candidate in self._candidates]}

    def restore(self, state: State, device: torch.device) -> None:
        """Go on with the candidates of a resume point."""
        self._candidates = [Candidate(**candidate) for candidate in state["candidates"]]
        self.point_saved()

    def point_saved(self) -> None:
        """From now on a killed training goes on with the present candidates."""
        self._in_point = {candidate.file for candidate in self._candidates}

    def report(self, masks: MaskSet | None) -> dict[str, Any]:
        """The states that stay, earliest first; the last one is the ticket's own checkpoint and not among them.

        Of each: ``fraction`` and ``passed``, the first epoch past that fraction of the best score, and the ``epoch``
        that was kept for it, with ``score``, ``file`` and ``sha256``.
        """
        kept = list(self._chosen())
        logger = getLogger("recbole_prune")
        shown = ", ".join(f"{one['epoch']} (past {100 * one['fraction']:.0f} %{self._instead(one)})" for one in kept)
        logger.info(f"ticket {self._ticket}: states of the epochs {shown or 'none'} are kept beside its checkpoint")
        if len(kept) < self._count - 1:
            logger.info(
                f"distill_record_states={self._count}: {len(kept) + 1} states in all, since no more validations first "
                "passed a fraction of the best score"
            )
        return {"states": {"count": self._count, "kept": kept}}

    @staticmethod
    def _instead(state: dict[str, Any]) -> str:
        return "" if state["epoch"] == state["passed"] else f", which epoch {state['passed']} passed first"

    def _chosen(self) -> Iterator[dict[str, Any]]:
        """For every fraction the first candidate past it, each once."""
        last = None
        for fraction in self._fractions if self._candidates else ():
            found = next(one for one in self._candidates if self._reached(one.score) >= fraction)
            if found is last or found is self._candidates[-1]:
                continue
            last = found
            passed = next(epoch for epoch, score in self._history if self._reached(score) >= fraction)
            yield {"fraction": round(fraction, 6), "passed": passed, **asdict(found)}
