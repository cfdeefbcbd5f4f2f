"""TensorBoard and Weights & Biases: every ticket is a series of its own, closed when its training ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole.trainer import trainer as recbole_trainer
from torch.utils.tensorboard import SummaryWriter

from recbole_prune.compat.places import Nowhere
from recbole_prune.config.fingerprint import to_json
from recbole_prune.data.random_streams import preserved_random_streams
from recbole_prune.ranks.group import is_first

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.trainer import Trainer


class _Series(SummaryWriter):
    """A writer whose hyperparameters stand in its own series; torch would add a series named by the time of day."""

    def add_hparams(
        self, hparam_dict: Mapping[str, Any], metric_dict: Mapping[str, Any], *_: object, **__: object
    ) -> None:
        super().add_hparams(hparam_dict, metric_dict, run_name=".")


@contextmanager
def tracked(trainer: Trainer, folder: Path, group: str) -> Iterator[None]:
    """What the trainer trains meanwhile is a series of its own; afterwards its files and threads are closed.

    A training that continues replaces what an earlier process wrote of the epochs that it repeats. Of several processes
    the first has the series.

    Args:
        trainer: one that was built without any series; its ``start_epoch`` is known.
        folder: for TensorBoard; its name is the name of the series.
        group: what W&B shows the series together with.
    """
    if not is_first():
        yield
        return
    with ExitStack() as open_series:
        series = _Series(str(folder), purge_step=trainer.start_epoch)
        open_series.callback(series.close)
        trainer.tensorboard = series
        if trainer.config["log_wandb"]:
            _begin_wandb(trainer.config, folder, group, open_series)
            trainer.wandblogger = recbole_trainer.WandbLogger(trainer.config)
        try:
            yield
        finally:
            trainer.tensorboard = trainer.wandblogger = Nowhere()


def _begin_wandb(config: Config, folder: Path, group: str, open_series: ExitStack) -> None:
    """A W&B run for the ticket, in the group of the run folder; a run that the user has begun takes all tickets."""
    import wandb

    if wandb.run is None:
        settings = to_json(config.final_config_dict)
        with preserved_random_streams():
            wandb.init(project=config["wandb_project"], config=settings, name=folder.name, group=group, dir=str(folder))
        open_series.callback(wandb.finish)
