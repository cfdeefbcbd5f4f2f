"""What the journal says under ``measured``: entries, bytes, MACs, memory, latency, energy. No result changes by it."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from recbole.data.dataloader import FullSortEvalDataLoader

from recbole_prune.data.batches import first_batch
from recbole_prune.data.random_streams import preserved_random_streams
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scope import Scope
from recbole_prune.metering.machine import open_meter
from recbole_prune.metering.macs import measure_macs
from recbole_prune.metering.memory import peak_bytes, reset_peak_bytes
from recbole_prune.metering.sizes import bytes_of_model
from recbole_prune.metering.windows import Meter
from recbole_prune.scoring.user_values import users_of
from recbole_prune.training.lists import latency, list_maker, nothing_changed

if TYPE_CHECKING:
    from recbole.data.dataloader import AbstractDataLoader

    from recbole_prune.config.prune_config import PruneConfig
    from recbole_prune.config.settings import Settings
    from recbole_prune.run.workshop import Workshop
    from recbole_prune.training.trainer import MaskAwareTrainer

Record = dict[str, Any]  # JSON
_said: set[str] = set()


def meter_of(config: PruneConfig) -> Meter:
    """What measures the energy of a run; a machine without meters is said once."""
    settings = config.settings
    if not settings.measure_energy:
        return Meter()
    meter = open_meter(
        config["device"], idle_seconds=settings.measure_idle_seconds, list_seconds=settings.measure_seconds
    )
    text = said_of_meters(meter.describe())
    if text not in _said:  # teachers and the student alone are runs of their own
        _said.add(text)
        logger = getLogger("recbole_prune")
        (logger.info if meter.has_meters else logger.warning)(text)
    return meter


def said_of_meters(meters: Mapping[str, Mapping[str, Any]]) -> str:
    """Which parts of the machine are measured and how, and why the others are not, in a line."""
    missing: dict[tuple[str, str], list[str]] = {}
    for part, meter in meters.items():
        if meter["method"] is None:
            missing.setdefault((meter["reason"], meter["detail"]), []).append(part)
    measured = [f"{part} by {meter['method']}" for part, meter in meters.items() if meter["method"] is not None]
    without = [f"{' and '.join(parts)} {reason} ({detail})" for (reason, detail), parts in missing.items()]
    if not measured:
        return f"energy and power: not measured: {'; '.join(without)}"
    return f"energy and power of {', '.join(measured)}" + (f"; not measured: {'; '.join(without)}" if without else "")


class PeakMemory:
    """The most bytes of the parts of a ticket: of the whole process, and of torch's tensors on a GPU.

    Attributes:
        peaks: by part ``host_bytes`` and ``device_bytes`` (None without a GPU).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.peaks: dict[str, Record] = {}
        self._begin()

    def _begin(self) -> None:
        reset_peak_bytes()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def note(self, part: str) -> None:
        """Take the peak since the part before as that of this one."""
        on_device = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None
        self.peaks[part] = {"host_bytes": peak_bytes(), "device_bytes": on_device}
        self._begin()


def ranking(trainer: MaskAwareTrainer, loader: AbstractDataLoader) -> Record | None:
    """How long the evaluation that was just made took; None where it did not rank all items.

    Computing the metrics is a part of it, which is the same for every ticket.
    """
    if not (loader and isinstance(loader, FullSortEvalDataLoader)):
        return None
    return {
        "seconds": round(trainer.last_evaluation_seconds, 6),
        "users": len(users_of(loader)),
        "threads": torch.get_num_threads(),
        "device": trainer.device.type,
        "way": trainer.evaluation_way,
    }


def recommend(trainer: MaskAwareTrainer, loader: AbstractDataLoader, meter: Meter, users: int) -> Record | None:
    """Have making lists measured, and time those of some users one by one.

    Returns:
        what :func:`~recbole_prune.training.lists.latency` says; None where the model fails at it, which costs a figure
        and not the ticket.
    """
    if not (loader and (meter.measures or users)):
        return None
    try:
        with nothing_changed(trainer, loader):
            found = latency(trainer, loader, users)
            work = list_maker(trainer, loader) if meter.measures else None
            if work is not None:
                meter.recommend(work)
    except (RuntimeError, IndexError, ValueError) as error:
        getLogger("recbole_prune").warning(f"lists were not measured: {type(error).__name__} {error}")
        return None
    return found


def weights(
    scope: Scope, masks: MaskSet | None, kept: int, checkpoint: Path, width: int = 4, small: int | None = None
) -> Record:
    """Entries, bytes of the weights by format, bytes of the checkpoint on disk.

    Args:
        scope: of the run.
        masks: of the ticket; None where it is a smaller dense model.
        kept: entries of the targets that are live.
        checkpoint: its file.
        width: bytes of a value.
        small: trainable entries of a model that whole units were taken out of; None: of full size.
    """
    others = scope.parameters - scope.prunable
    live = others + kept if small is None else small
    if masks is None or small is not None:
        by_format = dict.fromkeys(("dense", "best"), width * live)
    else:
        matrices = [(target.rows, target.width, int(masks.per_row(target.name).sum())) for target in scope]
        by_format = bytes_of_model(matrices, others, width)
    return {
        "parameters": scope.parameters,
        "live_parameters": live,
        "bytes_by_format": by_format,
        "checkpoint_bytes": checkpoint.stat().st_size if checkpoint.exists() else None,
    }


def macs(
    workshop: Workshop,
    masks: MaskSet | None,
    changes: Mapping[str, Any],
    whole_units: bool = False,
    moved: bool = False,
) -> Record:
    """Multiply-accumulates of a ticket, and the parameters that its ranking reads.

    They are counted on a newly built model, where only shapes and masks matter. Nothing fails and no stream moves.

    Args:
        workshop: of the run.
        masks: of the ticket; None where it is a smaller dense model.
        changes: settings that the ticket's model has of its own.
        whole_units: the masks are zero on whole units, which the ticket trained without.
        moved: the masks changed while it was trained.

    Returns:
        ``macs`` as :meth:`MacsReport.to_dict` says it, or their ``not_counted`` with the reason; and
        ``ranking_parameters``, None where they could not be counted.
    """
    try:
        with preserved_random_streams(workshop.loaders):
            model = workshop.build_model(changes)
            if whole_units:
                model.whole_units = True
                model.set_masks(masks)
            worn = {} if masks is None or model.shrunk is not None else masks
            batch = first_batch(workshop.train_data, model)
            report = measure_macs(model, workshop.config_with(changes), workshop.dataset, batch, worn)
    except Exception as error:  # a figure beside the result is no reason to lose the result
        getLogger("recbole_prune").debug("cause", exc_info=True)
        reason = f"{type(error).__name__}: {error}"
        return {"macs": {"not_counted": [reason]}, "ranking_parameters": None}
    between = _steps_between_dense_gradients(workshop.config.settings) if moved else None
    return {"macs": report.to_dict(between), "ranking_parameters": report.parameters}


def _steps_between_dense_gradients(settings: Settings) -> float | None:
    """Of masks that move; None where they do without asking for gradients."""
    if settings.prune_moments == "dense":
        return 1.0  # the moments of pruned entries take every gradient
    if settings.prune_growth != "gradient":
        return None
    return max(1.0, float(settings.prune_update_interval) / int(settings.prune_gradient_window))


def entries_of(model: torch.nn.Module) -> int:
    """Trainable entries, of a tensor with several names once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
