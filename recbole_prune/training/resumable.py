"""Trainings that can be stopped before any epoch and continued, or begun again from where another one was."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from recbole_prune.data import random_streams
from recbole_prune.masking.masks import MaskSet
from recbole_prune.scoring.user_values import Values
from recbole_prune.sparse.compact import take_writes
from recbole_prune.training import state as states
from recbole_prune.training.parts import State

if TYPE_CHECKING:
    from recbole_prune.training.model import MaskAware
    from recbole_prune.training.session import Session

_COUNTERS = ("cur_step", "best_valid_score", "best_valid_result", "train_loss_dict")
_OWN = ("history", "best_epoch", "epochs_done", "train_seconds", "eval_seconds")


class Resumable:
    """The states of a :class:`~recbole_prune.training.trainer.MaskAwareTrainer`, whose attributes these are."""

    model: MaskAware
    session: Session
    device: torch.device
    best_masks: MaskSet | None
    best_values: Values | None
    _first_masks: MaskSet | None
    _watch: states.AttributeWatch

    @cached_property
    def _added_parameters(self) -> dict[str, Mapping[str, nn.Parameter]]:
        """The parameters that parts bring, by part and name."""
        return {part.name: part.parameters() for part in self.session.parts}

    def resume_state(self) -> State:
        """Everything that the epochs to come depend on."""
        model = self.model
        take_writes(model)
        parts = self.session.parts
        return {
            "parts": {
                part.name: {"state": part.state(), "parameters": dict(self._added_parameters[part.name])}
                for part in parts
            },
            "best_values": self.best_values,
            "masks": None if model.masks is self._first_masks else self._masks_now(),
            "weights": states.weights_of(model),
            "attributes": self.changed_attributes(),
            "optimizers": states.optimizer_state(self),
            "reached": states.reached_parameters(self),
            "random": random_streams.random_state(),
            "loaders": random_streams.loader_states(self.session.loaders),
            "trainer": {name: _plain(getattr(self, name)) for name in (*_COUNTERS, *_OWN)},
        }

    def changed_attributes(self) -> dict[str, Any]:
        """Plain attributes of the model that changed since it was built, by path."""
        return self._watch.changed()

    def restore_attributes(self, attributes: dict[str, Any]) -> None:
        """Set attributes as :meth:`changed_attributes` gave them."""
        self._watch.restore(attributes)

    def _masks_now(self) -> list[np.ndarray | None]:
        """The masks in force and those of the best epoch, packed; None before the first checkpoint."""
        both = self.model.masks, self.best_masks
        return [None if masks is None else np.frombuffer(masks.to_bytes(), np.uint8) for masks in both]

    def rewind_state(self) -> State:
        """What a rewound ticket starts from; without clocks, so that equal trainings keep equal bytes."""
        state = self.resume_state()
        return {name: state[name] for name in ("weights", "attributes", "random", "loaders")}

    def _start_from(self, state: State) -> None:
        """Take over a state: all of a resume point; of a rewind state counters, random streams and data order."""
        if "trainer" in state:
            self._restore(states.current_form(state))
        attributes = state["attributes"]
        if self.model.shrunk is not None and "trainer" not in state:  # tables of a rewind state are as wide as dense
            attributes = {name: value for name, value in attributes.items() if not isinstance(value, torch.Tensor)}
        self.restore_attributes(attributes)
        random_streams.set_loader_states(self.session.loaders, state["loaders"])
        random_streams.set_random_state(state["random"])

    def _restore(self, state: State) -> None:
        if state["masks"] is not None and self._first_masks is not None:
            scope = self._first_masks.scope
            now, best = (None if data is None else MaskSet.from_bytes(data.tobytes(), scope) for data in state["masks"])
            if now is not None:
                self.model.move_masks(now, [])
            self.best_masks = best
        for part in self.session.parts:
            part.restore(state["parts"][part.name]["state"], self.device)
            states.copy_into(self._added_parameters[part.name], state["parts"][part.name]["parameters"])
        states.copy_into(states.weights_of(self.model), state["weights"])
        states.set_optimizer_state(self, state["optimizers"])
        states.set_reached_parameters(self, state.get("reached", {}))  # 0.1.0 did not note them
        self.best_values = state.get("best_values")  # older versions did not keep them
        for name, value in state["trainer"].items():
            setattr(self, name, value)


def _plain(value: Any) -> Any:
    """RecBole's ordered dicts and numpy numbers as plain values."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.item() if hasattr(value, "item") and not isinstance(value, torch.Tensor) else value
