"""Pruners of a few lines for the tests of the conformance tests: one that keeps its promises, others that break one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from recbole_prune.artifact.forms import TableForm
from recbole_prune.config import host, paths, schema
from recbole_prune.errors import ConfigError
from recbole_prune.masking.allocate import select
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scores import uniform
from recbole_prune.pruners import PRUNERS
from recbole_prune.pruners.base import MaskPruner, Promises
from recbole_prune.pruners.quotient_remainder import QuotientRemainder
from recbole_prune.run.ticket import Plan, Ticket
from recbole_prune.training.parts import Part, Training

PROPERTIES = """# A toy: random entries in a seeded order.
prune_rate: 0.2
prune_rounds: 10
prune_target_sparsity: ~
prune_rewind: init
prune_rewind_epoch: ~
prune_allocation: global
prune_min_per_row: ~
prune_parity: exact
prune_scope: embedding
prune_include: []
prune_exclude: []
"""


def register(toy: type, monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """Offer a class of this module as ``--pruner=toy``: a property file and a line in the table."""
    copytree(paths.properties_dir(), folder / "properties")
    (folder / "properties" / "pruner" / "toy.yaml").write_text(PROPERTIES, encoding="utf-8")
    monkeypatch.setattr(paths.properties_dir, "__defaults__", (folder,))
    monkeypatch.setitem(PRUNERS, "toy", f"{__name__}:{toy.__name__}")
    forget_properties()
    return "toy"


def forget_properties() -> None:
    """Read the property files again."""
    schema.known_keys.cache_clear()
    host._settings_in_properties.cache_clear()


class Honest(MaskPruner):
    """Keeps what it promises."""

    def order(self, number: int, keep: int, dense: Ticket) -> dict[str, torch.Tensor]:
        """Scores by which entries stay."""
        return uniform(self.scope, self.experiment.config["seed"] + 1)

    def masks(self, number: int, keep: int, previous: Ticket, dense: Ticket) -> MaskSet:
        """The first entries in that order."""
        return select(self.order(number, keep, dense), MaskSet.dense(self.scope), keep)


class Miscounting(Honest):
    """Announces one entry more than it keeps."""

    def masks(self, number: int, keep: int, previous: Ticket, dense: Ticket) -> MaskSet:
        return super().masks(number, keep - 1, previous, dense)


class Unnested(Honest):
    """Draws every mask anew."""

    def order(self, number: int, keep: int, dense: Ticket) -> dict[str, torch.Tensor]:
        return uniform(self.scope, self.experiment.config["seed"] + number)


class Unseeded(Honest):
    """Draws from a stream that no seed begins."""

    def order(self, number: int, keep: int, dense: Ticket) -> dict[str, torch.Tensor]:
        return uniform(self.scope, torch.Generator().seed() % 2**31)


class DeafToTheSeed(Honest):
    """Draws the same masks whatever the seed."""

    def order(self, number: int, keep: int, dense: Ticket) -> dict[str, torch.Tensor]:
        return uniform(self.scope, 5)


class Forgetful(Honest):
    """Remembers between tickets what a new process does not know."""

    planned = 0

    def order(self, number: int, keep: int, dense: Ticket) -> dict[str, torch.Tensor]:
        self.planned += 1
        return uniform(self.scope, self.experiment.config["seed"] + (self.planned == number))


class Draught(Part):
    """Writes into pruned entries after every step."""

    name = "draught"

    def attach(self, model: Any) -> None:
        model.storage = "masked"

    def after_step(self, trainer: Training) -> None:
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if name in trainer.model.masks:
                    parameter[~trainer.model.masks[name]] = 1e-9


class Flattery(Part):
    """Scores otherwise than the weights say."""

    name = "flattery"

    def attach(self, model: Any) -> None:
        predict = model.full_sort_predict
        model.full_sort_predict = lambda batch: -predict(batch)


class Accompanied(Honest):
    """With a part in every ticket beside the dense one."""

    part: type[Part]

    def plan(self, number: int, keep: int, previous: Ticket, dense: Ticket) -> Plan:
        return replace(super().plan(number, keep, previous, dense), parts=(self.part(),))


class Leaky(Accompanied):
    """Pruned entries are not zero while it trains."""

    part = Draught


class Flattering(Accompanied):
    """Its checkpoints do not score as its journal says."""

    part = Flattery


class Idle(Honest):
    """Says that it trains."""

    def plan(self, number: int, keep: int, previous: Ticket, dense: Ticket) -> Plan:
        plan = super().plan(number, keep, previous, dense)
        return replace(plan, rewind="none", weights=self.experiment.weights_of(dense), train=False)


class Busy(Honest):
    """Says that it does not."""

    promises = Promises(trains=False)


class Masked(Honest):
    """Says that it has no masks."""

    promises = Promises(masks=False, exact=False)


class Understating(QuotientRemainder):
    """Has small forms that are a byte larger than it says."""

    def _method(self, keep: int, size: int, forms: Mapping[str, TableForm]) -> dict[str, Any]:
        told = super()._method(keep, size, forms)
        return {**told, "bytes": told["bytes"] - 1}


class Dispensing(Honest):
    """Says that it can do without the dense model."""

    promises = Promises(needs_dense=False)


class Boastful(Honest):
    """Keeps the first rows and says that these are the best."""

    promises = Promises(above_random=True)

    def order(self, number: int, keep: int, dense: Ticket) -> dict[str, torch.Tensor]:
        rows = {target.name: torch.arange(target.shape[0], 0, -1) for target in self.scope}
        return {target.name: rows[target.name].float()[:, None].expand(target.shape) for target in self.scope}


class Choosy(Honest):
    """Turns models down for a reason that it does not list."""

    def check(self) -> None:
        raise ConfigError("not today")


class Frank(Choosy):
    """Lists the reason."""

    promises = Promises(refuses=("not to.ay",))


class Late(Frank):
    """Lists it, and trains the dense model first."""

    def check(self) -> None:
        """Nothing."""

    def tickets(self) -> Iterator[Ticket]:
        yield self.experiment.dense()
        raise ConfigError("not today")
