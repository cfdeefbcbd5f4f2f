"""``bench train``: seconds of a training epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from recbole_prune.bench.measuring import Candidate, device_clock, first_batches, take_turns
from recbole_prune.bench.results import Results
from recbole_prune.bench.runs import OurRun, PlainRun, Request, scratch_folder, settings_of

_WARM_UP = 20


def run(options: dict[str, Any], words: list[str], results: Results) -> None:
    """Plain RecBole, then ours at each sparsity, in turn; before that some batches of each to warm up."""
    with scratch_folder() as scratch:
        request = Request.of(words, scratch, show_progress=False)
        config = request.ours()
        results.settings = settings_of(config)
        candidates = [*_plain(request, config, scratch, options), *_ours(config, scratch, options)]
        if options["batches"]:
            results.notes.append(f"only the first {options['batches']} batches of an epoch, its start included")
        take_turns(candidates, options["repeats"], results, device_clock(config["device"]))


def _plain(request: Request, config: Any, scratch: Path, options: dict[str, Any]) -> list[Candidate]:
    plain = PlainRun(request.plain(config), scratch)
    return [_candidate("plain", None, plain.trainer, plain.train_data, plain.reseed, options["batches"])]


def _ours(config: Any, scratch: Path, options: dict[str, Any]) -> list[Candidate]:
    ours = OurRun(config, scratch)
    trainers = {sparsity: ours.trainer(ours.random_masks(sparsity)) for sparsity in options["sparsities"]}
    return [
        _candidate("ours", sparsity, trainer, ours.experiment.train_data, ours.reseed, options["batches"])
        for sparsity, trainer in trainers.items()
    ]


def _candidate(
    name: str,
    sparsity: float | None,
    trainer: Any,
    train_data: Any,
    reseed: Callable[[int], None],
    batches: int | None,
) -> Candidate:
    timed, short = first_batches(train_data, batches), first_batches(train_data, min(_WARM_UP, batches or _WARM_UP))
    return Candidate(
        name,
        sparsity,
        work=lambda: trainer._train_epoch(timed, 1),
        before=reseed,
        warm_up=lambda: trainer._train_epoch(short, 0),
    )
