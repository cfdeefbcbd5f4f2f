"""TensorBoard and Weights & Biases: every ticket is a series of its own, closed when its training ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole.trainer import trainer as recbole_trainer
from torch.utils.tensorboard import SummaryWriter

from recbole_prune.compat.hooks import replaced
from recbole_prune.config.fingerprint import to_json
from recbole_prune.data.random_streams import preserved_random_streams

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from recbole.config import Config
    from recbole.trainer import Trainer


class _Nowhere:
    """Takes what RecBole's trainers send to TensorBoard and W&B, and keeps nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def _take(self, *args: object, **kwargs: object) -> None:
        pass

    add_scalar = add_hparams = log_metrics = log_eval_metrics = _take


class _Series(SummaryWriter):
    """A writer whose hyperparameters stand in its own series; torch would add a series named by the time of day."""

    def add_hparams(
        self, hparam_dict: Mapping[str, Any], metric_dict: Mapping[str, Any], *_: object, **__: object
    ) -> None:
        super().add_hparams(hparam_dict, metric_dict, run_name=".")


def untracked() -> AbstractContextManager[None]:
    """RecBole's trainers that are built meanwhile write to neither, and make no folder for it."""
    return replaced(recbole_trainer, get_tensorboard=_Nowhere, WandbLogger=_Nowhere)


@contextmanager
def tracked(trainer: Trainer, folder: Path, name: str) -> Iterator[None]:
    """What the trainer trains meanwhile is the series ``name``; afterwards its files and threads are closed.

    A training that continues replaces what an earlier process wrote of the epochs that it repeats.

    Args:
        trainer: one that was built :func:`untracked`; its ``start_epoch`` is known.
        folder: of the run. TensorBoard finds the series of all tickets in ``folder/tensorboard``.
        name: of the series.
    """
    with ExitStack() as open_series:
        series = _Series(str(folder / "tensorboard" / name), purge_step=trainer.start_epoch)
        open_series.callback(series.close)
        trainer.tensorboard = series
        if trainer.config["log_wandb"]:
            _begin_wandb(trainer.config, folder, name, open_series)
            trainer.wandblogger = recbole_trainer.WandbLogger(trainer.config)
        try:
            yield
        finally:
            trainer.tensorboard = trainer.wandblogger = _Nowhere()


def _begin_wandb(config: Config, folder: Path, name: str, open_series: ExitStack) -> None:
    """A W&B run for the ticket, in the group of the run folder; a run that the user has begun takes all tickets."""
    import wandb

    if wandb.run is None:
        settings = to_json(config.final_config_dict)
        with preserved_random_streams():
            wandb.init(project=config["wandb_project"], config=settings, name=name, group=folder.name, dir=str(folder))
        open_series.callback(wandb.finish)
