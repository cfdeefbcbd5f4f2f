"""Where RecBole writes what it logs: by itself ``log``, ``log_tensorboard``, ``saved`` in the working directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recbole_prune.compat import hooks


class Nowhere:
    """What RecBole's trainers call of a TensorBoard writer and of W&B, writing nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def _drop(self, *args: object, **kwargs: object) -> None:
        pass

    add_scalar = add_hparams = log_metrics = log_eval_metrics = _drop


@contextmanager
def trainers_write_to(series: Path | None) -> Iterator[None]:
    """Trainers that are built meanwhile make no folder for checkpoints, for which the caller has a place.

    Args:
        series: folder of their TensorBoard series; None: they write none, and nothing to W&B either.
    """
    from recbole.trainer import trainer
    from torch.utils.tensorboard import SummaryWriter

    members: dict[str, object] = {"ensure_dir": lambda folder: None}
    if series is None:
        members.update(get_tensorboard=Nowhere, WandbLogger=Nowhere)
    else:
        members["get_tensorboard"] = lambda logger: SummaryWriter(str(series))
    with hooks.replaced(trainer, **members):
        yield
