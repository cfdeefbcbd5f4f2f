"""Where RecBole writes what it logs: by itself ``log``, ``log_tensorboard``, ``saved`` in the working directory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_prune.compat import hooks

if TYPE_CHECKING:
    from recbole.config import Config


class NoSeries:
    """What RecBole's trainers call of a TensorBoard writer, writing nothing."""

    def add_scalar(self, *args: object, **kwargs: object) -> None:
        """Drop a value."""

    def add_hparams(self, *args: object, **kwargs: object) -> None:
        """Drop settings."""

    def close(self) -> None:
        """End nothing."""


@contextmanager
def trainers_write_to(series: Path | None) -> Iterator[None]:
    """Trainers that are built meanwhile make no folder for checkpoints, which the run folder takes.

    Args:
        series: folder of their TensorBoard series; None: they write none.
    """
    from recbole.trainer import trainer
    from torch.utils.tensorboard import SummaryWriter

    def writer(logger: logging.Logger) -> SummaryWriter | NoSeries:
        return NoSeries() if series is None else SummaryWriter(str(series))

    with hooks.replaced(trainer, get_tensorboard=writer, ensure_dir=lambda folder: None):
        yield


def log_to_console(config: Config) -> None:
    """RecBole's ``init_logger`` without its file: levels, colours and format of the console are RecBole's."""
    from recbole.utils import logger

    no_file = hooks.Overlay(logging, FileHandler=lambda path: logging.NullHandler())
    with hooks.replaced(logger, logging=no_file, ensure_dir=lambda folder: None):
        logger.init_logger(config)
