"""``bench energy``: joules and mean power of training epochs or of making lists, with rests between the windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from recbole_prune.bench.measuring import Clock, device_clock
from recbole_prune.bench.plain import PlainRun, plain_config
from recbole_prune.bench.results import Results
from recbole_prune.bench.runs import OurRun, our_config, scratch_folder, settings_of
from recbole_prune.errors import ConfigError
from recbole_prune.metering.accounts import LISTS
from recbole_prune.metering.energy import EnergyMeter
from recbole_prune.metering.machine import open_meter
from recbole_prune.run.measuring import said_of_meters
from recbole_prune.training.lists import list_maker

if TYPE_CHECKING:
    from recbole.data.dataloader import AbstractDataLoader
    from recbole.trainer import Trainer

_PER = {"train": "an epoch", "lists": "1,000 lists"}


@dataclass(frozen=True)
class Trial:
    """One thing to measure: its name, its sparsity, the work (how many units it does), what brings it to its start."""

    name: str
    sparsity: float | None
    work: Callable[[], int]
    before: Callable[[], Any] = lambda: None


def run(options: dict[str, Any], words: list[str], results: Results) -> None:
    """Plain RecBole and ours at each sparsity, in the order A B B A; nothing is run on a machine without meters."""
    with scratch_folder() as scratch:
        config = our_config(words, scratch, epochs=1, show_progress=False)
        results.settings = settings_of(config)
        meter = open_meter(config["device"], idle_seconds=options["rest"], list_seconds=options["seconds"])
        results.settings["meters"] = meter.describe()
        results.notes.append(said_of_meters(meter.describe()))
        if not meter.has_meters:
            for name, sparsity in [("plain", None), *(("ours", sparsity) for sparsity in options["sparsities"])]:
                results.candidate(name, sparsity, failed="not measured")
            return
        results.notes.append(
            f"of {_PER[options['work']]}; net: without that of a machine at rest; windows of {options['seconds']} s "
            f"and more, {options['rest']} s of rest between them"
        )
        plain, ours = PlainRun(plain_config(config, scratch)).begin(), OurRun(config, scratch)
        trials = (_epochs if options["work"] == "train" else _lists)(plain, ours, options["sparsities"])
        take_turns(trials, meter, options, results, device_clock(config["device"]))


def _epochs(plain: PlainRun, ours: OurRun, sparsities: list[float]) -> list[Trial]:
    trials = [Trial("plain", None, _epoch(plain.trainer, plain.train_data), plain.reseed)]
    for sparsity in sparsities:
        name, trainer = ours.candidate(sparsity)
        trials.append(Trial(name, sparsity, _epoch(trainer, ours.workshop.train_data), ours.reseed))
    return trials


def _epoch(trainer: Trainer, data: AbstractDataLoader) -> Callable[[], int]:
    def work() -> int:
        trainer._train_epoch(data, 1)
        return 1

    return work


def _lists(plain: PlainRun, ours: OurRun, sparsities: list[float]) -> list[Trial]:
    """Lists of the validation's users, from a model that was trained for some epochs and pruned by magnitude."""
    weights = ours.trained(ours.config["epochs"])
    plain.wear(weights)
    sides: list[tuple[str, float | None, Any, Any]] = [("plain", None, plain.trainer, plain.valid_data)]
    for sparsity in sparsities:
        trainer = ours.trainer(ours.magnitude_masks(weights, sparsity), weights)
        sides.append(("ours", sparsity, trainer, ours.workshop.select_data))
    trials = []
    for name, of_side, trainer, data in sides:
        trainer.evaluate(data, load_best_model=False)  # what is propagated once is there from now on
        work = list_maker(trainer, data)
        if work is None:
            raise ConfigError("--work=lists is not allowed: the evaluation of these settings does not rank all items")
        trials.append(Trial(name, of_side, torch.no_grad()(work)))
    return trials


def take_turns(
    trials: Sequence[Trial], meter: EnergyMeter, options: dict[str, Any], results: Results, clock: Clock
) -> None:
    """Measure trials in turn, every second round backwards, so that a machine that warms up favours none.

    Args:
        trials: what is measured.
        meter: reads the machine.
        options: ``repeats``, and ``seconds`` of a window.
        results: gets a sample of each trial in each round.
        clock: waits for the device.
    """
    times = {id(trial): _times(trial, options["seconds"], clock) for trial in trials}
    for number in tqdm(range(options["repeats"]), desc="bench energy", unit="round", ncols=100):
        for trial in trials if number % 2 == 0 else trials[::-1]:
            trial.before()
            meter.begin()
            units = 0
            with meter.window("train"):
                for _ in range(times[id(trial)]):
                    units += trial.work()
            _add(trial, meter.record(), units, options["work"], results)
        results.save()
    for trial in trials:
        _describe(trial, results)


def _times(trial: Trial, seconds: float, clock: Clock) -> int:
    """How often the work fills a window; it is warm afterwards."""
    trial.before()
    trial.work()
    start = clock()
    trial.work()
    return max(1, ceil(seconds / max(clock() - start, 1e-6)))


def _add(trial: Trial, record: dict[str, Any], units: int, work: str, results: Results) -> None:
    """One sample: for one epoch, or for 1,000 lists; a part without a number in this window is said and left out."""
    found, scale = record["train"], (LISTS if work == "lists" else 1) / units
    parts = [part for part, meter in record["meters"].items() if meter["method"] is not None]
    joules = [found[f"{part}_energy_J"] for part in parts]
    results.add(trial.name, trial.sparsity, seconds=scale * found["window_s"])
    if None in joules:
        reasons = {f"{part}: {found[f'{part}_reason']}" for part in parts if found[f"{part}_reason"]}
        results.notes.append(f"{trial.name}: a window without a number, {', '.join(sorted(reasons))}")
        return
    results.add(trial.name, trial.sparsity, joules=scale * sum(joules), watts=sum(joules) / found["window_s"])
    net = [found[f"{part}_energy_net_J"] for part in parts]
    if None not in net:
        results.add(trial.name, trial.sparsity, net_joules=scale * sum(net))
    if record["flags"]:
        said = results.candidate(trial.name, trial.sparsity).get("flags", [])
        results.candidate(trial.name, trial.sparsity, flags=sorted({*said, *record["flags"]}))


def _describe(trial: Trial, results: Results) -> None:
    """Mean and standard deviation, and what the papers call a reduction."""
    samples = results.candidate(trial.name, trial.sparsity)["measures"].get("joules", [])
    if len(samples) > 1:
        results.candidate(trial.name, trial.sparsity, mean_joules=mean(samples), std_joules=stdev(samples))
