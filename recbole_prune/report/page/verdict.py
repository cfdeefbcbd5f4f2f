"""The sentence at the top of a report: which ticket to take, what it saves and what it loses."""

from __future__ import annotations

from collections.abc import Sequence

from recbole_prune.report.page.entries import Entry, Study, is_smaller_better, number_in
from recbole_prune.report.page.markup import Markup, element
from recbole_prune.report.page.quality import Quality
from recbole_prune.report.page.scales import digits, percent, size, three, whole
from recbole_prune.report.statistics import LEVEL


def headline(study: Study, quality: Quality) -> str:
    """What a person should do, in a sentence or two.

    Runs choose their tickets on validation data; of these the smallest is named that is as good as its dense model on
    test data, else the one that comes closest. Each run corrects for its own tickets only, so picking one of several
    runs takes Bonferroni's correction on top.
    """
    best = named(study, quality)
    seeds = {entry.run.seed for entry in study.entries}
    said = _said(study, quality, best)
    more = f" That is one of {len(seeds)} seeds; the table over seeds says what holds for all."
    return f"{said}{more}" if best and len(seeds) > 1 else said


def _said(study: Study, quality: Quality, best: Entry | None) -> str:
    """The sentence about a ticket."""
    if best is None:
        going = any(run.summary is None for run in study.runs if run.reason is None)
        why = "no run that prunes has ended yet" if going else "these are dense models only"
        return f"There is no ticket to judge: {why}."
    gains, loss, margin = _gains(best), _loss(best, study, quality), f"{100 * quality.margin_of(best):g} %"
    verdict = quality.verdict_of(best)
    if verdict == "yes" and _holds_among(len(_chosen(study)), best, quality):
        return f"Take {best.name}: {gains}, and {loss}: as good as the dense model within {margin}."
    closest = f"{best.name} does best beside its dense model: {gains}"
    if verdict == "yes":
        runs = f"picked from {len(_chosen(study))} runs that is no longer sure"
        return f"{closest}, and {loss}. Its own run calls it as good within {margin}; {runs}."
    if verdict == "no":
        return f"Keep the dense model if {margin} matters. {closest}, but {loss}."
    if verdict == "open":
        users = number_in(quality.test_of(best), "users")
        undecided = quality.test_of(best).get("decidable") is False and users is not None
        size_ = f", and {whole(users)} users cannot decide it at this size" if undecided else ""
        return f"{closest}, but whether it is as good within {margin} is open: {loss}{size_}."
    return f"{closest}, and {loss}. Whether it is as good was not tested: {quality.not_tested(best)}."


def _chosen(study: Study) -> list[Entry]:
    return [entry for entry in study.entries if entry.is_chosen and not entry.is_dense]


def named(study: Study, quality: Quality) -> Entry | None:
    """The ticket that the headline is about; None where no pruned ticket is chosen."""
    chosen = _chosen(study)
    good = [entry for entry in chosen if quality.verdict_of(entry) == "yes"]
    sure = [entry for entry in good if _holds_among(len(chosen), entry, quality)]
    if good:
        return min(sure or good, key=lambda entry: (entry.bytes or float("inf"), entry.live))
    return max(chosen, key=lambda entry: _change(entry, quality), default=None)


def _holds_among(runs: int, entry: Entry, quality: Quality) -> bool:
    """Whether the verdict of its run holds for a ticket that was picked from the chosen ones of several runs."""
    p_value = number_in(quality.test_of(entry), "p_adjusted")
    return runs == 1 or p_value is None or p_value * runs < LEVEL


def verdict_kind(study: Study, quality: Quality) -> str:
    """The verdict about that ticket, empty where there is none."""
    entry = named(study, quality)
    return (quality.verdict_of(entry) or "") if entry is not None else ""


def tiles(study: Study, quality: Quality) -> Markup | None:
    """The figures of that ticket, large, beside the dense model's."""
    entry = named(study, quality)
    if entry is None:
        return None
    metric = quality.picked_by(entry)
    usual = number_in(entry.run.dense, study.part, metric)
    faster = entry.times_faster
    found = [
        (
            "Weights left", percent(entry.live / entry.line["parameters"] if entry.line["parameters"] else None),
            f"{whole(entry.live)} of {whole(entry.line['parameters'])}",
        ),
        ("Size", size(entry.bytes), f"dense {size(entry.bytes_of_dense)}"),
        (f"{study.part} {metric}", digits(entry.metric(study.part, metric)), f"dense {digits(usual)}"),
        ("Ranking", *(("-", "speed not measured") if faster is None else (f"{three(faster)} x", "as fast as dense"))),
    ]  # fmt: skip
    boxes = (
        element("div", element("dt", name), element("dd", value), element("dd", beside, class_="beside"))
        for name, value, beside in found
    )
    return element("dl", boxes, class_="tiles", aria_label=entry.name)


def _change(entry: Entry, quality: Quality) -> float:
    """How good a change is; the larger, the better."""
    metric = quality.picked_by(entry)
    change = quality.numbers_of(entry, metric)[0]
    return -float("inf") if change is None else -change if is_smaller_better(metric) else change


def _gains(entry: Entry) -> str:
    """Bytes and speed beside the dense model's."""
    sizes = entry.bytes, entry.bytes_of_dense
    on_disk = (
        f"{_times(sizes[1] / sizes[0], 'smaller', 'larger')} on disk" if sizes[0] and sizes[1] else "size not measured"
    )
    faster = entry.times_faster
    return f"{on_disk} " + (
        "(speed not measured)" if faster is None else f"and {_times(faster, 'faster', 'slower')} to rank"
    )


def _times(factor: float, more: str, less: str) -> str:
    if three(factor) == "1.00":
        return f"no {more}"
    return f"{three(factor)} times {more}" if factor > 1 else f"{three(1 / factor)} times {less}"


def _loss(entry: Entry, study: Study, quality: Quality) -> str:
    """The change of the metric with its interval."""
    metric = quality.picked_by(entry)
    change, low, high = quality.numbers_of(entry, metric)
    if change is None:
        return f"{study.part} {metric} cannot be compared"
    interval = f" (95 % interval {low:+.1f} to {high:+.1f} %)" if low is not None and high is not None else ""
    return f"{study.part} {metric} changes by {change:+.1f} % of dense{interval}"


def warnings(study: Study, quality: Quality) -> Sequence[str]:
    """What is wrong with the folders of the report, in a sentence each."""
    found = []
    for run in study.runs:
        place = "/".join(run.path.parts[-3:])
        if run.reason is not None:
            found.append(f"{place} is damaged and left out: {run.reason}")
        elif run.state != "finished":
            what = "has no ticket yet" if not run.tickets else f"{len(run.tickets)} tickets so far"
            found.append(f"{place} is {run.state}: {what}")
    return [*found, *study.problems, *quality.problems]
