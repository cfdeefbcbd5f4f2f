"""How far a ticket is from its dense model, with an interval over users, and what the tests of its run say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

import numpy as np

from recbole_prune.disk.user_values import Ids
from recbole_prune.errors import StoreError
from recbole_prune.report.folders import RunRecord
from recbole_prune.report.page.entries import Entry, Study, number_in, picked_by
from recbole_prune.report.page.scales import NOT_MEASURED, digits
from recbole_prune.report.statistics import change_of, mean_of_users
from recbole_prune.report.users import UserValues, read_users

Change = tuple[Optional[float], Optional[float], Optional[float]]
UNKNOWN: Change = (None, None, None)


class Quality:
    """Changes and verdicts of the entries of a study, each computed once.

    Attributes:
        problems: in a sentence each which values of users could not be read.
    """

    def __init__(self, study: Study) -> None:
        self._part = study.part
        self._changes: dict[tuple[int, str], Change] = {}
        self.problems: list[str] = []
        runs = {entry.run.path: entry.run for entry in study.entries}
        self._users = {path: self._read_users(run) for path, run in runs.items()}
        self._repeated = {path: self._repeated_users(users) for path, users in self._users.items()}

    def users_of(self, run: RunRecord) -> UserValues | None:
        """What users score in the tickets of a run; None where that was not kept."""
        return self._users[run.path]

    def _read_users(self, run: RunRecord) -> UserValues | None:
        """Values of users, None of an older run, and where they are damaged."""
        try:
            return read_users(run)
        except StoreError as error:
            self.problems.append(f"no intervals: {error}")
            return None

    def _repeated_users(self, users: UserValues | None) -> Ids | None:
        """The user of each row, where some have several rows (sequential data); else None."""
        ids = None if users is None else users.users(self._part)
        return None if ids is None or len(np.unique(ids)) == len(ids) else ids

    def picked_by(self, entry: Entry) -> str:
        """The metric that tickets of its run are picked by, as the journal names it."""
        return picked_by(entry.run)

    def numbers_of(self, entry: Entry, metric: str) -> Change:
        """The change to the dense model in percent of it, and the ends of its 95 % interval."""
        key = (id(entry), metric)
        if key not in self._changes:
            self._changes[key] = self._change(entry, metric)
        return self._changes[key]

    def _change(self, entry: Entry, metric: str) -> Change:
        dense = entry.run.dense
        value, usual = entry.metric(self._part, metric), number_in(dense, self._part, metric)
        if entry.is_dense or value is None or not usual:
            return UNKNOWN
        users = self._users[entry.run.path]
        of_dense = None if users is None else users.values(self._part, 0, metric)
        of_ticket = None if users is None else users.values(self._part, entry.number, metric)
        if of_dense is not None and of_ticket is not None:
            ids = self._repeated[entry.run.path]
            pair = (
                (of_dense, of_ticket) if ids is None else [mean_of_users(each, ids) for each in (of_dense, of_ticket)]
            )
            try:
                change, (low, high) = change_of(*pair)
                return change, low, high
            except ValueError:  # a user has no value
                pass
        return 100 * (value - usual) / abs(usual), None, None

    def change_text(self, entry: Entry, metric: str) -> str:
        """The change and its interval in a cell of a table."""
        if entry.is_dense:
            return "-"
        change, low, high = self.numbers_of(entry, metric)
        if change is None:
            return NOT_MEASURED
        interval = f" [{low:+.2f}, {high:+.2f}]" if low is not None and high is not None else ""
        return f"{change:+.2f}{interval}" if abs(change) < 1e6 else digits(change)

    def interval_of(self, entry: Entry, metric: str) -> tuple[float, float] | None:
        """The interval of the change as values of the metric, around the dense model's value."""
        _, low, high = self.numbers_of(entry, metric)
        dense = entry.run.dense
        usual = number_in(dense, self._part, metric)
        if low is None or high is None or usual is None:
            return None
        return usual + abs(usual) * low / 100, usual + abs(usual) * high / 100

    def test_of(self, entry: Entry) -> Mapping[str, Any]:
        """The verdict that its run wrote about a pruned ticket; empty where it wrote none."""
        tickets = (entry.run.summary or {}).get("tickets", [])
        test = next((ticket.get("as_good") for ticket in tickets if ticket["ticket"] == entry.number), None)
        return test if isinstance(test, Mapping) else {}

    def not_tested(self, entry: Entry) -> str:
        """Why there is no verdict, as its run says it."""
        tested = (entry.run.summary or {}).get("as_good")
        reason = tested.get("not_tested") if isinstance(tested, Mapping) else None
        return reason if isinstance(reason, str) else "its run kept no values of users"

    def verdict_of(self, entry: Entry) -> str | None:
        """``yes``, ``no`` or ``open``; None where nothing was tested."""
        verdict = self.test_of(entry).get("as_good")
        return verdict if verdict in ("yes", "no", "open") else None

    def verdict_text(self, entry: Entry) -> str:
        """The verdict in a cell of a table."""
        return "dense" if entry.is_dense else self.verdict_of(entry) or NOT_MEASURED

    def margin_of(self, entry: Entry) -> float:
        """The share of the dense model's value that a ticket may lose."""
        return number_in(self.test_of(entry), "margin") or 0.0
