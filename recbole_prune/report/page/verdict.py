"""The sentence at the top of a report: which ticket to take, what it saves and what it loses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from recbole_prune.report.page.entries import Entry, Study
from recbole_prune.report.page.markup import Markup, element
from recbole_prune.report.page.quality import Quality
from recbole_prune.report.page.scales import digits, milliseconds, percent, size, three, whole


def headline(study: Study, quality: Quality) -> str:
    """What a person should do, in a sentence or two.

    Runs choose their tickets on validation data; of these the smallest is named that is as good as its dense model on
    test data, else the one that comes closest.
    """
    best = named(study, quality)
    if best is None:
        going = "; a run is not finished" if any(run.summary is None for run in study.runs) else ""
        return f"There is no chosen ticket to judge: only dense models are finished{going}."
    if verdict_kind(study, quality) == "yes":
        as_good = f"It is as good as the dense model, {_tested(best, quality)}."
        return f"Take {best.name}: {_said(best, study, quality)}. {as_good}"
    if all(quality.verdict_of(entry) is None for entry in _chosen(study)):
        untested = "Nothing was tested user by user in these runs."
        return f"Closest to its dense model comes {best.name}: {_said(best, study, quality)}. {untested}"
    verdict = "worse" if verdict_kind(study, quality) == "no" else "neither as good nor worse"
    return (
        f"No chosen ticket is shown to be as good as its dense model. Closest comes {best.name}: "
        f"{_said(best, study, quality)}. It is {verdict}, {_tested(best, quality)}."
    )


def _chosen(study: Study) -> list[Entry]:
    return [entry for entry in study.entries if entry.is_chosen and not entry.is_dense]


def named(study: Study, quality: Quality) -> Entry | None:
    """The ticket that the headline is about; None where no pruned ticket is chosen."""
    good = [entry for entry in _chosen(study) if quality.verdict_of(entry) == "yes"]
    if good:
        return min(good, key=lambda entry: (entry.bytes or float("inf"), entry.live))
    return max(_chosen(study), key=lambda entry: _change(entry, quality), default=None)


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
    usual = (entry.run.dense or {study.part: {}})[study.part].get(metric)
    found = [
        (
            "Weights left", percent(entry.live / entry.line["parameters"] if entry.line["parameters"] else None),
            f"{whole(entry.live)} of {whole(entry.line['parameters'])}",
        ),
        ("Size", size(entry.bytes), f"dense {size(entry.bytes_of_dense)}"),
        (f"{study.part} {metric}", digits(entry.metric(study.part, metric)), f"dense {digits(usual)}"),
        (
            "Ranking a user", milliseconds(entry.measured("latency", "latency_median_s")),
            f"dense {milliseconds(entry.measured_of_dense('latency', 'latency_median_s'))}",
        ),
    ]  # fmt: skip
    boxes = (
        element("div", element("dt", name), element("dd", value), element("dd", beside, class_="beside"))
        for name, value, beside in found
    )
    return element("dl", boxes, class_="tiles", aria_label=entry.name)


def _change(entry: Entry, quality: Quality) -> float:
    change = quality.numbers_of(entry, quality.picked_by(entry))[0]
    return -float("inf") if change is None else change


def _tested(entry: Entry, quality: Quality) -> str:
    share = percent(quality.margin_of(entry)).replace(".0 ", " ")
    return f"tested over users at a margin of {share}"


def _said(entry: Entry, study: Study, quality: Quality) -> str:
    """Bytes, latency and quality of a ticket beside the dense model's."""
    return ", ".join(_clauses(entry, study, quality))


def _clauses(entry: Entry, study: Study, quality: Quality) -> Iterator[str]:
    before = entry.bytes_of_dense
    if entry.bytes and before:
        yield f"{three(before / entry.bytes)} times smaller ({size(entry.bytes)} instead of {size(before)})"
    else:
        yield f"{percent(entry.line['sparsity'])} sparse"
    now, then = (of("latency", "latency_median_s") for of in (entry.measured, entry.measured_of_dense))
    if now and then:
        pace = f"{three(then / now)} times faster" if now <= then else f"{three(now / then)} times slower"
        yield f"ranks a user {pace} ({milliseconds(now)} instead of {milliseconds(then)})"
    else:
        yield "speed not measured"
    metric = quality.picked_by(entry)
    value, usual = entry.metric(study.part, metric), (entry.run.dense or {study.part: {}})[study.part].get(metric)
    if value is not None and usual is not None:
        change = quality.change_text(entry, metric)
        yield f"{study.part} {metric} {digits(value)} instead of {digits(usual)} ({change} %)"


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
