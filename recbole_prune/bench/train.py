"""``bench train``: seconds of training epochs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from recbole_prune.bench.measuring import Candidate, device_clock, first_batches, take_turns
from recbole_prune.bench.plain import PlainRun, plain_config
from recbole_prune.bench.results import Results
from recbole_prune.bench.runs import OurRun, our_config, scratch_folder, settings_of, ways_to_train
from recbole_prune.config.prune_config import PruneConfig

_WARM_UP = 20


def run(options: dict[str, Any], words: list[str], results: Results) -> None:
    """Plain RecBole, then ours at each sparsity, without and with the distiller, in turn; first some batches each."""
    with scratch_folder() as scratch:
        config = our_config(words, scratch, teaches=True, show_progress=False)
        results.settings = settings_of(config)
        candidates = [*_plain(config, scratch, options), *_ours(config, scratch, options)]
        if options["batches"]:
            results.notes.append(f"only the first {options['batches']} batches of an epoch, its start included")
        if options["together"] > 1:
            results.notes.append(f"seconds of {options['together']} epochs")
        take_turns(candidates, options["repeats"], results, device_clock(config["device"]))


def _plain(config: PruneConfig, scratch: Path, options: dict[str, Any]) -> list[Candidate]:
    plain = PlainRun(plain_config(config, scratch)).begin()
    return [_candidate("plain", None, plain.trainer, plain.train_data, plain.reseed, options)]


def _ours(config: PruneConfig, scratch: Path, options: dict[str, Any]) -> list[Candidate]:
    ours = OurRun(config, scratch)
    candidates = []
    for sparsity, taught in product(options["sparsities"], ways_to_train(config)):
        name, trainer = ours.candidate(sparsity, taught)
        candidates.append(_candidate(name, sparsity, trainer, ours.workshop.train_data, ours.reseed, options))
    return candidates


def _candidate(
    name: str,
    sparsity: float | None,
    trainer: Any,
    train_data: Any,
    reseed: Callable[[int], None],
    options: dict[str, Any],
) -> Candidate:
    batches = options["batches"]
    timed, short = first_batches(train_data, batches), first_batches(train_data, min(_WARM_UP, batches or _WARM_UP))

    def epochs() -> None:
        for _ in range(options["together"]):
            trainer._train_epoch(timed, 1)

    return Candidate(
        name,
        sparsity,
        work=epochs,
        before=reseed,
        warm_up=lambda: trainer._train_epoch(short, 0),
    )
