"""The cells of a comparison: methods x sparsities x seeds x models x datasets, each with the command that runs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from logging import getLogger
from pathlib import Path
from typing import NamedTuple

from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.config.usage import is_used
from recbole_prune.config.words import launch
from recbole_prune.disk.names import method_name
from recbole_prune.errors import PruneError
from recbole_prune.masking.bound import sparsity_of_budget
from recbole_prune.run.opening import run_path

# in this order: what a phase trains, the later ones take over
DENSE, TAUGHT_DENSE, PRUNED = 1, 2, 3
PHASES = {DENSE: "dense models", TAUGHT_DENSE: "dense models with a teacher", PRUNED: "pruned models"}


class Axes(NamedTuple):
    """What is compared; of sparsities and budgets one is empty."""

    models: Sequence[str]
    datasets: Sequence[str]
    pruners: Sequence[str]
    distillers: Sequence[str | None]
    sparsities: Sequence[float]
    budgets: Sequence[float]
    seeds: Sequence[int]
    values: Sequence[str]


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        phase: cells of a later phase begin when those of the same model, data and seed have ended.
        group: cells that share a dense model; until one of them has trained it, they run one by one.
        folder: of the run.
        words: of the command, after ``recbole-prune``.
        sparsity: the target, None for the dense model, and for methods without one.
        budget: the share of the dense bytes that the sparsity stands for, None where sparsities were asked for.
        values: number formats in which the result is exported too, beside the one that the run exports.
        int4_clip: how int4 among them finds the range of a row.
    """

    model: str
    dataset: str
    seed: int
    pruner: str
    distiller: str | None
    sparsity: float | None
    budget: float | None
    phase: int
    group: str
    folder: Path
    words: tuple[str, ...]
    values: tuple[str, ...]
    int4_clip: str

    @property
    def method(self) -> str:
        """How tables name it."""
        return method_name("dense" if self.pruner == "none" else self.pruner, self.distiller)

    @property
    def name(self) -> str:
        """It in a few words."""
        size = None if self.sparsity is None else f"sparsity {100 * self.sparsity:g} %"
        if size is not None and self.budget is not None:
            size = f"budget {100 * self.budget:g} % ({size})"
        return ", ".join(filter(None, (f"{self.model} on {self.dataset}", f"seed {self.seed}", size, self.method)))

    @property
    def before(self) -> tuple[str, str, int]:
        """What cells that wait for each other have in common."""
        return self.model, self.dataset, self.seed


class Plan(NamedTuple):
    """The cells, the configs they were made with, and warnings that hold for every cell that prunes."""

    cells: list[Cell]
    configs: list[PruneConfig]
    warnings: list[str]


def plan(axes: Axes, words: Sequence[str]) -> Plan:
    """Every cell once, dense ones first; all of their settings are checked.

    Args:
        axes: what is compared.
        words: the other settings, as :func:`~recbole_prune.config.words.launch` takes them.

    Raises:
        PruneError: a setting is refused; the message names the cell.
    """
    cells: dict[Path, Cell] = {}
    configs, warnings = [], []
    for options in _options(axes):
        cell, config = _cell(axes, words, *options)
        if cell.folder in cells:  # a method without a target sparsity has one cell for all of them
            continue
        cells[cell.folder] = cell
        configs.append(config)
        if cell.phase == PRUNED:
            warnings.append(config.warnings)
    common = [text for text in (warnings[0] if warnings else ()) if all(text in others for others in warnings)]
    order = sorted(range(len(cells)), key=lambda number: list(cells.values())[number].phase)
    return Plan([list(cells.values())[number] for number in order], [configs[number] for number in order], common)


def _options(axes: Axes) -> Iterator[tuple[str, str, int, str, str | None, float | None, float | None]]:
    """Model, data, seed, pruner, distiller, sparsity and budget of every cell."""
    sizes: list[tuple[float, float | None]] = [(sparsity_of_budget(budget), budget) for budget in axes.budgets]
    sizes = sizes or [(sparsity, None) for sparsity in axes.sparsities]
    for model, dataset, seed in product(axes.models, axes.datasets, axes.seeds):
        for distiller in dict.fromkeys([None, *axes.distillers]):
            yield model, dataset, seed, "none", distiller, None, None
        for size, pruner, distiller in product(sizes, axes.pruners, axes.distillers):
            yield model, dataset, seed, pruner, distiller, *size


def _cell(
    axes: Axes,
    words: Sequence[str],
    model: str,
    dataset: str,
    seed: int,
    pruner: str,
    distiller: str | None,
    sparsity: float | None,
    budget: float | None,
) -> tuple[Cell, PruneConfig]:
    own = {"model": model, "dataset": dataset, "seed": seed, "pruner": pruner, "distiller": distiller}
    own["prune_target_sparsity"] = sparsity
    said = [f"--{name}={value}" for name, value in own.items() if value is not None]
    said += [word for word in words if distiller is not None or not word.startswith("--distill_")]
    try:
        asked = launch(said)
        with _quiet():
            config = PruneConfig(asked.model, asked.dataset, asked.files, words=asked.words)
            folder = run_path(config)
    except PruneError as error:
        named = method_name(pruner, distiller)
        raise type(error)(f"compare: {named} on {model} / {dataset}, seed {seed}: {error}") from error
    if not is_used("prune_target_sparsity", config.settings):
        sparsity = budget = None
    phase = PRUNED if pruner != "none" else DENSE if distiller is None else TAUGHT_DENSE
    values = tuple(value for value in axes.values if value != config.settings.export_values)
    cell = Cell(
        model=model,
        dataset=dataset,
        seed=seed,
        pruner=pruner,
        distiller=distiller,
        sparsity=sparsity,
        budget=budget,
        phase=phase,
        group=_group(config),
        folder=folder,
        words=tuple(asked.words),
        values=values,
        int4_clip=_int4_clip(asked.words, config),
    )
    return cell, config


def _int4_clip(words: Sequence[str], config: PruneConfig) -> str:
    """As the command says it: the settings of a run that exports another format have the default."""
    said = [word.partition("=")[2] for word in words if word.startswith("--export_int4_clip=")]
    return said[-1] if said else config.settings.export_int4_clip


def _group(config: PruneConfig) -> str:
    """What runs have in common that can take over each other's dense model (``run/siblings.py``)."""
    settings = config.settings
    scope = settings.prune_scope, settings.prune_include, settings.prune_exclude
    late = settings.prune_rewind_epoch if settings.prune_rewind == "late" else None
    return repr((config["model"], config["dataset"], config.base_hash, scope, late))


@contextmanager
def _quiet() -> Iterator[None]:
    """The cells' own processes log the warnings of their settings."""
    before = getLogger().disabled
    getLogger().disabled = True
    try:
        yield
    finally:
        getLogger().disabled = before
