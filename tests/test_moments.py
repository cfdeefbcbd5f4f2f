"""Moments of tensors that were multiplied when they got smaller, in the form of the large model's optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from recbole_prune.sparse.shrinking import Shrunk
from recbole_prune.training.optimizers import dense_state

KEPT, LOST, SCALE = [0, 2], [1, 3], 0.25
OPTIMIZERS = [
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.RMSprop, {}),
    (torch.optim.Adagrad, {}),
]


class Table(nn.Module):
    """``loss`` says the same of the large table and of the scaled small one, which it divides again."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(3, 4)
        self.scale = 1.0

    def loss(self) -> torch.Tensor:
        """A fourth power of each entry."""
        return (self.rows.weight / self.scale).pow(4).sum()


def after_a_step(kind: Any, settings: dict[str, Any], small: bool) -> dict[str, Any]:
    """What the optimizer keeps of the table."""
    torch.manual_seed(0)
    model: Any = Table()
    with torch.no_grad():
        model.rows.weight[:, LOST] = 0
    if small:
        model.shrunk = Shrunk(model, {"rows.weight": {1: torch.tensor(KEPT)}}, {}, {"rows.weight": SCALE})
        model.scale = SCALE
    optimizer = kind(model.parameters(), lr=0.1, **settings)
    model.loss().backward()
    optimizer.step()
    found: dict[str, Any] = dense_state(optimizer, model)["state"][0]
    return found


@pytest.mark.parametrize(("kind", "settings"), OPTIMIZERS, ids=lambda value: getattr(value, "__name__", ""))
def test_they_are_those_of_the_large_model(kind: Any, settings: dict[str, Any]) -> None:
    large, small = (after_a_step(kind, settings, small) for small in (False, True))
    assert set(large) == set(small)
    compared = [name for name, value in large.items() if isinstance(value, torch.Tensor) and value.dim()]
    assert compared
    for name in compared:
        torch.testing.assert_close(small[name][:, KEPT], large[name][:, KEPT], rtol=1e-5, atol=0)
        assert not small[name][:, LOST].any()
