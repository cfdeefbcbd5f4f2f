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
    tickets = list(tickets)
    names = needless(which, folder, tickets, chosen)
    checkpoints = {ticket.checkpoint_file: str(ticket.ticket) for ticket in tickets}
    staying = [ticket for ticket in tickets if _stays(which, ticket, chosen)]
    missed = [str(ticket.ticket) for ticket in staying if not (folder.path / ticket.checkpoint_file).exists()]
    removed, size = [checkpoints[name] for name in names if name in checkpoints], 0
    for name in names:
        size += (folder.path / name).stat().st_size if name != REWIND else 0
        folder.remove(name)
    logger, setting = getLogger("recbole_prune"), f"prune_keep_checkpoints={which}"
    if removed:
        logger.info(f"{setting}: removed the checkpoints of tickets {', '.join(removed)}, {size:,} bytes")
    if missed:
        logger.info(
            f"{setting}: the checkpoints of tickets {', '.join(missed)} were not kept when this run ended before; only "
            "training anew brings them back (--fresh=True)"
        )


def needless(which: str, folder: RunFolder, tickets: Iterable[Ticket], chosen: Ticket) -> list[str]:
    """The files of a finished run that are not to stay, in the order in which they are removed.

    Args:
        which, folder, tickets, chosen: as for :func:`keep`.
    """
    names = []
    for ticket in tickets:
        if _stays(which, ticket, chosen):
            continue
        if folder.has(ticket.checkpoint_file):
            # the one that says that something is left goes last
            names += [name for name in reversed(ticket.checkpoint_files) if folder.has(name)]
        if ticket.ticket == 0 and folder.has(REWIND):  # of use to those only who share the dense model
            names.append(REWIND)
    return names


def _stays(which: str, ticket: Ticket, chosen: Ticket) -> bool:
    return which == "all" or (which == "chosen" and (ticket.ticket == chosen.ticket or _is_shared(ticket)))


def _is_shared(ticket: Ticket) -> bool:
    """Whether it is the dense model, trained here and not taken over from a run that has it."""
    return ticket.ticket == 0 and "adopted_from" not in ticket.method
