"""Lessons: a student, its teacher and what is seen of both while the student is taught."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from training_bench import without_clocks
from zoo import DATASET, config_for
from zoo_plain import PlainRun, reload

from recbole_prune import run_recbole_prune
from recbole_prune.config import schema
from recbole_prune.distillers import DISTILLERS, get_distiller
from recbole_prune.distillers.base import Distiller
from recbole_prune.errors import ConfigError
from recbole_prune.run.store import RunFolder
from recbole_prune.run.ticket_training import TicketTraining

EPOCHS = 2
_WEIGHT = re.compile(r"distill_(.+_)?weight$")


def used_keys(method: str) -> set[str]:
    """Keys that the property file of a distiller lists."""
    return {name for name, key in schema.known_keys().items() if ("distiller", method) in key.methods}


def kinds() -> list[str]:
    """A method of each kind: what they copy of the teacher differs."""
    found: dict[tuple[bool, ...], str] = {}
    for method in DISTILLERS:
        promises = get_distiller(method).promises
        found.setdefault((promises.vectors, promises.features, promises.lists, promises.teacher), method)
    return list(found.values())


def wider(model: str, data: Path) -> dict[str, Any]:
    """Settings of a teacher of the same class, twice as wide."""
    widths = re.compile(r"(embedding_size|hidden_size|inner_size|dimension)$")

    def double(value: Any) -> Any:
        return [double(part) for part in value] if isinstance(value, list) else 2 * value

    narrow = config_for(model, data)
    return {"epochs": EPOCHS, "embedding_size": 32, **{k: double(v) for k, v in narrow.items() if widths.search(k)}}


def copied(tensors: Any) -> dict[str, torch.Tensor]:
    """Named tensors as they are now."""
    return {name: tensor.detach().clone() for name, tensor in tensors}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two models have the same names and the same bits."""
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@dataclass
class Seen:
    """What a training of a taught ticket looks like before its first epoch.

    Attributes:
        trainer: the trainer.
        part: the distiller.
        teacher, helpers: copies of weights at that time.
    """

    trainer: Any
    part: Distiller
    teacher: dict[str, torch.Tensor] = field(default_factory=dict)
    helpers: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def teacher_model(self) -> torch.nn.ModuleList:
        """The teacher's module, or those of several."""
        found = torch.nn.ModuleList([member.model for member in self.part.teacher.members if hasattr(member, "model")])
        found.training = False  # the list, which is nobody's
        return found

    @property
    def helper_modules(self) -> list[torch.nn.Module]:
        """The networks beside the student, those of parts of a distiller included."""
        parts = [self.part, *[value for value in vars(self.part).values() if isinstance(value, Distiller)]]
        return [module for part in parts for module in part._helpers.modules()]


@dataclass
class Spy:
    """Sees every training that runs of this process begin.

    Attributes:
        taught: the trainings with a distiller.
        trainings: how many there were.
    """

    taught: list[Seen] = field(default_factory=list)
    trainings: int = 0

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """From now on, until the patch is undone."""
        run = TicketTraining.run

        def seen(training: TicketTraining) -> Any:
            self.trainings += 1
            for part in training.parts:
                if isinstance(part, Distiller):
                    lesson = Seen(training.trainer, part)
                    lesson.helpers = copied(part.parameters().items())
                    if part.promises.teacher:
                        lesson.teacher = copied(lesson.teacher_model.state_dict().items())
                    self.taught.append(lesson)
            return run(training)

        patch.setattr(TicketTraining, "run", seen)


class Outcome:
    """A finished run as its folder tells it."""

    def __init__(self, result: dict[str, Any], spy: Spy) -> None:
        self.result, self.spy = result, spy
        self.folder = RunFolder(Path(result["folder"]))

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """Its journal."""
        return self.folder.tickets()

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """The checkpoint of the last ticket."""
        file = self.folder.path / self.records[-1]["checkpoint_file"]
        found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False)
        return found

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The weights in it."""
        found: dict[str, torch.Tensor] = self.checkpoint["state_dict"]
        return found

    def read(self) -> Outcome:
        """Keep what its folder tells now."""
        _ = self.records, self.checkpoint, self.log, self.artifact
        return self

    @cached_property
    def log(self) -> str:
        """Its log."""
        return (self.folder.path / "log.txt").read_text(encoding="utf-8")

    def terms(self) -> dict[int, dict[str, float]]:
        """The sums of added losses by epoch and name, as the log has them."""
        found = re.findall(r"epoch (\d+) added losses: (.*)", self.log)
        return {int(e): {n: float(v) for n, v in (term.split() for term in text.split(", "))} for e, text in found}

    @cached_property
    def artifact(self) -> bytes:
        """The tensors of the artifact."""
        return (Path(self.result["artifact"]) / "ticket.safetensors").read_bytes()


def require_equal(one: Outcome, other: Outcome) -> None:
    """Journals without clocks, losses, weights bit for bit, artifacts byte for byte."""
    assert list(map(without_clocks, one.records)) == list(map(without_clocks, other.records))
    assert one.terms() == other.terms()
    assert equal(one.weights, other.weights)
    assert one.artifact == other.artifact


class Classroom:
    """A model as student and teacher, in one output folder, so that the teacher is trained once.

    Args:
        model: name of a model.
        data: the folder of ``tiny``.
        folder: for its runs.
    """

    def __init__(self, model: str, data: Path, folder: Path) -> None:
        self.model, self.data, self.folder = model, data, folder
        self.settings = {**config_for(model, data), "epochs": EPOCHS, "prune_fused": False, "pruner": "none"}

    def run(self, **changes: Any) -> Outcome:
        """One run."""
        settings = {**self.settings, "output_dir": str(self.folder), **changes}
        spy = Spy()
        with pytest.MonkeyPatch.context() as patch:
            spy.watch(patch)
            return Outcome(run_recbole_prune(self.model, DATASET, config_dict=settings), spy)

    def kill(self, settings: dict[str, Any], epoch: int, batch: int = 0) -> None:
        """Begin a run anew, and kill it before a batch of an epoch is taught, both counted from 0."""
        losses = Distiller.losses

        def killing(part: Distiller, *arguments: Any) -> Any:
            if (part.epoch, part._batch) == (epoch, batch):
                raise KeyboardInterrupt
            return losses(part, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Distiller, "losses", killing)
            with pytest.raises(KeyboardInterrupt):
                self.run(**settings, fresh=True)

    def lesson(self, method: str, **changes: Any) -> dict[str, Any]:
        """Settings that teach the student by a method: a wider model does, beside another class where it takes two."""
        wide = wider(self.model, self.data)
        teacher = {"distill_teacher_model": self.model, "distill_teacher_settings": wide}
        if get_distiller(method).promises.many_teachers:
            other = next(name for name in ("BPR", "LightGCN") if name != self.model)
            settings = {self.model: wide, other: wider(other, self.data)}
            teacher = {"distill_teacher_models": [self.model, other], "distill_teacher_settings": settings}
        named = {} if "distill_teacher" in changes or not get_distiller(method).promises.teacher else teacher
        return {"distiller": method, **named, "distill_alone": False, **changes}

    @cached_property
    def untaught(self) -> Outcome:
        """The student alone."""
        return self.run()

    @cached_property
    def plain(self) -> PlainRun:
        """RecBole's own data, model and trainer, as the checkpoint of the student alone has them."""
        return reload(self.untaught.folder.path / self.untaught.records[0]["checkpoint_file"])

    @cached_property
    def teacher(self) -> Path:
        """The run folder of a teacher."""
        return self.run(**wider(self.model, self.data)).folder.path


@dataclass
class Lesson:
    """A method on a model, with the run that the checks look at.

    Attributes:
        method: a name of the table.
        room: where it is taught.
    """

    method: str
    room: Classroom

    @cached_property
    def refusal(self) -> str | None:
        """The message with which the model is turned down; None if the method takes it."""
        try:
            return self.taught and None
        except ConfigError as error:
            return str(error)

    @cached_property
    def taught(self) -> Outcome:
        """The run with the teacher."""
        return self.room.run(**self.room.lesson(self.method))

    @property
    def seen(self) -> Seen:
        """The training of its only ticket."""
        assert len(self.taught.spy.taught) == 1
        return self.taught.spy.taught[0]

    def of_no_weight(self) -> Outcome:
        """The run in which the teacher's losses weigh nothing."""
        nothing = {name: 0.0 for name in used_keys(self.method) if _WEIGHT.match(name)}
        return self.room.run(**self.room.lesson(self.method, **nothing))
