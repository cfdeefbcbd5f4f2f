"""Which tickets of a run are as good as its dense model: the tested statement beside ``wins``.

Tested are the values of users on the test data, of the metric that tickets are picked by; of sequential data with
several histories of a user their mean. Validation picks and the test is read once, so the test chose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recbole_prune.disk.user_values import Arrays, name_of
from recbole_prune.report.statistics import mean_of_users, verdicts
from recbole_prune.run.summary import AsGood
from recbole_prune.run.ticket import Ticket

# RecBole's metrics with a value for each user
_OF_USERS = ("recall", "mrr", "ndcg", "hit", "precision", "map")


def as_good_of(tickets: Sequence[Ticket], values: Arrays, valid_metric: str, margin: float) -> AsGood:
    """Test the pruned tickets of a run against its dense model.

    Args:
        tickets: of the run.
        values: of its users, by the names of their file.
        valid_metric: RecBole's setting.
        margin: share of the dense model's mean by which a ticket may be worse.
    """
    metric, dense = valid_metric.lower(), next((ticket for ticket in tickets if ticket.ticket == 0), None)
    pruned = [ticket.ticket for ticket in tickets if ticket.ticket > 0]
    usual = values.get(name_of("test", 0, metric))
    found = {number: values[name] for number in pruned if (name := name_of("test", number, metric)) in values}
    if usual is not None and found:
        users = values["test/users"]
        of_users = {number: mean_of_users(each, users) for number, each in found.items()}
        tests = verdicts(mean_of_users(usual, users), of_users, margin)
        return AsGood(metric, margin, {number: test.to_json() for number, test in tests.items()})
    return AsGood(metric, margin, not_tested=_reason(dense, metric) if pruned else None)


def _reason(dense: Ticket | None, metric: str) -> str:
    if dense is None:
        return "this run has no dense model"
    if not dense.test:
        return "there is no test data"
    if metric.partition("@")[0] not in _OF_USERS:
        return f"{metric} has no value for each user"
    return "an older version trained these tickets and did not keep what each user scored"


def as_good_legend(tested: AsGood, shown: bool) -> list[str]:
    """What the column says where it is shown, and why this run has nothing in it; nothing where nothing was pruned."""
    missing = [f"as good: not tested, {tested.not_tested}"] if tested.not_tested else []
    if not shown:
        return missing
    answers = f"yes = loses less than {_percent(tested.margin)} of dense, no = more, open = undecided"
    return [f"as good: tested over test users; {answers}", *missing]


def verdict_sentence(
    chosen: Ticket, tested: AsGood, sizes: tuple[int | None, int | None], faster: float | None
) -> list[str]:
    """What to do with the chosen ticket, one sentence; none where it is the dense model.

    Args:
        chosen: the exported ticket.
        tested: the tests of its run.
        sizes: bytes of its weights and of the dense model's in an artifact.
        faster: how many times faster than the dense model it ranks; None where that was not measured.
    """
    if chosen.ticket == 0:
        return []
    gains = _gains(sizes, faster)
    block, number = tested.blocks.get(chosen.ticket), chosen.ticket
    if block is None:
        why = tested.not_tested or "there is no dense model to compare with"
        return [f"Ticket {number} is {gains}; whether it is as good is not tested: {why}."]
    loss, margin = _loss(tested.metric, block), _percent(tested.margin)
    if block["as_good"] == "yes":
        return [f"Take ticket {number}: it is {gains}, and {loss}: as good as the dense model within {margin}."]
    if block["as_good"] == "no":
        return [f"Keep the dense model if {margin} matters: ticket {number} is {gains}, but {loss}."]
    size = "" if block["decidable"] else f", and {block['users']:,} users cannot decide it at this size"
    said = f"whether it is as good as the dense model within {margin} is open"
    return [f"Ticket {number} is {gains}, but {said}: {loss}{size}."]


def _gains(sizes: tuple[int | None, int | None], faster: float | None) -> str:
    size, dense = sizes
    on_disk = f"{size:,} bytes on disk" if size else "of unknown size on disk"
    if size and dense:
        on_disk = f"{_times(dense / size, 'smaller', 'larger')} on disk"
    speed = "(speed not measured)" if faster is None else f"and {_times(faster, 'faster', 'slower')} to rank"
    return f"{on_disk} {speed}"


def _times(factor: float, more: str, less: str) -> str:
    if f"{factor:.3g}" == "1":
        return f"no {more}"
    return f"{factor:.3g} times {more}" if factor > 1 else f"{1 / factor:.3g} times {less}"


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _loss(metric: str, block: Mapping[str, Any]) -> str:
    """The change of the metric on the test data with its interval."""
    change, (low, high) = block["change_percent"], block["interval_percent"]
    if block["as_good"] == "yes" and block["p_noninferior"] is None:
        return f"every user has the same test {metric}"
    if change is None:
        return f"the dense model has a test {metric} of 0"
    if low is None or high is None:
        return f"test {metric} changes by {change:+.1f} %"
    return f"test {metric} changes by {change:+.1f} % of dense (95 % interval {low:+.1f} to {high:+.1f} %)"
