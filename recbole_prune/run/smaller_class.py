"""A structured ticket as a checkpoint of its class with smaller settings, which plain RecBole loads and trains on."""

from __future__ import annotations

from logging import getLogger

from recbole_prune.anatomy.units.table import anatomy_of
from recbole_prune.errors import RecBoleError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.unit_masks import units_of
from recbole_prune.run.store import RunFolder
from recbole_prune.run.workshop import Workshop
from recbole_prune.training import state as states
from recbole_prune.training.session import Files, Session
from recbole_prune.training.trainer import MaskAwareTrainer


def write_smaller(
    workshop: Workshop, folder: RunFolder, ticket: int, trainer: MaskAwareTrainer, masks: MaskSet
) -> dict[str, object]:
    """Write the checkpoint of a trained ticket, where the class can be built with the units that are left.

    Args:
        workshop: builds its models.
        folder: where it goes.
        ticket: its number.
        trainer: has trained it.
        masks: zero on whole units.

    Returns:
        fields for the journal line: the settings, the file and its sha256; none where there is no such class, or it
        cannot be built, which is no reason to lose the ticket.
    """
    try:
        found = _smaller(workshop, trainer, masks)
    except (RecBoleError, RuntimeError, ValueError, KeyError, TypeError) as error:
        getLogger("recbole_prune").warning(f"no checkpoint of a smaller class: {type(error).__name__} {error}")
        return {}
    if found is None:
        return {}
    settings, data = found
    name = f"checkpoints/ticket-{ticket:03d}-smaller.pth"
    return {"smaller": {"settings": settings, "checkpoint_file": name, "checkpoint_sha256": folder.write(name, data)}}


def _smaller(workshop: Workshop, trainer: MaskAwareTrainer, masks: MaskSet) -> tuple[dict[str, object], bytes] | None:
    """Settings of the smaller class and RecBole's checkpoint of it."""
    large = workshop.build_model()
    anatomy = anatomy_of(large)
    changes = anatomy.smaller(units_of(anatomy, masks))
    if changes is None:
        return None
    trainer.load_best()
    large.whole_units, large.storage = True, "auto"
    large.load_trained(trainer.model.state_dict(), masks)
    small = workshop.build_model(changes)
    states.copy_into(states.weights_of(small), states.weights_of(large))
    files = Files()
    session = Session("a smaller class", workshop.loaders, files)
    workshop.trainer(small, session, changes)._save_checkpoint(max(0, trainer.best_epoch - 1))
    return changes, files.load_checkpoint()
