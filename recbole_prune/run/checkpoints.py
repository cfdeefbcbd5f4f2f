"""Which checkpoints of a finished run stay (``prune_keep_checkpoints``), and what is said where one is missed."""

from __future__ import annotations

from collections.abc import Iterable
from logging import getLogger

from recbole_prune.errors import StoreError
from recbole_prune.run.store import REWIND, RunFolder
from recbole_prune.run.ticket import Ticket


def read(folder: RunFolder, ticket: Ticket) -> bytes:
    """The bytes of a ticket's checkpoint, hash-checked.

    Raises:
        StoreError: it was not kept, or it is damaged.
    """
    path, number = folder.path / ticket.checkpoint_file, ticket.ticket
    if not folder.has(ticket.checkpoint_file):
        raise StoreError(
            f"{path} is missing: prune_keep_checkpoints=chosen and none remove it when a run is finished. Without it "
            f"ticket {number} cannot be exported or continued: use the artifact that is there, restore the file from a "
            "copy, or train anew with --prune_keep_checkpoints=all --fresh=True (this folder is kept aside)"
        )
    return folder.read(ticket.checkpoint_file, ticket.checkpoint_sha256)


def keep(which: str, folder: RunFolder, tickets: Iterable[Ticket], chosen: Ticket) -> None:
    """Remove the checkpoints of a finished run that are not to stay, and say so in one line.

    The run must need none of them any more: all its tickets are in the journal, the artifact is written. A process
    that is killed meanwhile leaves some of them, which the same command removes.

    Args:
        which: ``prune_keep_checkpoints``.
        folder: of the run.
        tickets: all of its journal.
        chosen: the exported one.

    Raises:
        StoreError: a file cannot be removed.
    """
    removed, missed, size = [], [], 0
    for ticket in tickets:
        path = folder.path / ticket.checkpoint_file
        stays = which == "all" or (which == "chosen" and (ticket.ticket == chosen.ticket or _is_shared(ticket)))
        if stays and not path.exists():
            missed.append(str(ticket.ticket))
        elif not stays and path.exists():
            removed.append(str(ticket.ticket))
            for name in reversed(ticket.checkpoint_files):  # the one that says that something is left goes last
                size += (folder.path / name).stat().st_size if folder.has(name) else 0
                folder.remove(name)
        if not stays and ticket.ticket == 0:
            folder.remove(REWIND)  # of use to those only who share the dense model
    logger, setting = getLogger("recbole_prune"), f"prune_keep_checkpoints={which}"
    if removed:
        logger.info(f"{setting}: removed the checkpoints of tickets {', '.join(removed)}, {size:,} bytes")
    if missed:
        logger.info(
            f"{setting}: the checkpoints of tickets {', '.join(missed)} were not kept when this run ended before; only "
            "training anew brings them back (--fresh=True)"
        )


def _is_shared(ticket: Ticket) -> bool:
    """Whether it is the dense model, trained here and not taken over from a run that has it."""
    return ticket.ticket == 0 and "adopted_from" not in ticket.method
