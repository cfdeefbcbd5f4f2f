"""Per-user values of a run folder, as a report reads them: numpy and safetensors, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recbole_prune.disk import user_values
from recbole_prune.disk.names import USERS
from recbole_prune.disk.user_values import Arrays, Floats, Ids, name_of
from recbole_prune.report.folders import RunRecord, read_run
from recbole_prune.report.statistics import SeedAverage, average_seeds


@dataclass(frozen=True)
class UserValues:
    """What each user scores in the tickets of a run; ``part`` is ``valid`` (at the best epoch) or ``test``.

    Attributes:
        arrays: by the names of the file.
    """

    arrays: Arrays

    def values(self, part: str, ticket: int, metric: str) -> Floats | None:
        """A ticket's values of a metric such as ``recall@10``, ``[users]``; None where they were not measured."""
        found = self.arrays.get(name_of(part, ticket, metric.lower()))
        return None if found is None else found.astype(np.float32, copy=False)

    def users(self, part: str) -> Ids | None:
        """Internal ids of the users, in the order of the values; None where nothing was measured."""
        found = self.arrays.get(f"{part}/users")
        return None if found is None else found.astype(np.int64, copy=False)

    def tickets(self, part: str, metric: str) -> list[int]:
        """The tickets that have values of a metric."""
        found = [user_values.ticket_in(name) for name in self.arrays if name.startswith(f"{part}/")]
        numbers = sorted({number for number in found if number is not None})
        return [number for number in numbers if name_of(part, number, metric.lower()) in self.arrays]

    def metrics(self, part: str) -> list[str]:
        """The metrics that some ticket has values of."""
        return sorted(
            {name.split("/")[2] for name in self.arrays if name.startswith(f"{part}/") and name.count("/") == 2}
        )


def read_users(folder: Path | RunRecord) -> UserValues:
    """Read ``users.safetensors``, checked against the journal; empty for folders of versions before it.

    Args:
        folder: a run folder, or what :func:`~recbole_prune.report.folders.read_run` made of it.

    Raises:
        StoreError: the file is missing though the journal names it, or damaged.
    """
    run = folder if isinstance(folder, RunRecord) else read_run(folder)
    digests: Mapping[int, object] = {line["ticket"]: line.get("users_sha256") for line in run.tickets}
    expected = {ticket: digest for ticket, digest in digests.items() if isinstance(digest, str)}
    return UserValues(user_values.read(run.path / USERS, expected))


def average_users(tickets: Sequence[tuple[UserValues | None, int]], part: str, metric: str) -> SeedAverage | None:
    """Tickets of several seeds and their dense models, user by user, averaged over the users that all seeds have.

    Args:
        tickets: under each seed what its run has, and the ticket.
        part: ``valid`` or ``test``.
        metric: such as ``recall@10``.

    Returns:
        None where a seed lacks the values, or users are rows of data (of sequential data there are several of a user).
    """
    pairs, ids = [], []
    for users, number in tickets:
        dense, ticket = (None if users is None else users.values(part, each, metric) for each in (0, number))
        names = None if users is None else users.users(part)
        if dense is None or ticket is None or names is None:
            return None
        pairs.append((dense, ticket))
        ids.append(names)
    try:
        return average_seeds(pairs, ids)
    except ValueError:  # no user in common, or one several times
        return None
