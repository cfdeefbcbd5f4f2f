"""Per-user values of a run's tickets: put into its ``users.safetensors``, taken over from another run, checked."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from typing import TYPE_CHECKING

import numpy as np

from recbole_prune.disk import user_values
from recbole_prune.disk.names import USERS
from recbole_prune.disk.user_values import Arrays, name_of
from recbole_prune.errors import StoreError
from recbole_prune.scoring.user_values import Values, users_of

if TYPE_CHECKING:
    from recbole.data.dataloader import AbstractDataLoader

    from recbole_prune.run.store import RunFolder
    from recbole_prune.run.ticket import Ticket


def arrays_of(ticket: int, part: str, values: Values | None, loader: AbstractDataLoader) -> Arrays:
    """A ticket's values of a part of the data under the names of the file; none where the metrics have none.

    Args:
        ticket: its number.
        part: ``valid`` or ``test``.
        values: of the evaluation; None where it was not seen, as by a version before these files.
        loader: what was evaluated.
    """
    if not values or not loader:
        return {}
    users = users_of(loader)
    if any(len(each) != len(users) for each in values.values()):
        getLogger("recbole_prune").warning(f"values of users are not kept: {type(loader).__name__} has other rows")
        return {}
    named: Arrays = {name_of(part, ticket, metric): each for metric, each in values.items()}
    return {f"{part}/users": users, **named}


def keep(folder: RunFolder, ticket: int, arrays: Arrays) -> str | None:
    """Add a ticket's values to the file, before its line is written, which gets the sha256 that is returned.

    Raises:
        StoreError: the file is damaged, cannot be written, or has other users.
    """
    if not arrays:
        return None
    known = read(folder)
    for name in known.keys() & arrays.keys():
        if not np.array_equal(known[name], arrays[name]):
            raise StoreError(f"{folder.path / USERS}: {name} are not those of ticket {ticket}: the data are others")
    folder.write(USERS, user_values.encode({**known, **arrays}))
    return user_values.digest_of(arrays, ticket)


def read(folder: RunFolder) -> Arrays:
    """The values of all tickets of a run that have any.

    Raises:
        StoreError: the file is missing or damaged.
    """
    return user_values.read(folder.path / USERS, _expected(folder))


def adopt(dense: Ticket, other: RunFolder, folder: RunFolder) -> None:
    """Take over the values of another run's ticket 0; where it has none there is nothing to do.

    Raises:
        StoreError: the file there is missing or damaged, or the one here cannot be written.
    """
    if dense.users_sha256 is not None:
        keep(folder, 0, user_values.read(other.path / USERS, {0: dense.users_sha256}))


def _expected(folder: RunFolder) -> Mapping[int, str]:
    lines = {line["ticket"]: line.get("users_sha256") for line in folder.tickets()}
    return {ticket: digest for ticket, digest in lines.items() if digest is not None}
