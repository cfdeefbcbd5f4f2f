"""``recbole-prune bench``: the options of every benchmark, and how one runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from recbole_prune.bench import options as own
from recbole_prune.config import options as words_of
from recbole_prune.config.near import did_you_mean, near_names
from recbole_prune.config.options import Option
from recbole_prune.config.words import launch
from recbole_prune.errors import ConfigError, printable, printable_lines
from recbole_prune.signals import on_abort

USAGE = """usage: recbole-prune bench NAME [--own_option=value ...] [--model=BPR --dataset=ml-100k --key=value ...]
       recbole-prune bench table FILE.json ...

Plain RecBole and recbole_prune in turn, on the same data, settings and seed: medians, range and ratios.
Every --key=value that is not listed here is a setting of the runs, RecBole's or ours (--prune_storage=compact).
"""


@dataclass(frozen=True)
class Benchmark:
    """One subcommand.

    Attributes:
        module: in this package; it has ``run(options, words, results)``.
        meaning: what it measures.
        units: unit of each measure.
        references: candidates that others are compared with.
        options: its own options.
        speedups, ranges: as in :class:`~recbole_prune.bench.results.Results`.
    """

    module: str
    meaning: str
    units: Mapping[str, str]
    references: tuple[str, ...]
    options: Mapping[str, Option]
    speedups: bool = True
    ranges: tuple[str, ...] | None = None


_COMMON = {"threads": own.THREADS, "to": own.TO}
_REPEATED = {"sparsities": own.SPARSITIES, "repeats": own.REPEATS, **_COMMON}

BENCHMARKS = {
    "train": Benchmark(
        "train",
        "one training epoch; random masks of exact size, or those of --pruner=static, dsl, rigl or set that move; with "
        "--distiller and --distill_teacher=PATH also taught",
        {"seconds": "seconds"},
        ("plain",),
        {**_REPEATED, "batches": own.BATCHES, "together": own.number(1, "epochs timed together")},
    ),
    "eval": Benchmark(
        "evaluate",
        "one full validation of a model trained for --epochs (here 1) and pruned by magnitude",
        {"seconds": "seconds"},
        ("plain", "plain, large batches"),
        {**_REPEATED, "large_batch": own.number(None, "eval_batch_size of plain, large batches (default 512 users)")},
    ),
    "recommend": Benchmark(
        "recommend",
        "top-k for all users from an artifact; a model trained for --epochs (here 1), or --artifact",
        {"seconds": "seconds"},
        ("torch", "faiss", "faiss, seen kept", "implicit"),
        {
            **_REPEATED,
            # no default: with --artifact it must not be given
            "sparsities": replace(own.SPARSITIES, default=None, meaning="sparsities to measure (default 0.0,0.9)"),
            "k": own.number(20, "length of a list"),
            "artifact": Option(own.path, None, "a folder", "an artifact to read instead of training one"),
        },
    ),
    "memory": Benchmark(
        "memory",
        "bytes of weights, gradients and optimizer after a step, and of the process; a process for each candidate",
        dict.fromkeys(("state", "all_tensors", "peak", "peak_of_epoch", "peak_on_device"), "bytes"),
        ("plain",),
        {
            "sparsities": own.SPARSITIES,
            **_COMMON,
            "batches": own.BATCHES,
            "skip_plain": Option(
                words_of.yes_or_no, False, "True or False", "leave plain RecBole out where it cannot run"
            ),
        },
    ),
    "energy": Benchmark(
        "energy",
        "joules and mean power of training epochs, or of making lists (scores, masks, top-k) with a model trained for "
        "--epochs (here 1) and pruned by magnitude; needs a meter: NVML, RAPL or zeusd",
        {"joules": "joules", "net_joules": "joules", "watts": "watts", "seconds": "seconds"},
        ("plain",),
        {
            "sparsities": own.SPARSITIES,
            **_COMMON,
            "work": Option(own.work, "train", "train or lists", "what is measured"),
            "repeats": own.number(4, "samples of each candidate, in the order A B B A"),
            "seconds": Option(own.seconds, 20.0, "a number above 0", "least length of a window"),
            "rest": Option(own.seconds, 10.0, "a number above 0", "seconds of rest between windows"),
        },
        speedups=False,
        ranges=("joules",),
    ),
    "artifact": Benchmark(
        "artifact",
        "bytes on disk and time to load; a model trained for --epochs (here 1) and pruned by magnitude",
        {"bytes": "bytes", "tables": "bytes", "bound": "bytes", "load": "seconds"},
        ("checkpoint", "bare weights"),
        {
            **_REPEATED,
            "values": Option(
                own.value_types,
                ["fp32", "fp16", "int8", "int4"],
                "some of fp32,fp16,int8,int4",
                "number formats of the values",
            ),
        },
    ),
    "start": Benchmark(
        "start",
        "whole processes: lists of one user from RecBole's checkpoint and from an artifact, and a run up to its first "
        "epoch (--dry_run)",
        {"one_user": "seconds", "dry_run": "seconds"},
        ("plain",),
        _REPEATED,
    ),
    "processes": Benchmark(
        "processes",
        "an epoch of whole runs (here --epochs=5) in one process and in several (--nproc), dense and --pruner=static",
        {"seconds": "seconds"},
        ("one process",),
        {
            **_REPEATED,
            "repeats": replace(own.REPEATS, default=3, meaning="runs of each candidate"),
            "processes": own.number(2, "processes of the other run"),
        },
    ),
    "search": Benchmark(
        "search",
        "a whole run (--pruner=imp, here --epochs=10) against one dense plain RecBole run of the same epochs",
        {"seconds": "seconds", "train_and_eval": "seconds", "train": "seconds", "eval": "seconds"},
        ("plain",),
        _COMMON,
        speedups=False,
    ),
}
_GENERATE = {
    "users": own.number(None, "users", required=True),
    "items": own.number(None, "items", required=True),
    "interactions": own.number(None, "pairs, all different", required=True),
    "to": own.FOLDER,
    "seed": own.number(2020, "decides the draw"),
}
_OTHERS = ("table", "generate")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def main(argv: list[str]) -> int:
    """Run one benchmark, or ``table`` or ``generate``.

    Returns:
        exit status 0.

    Raises:
        PruneError: a wrong option, or what the runs refuse.
    """
    if not argv:
        print(usage())
        return 0
    name, *rest = argv
    if name == "table":
        from recbole_prune.bench.table import markdown_of_files

        words_of.refuse_options("bench table", {}, rest)
        print(printable_lines(markdown_of_files(rest)))
        return 0
    if name == "generate":
        from recbole_prune.bench.generate import generate

        options, _ = words_of.split("bench generate", _GENERATE, rest, words_of.refuse_all)
        print(printable(generate(**options)))
        return 0
    if name not in BENCHMARKS:
        known = (*BENCHMARKS, *_OTHERS)
        raise ConfigError(
            f"bench: {name!r} is unknown{did_you_mean(near_names(name, known))}; there are {', '.join(known)}"
        )
    options, words = words_of.split(f"bench {name}", BENCHMARKS[name].options, rest, words_of.refuse_near)
    if not options.get("artifact"):  # which goes without settings, and is asked for by name
        launch(words)  # a misspelt word is better known before RecBole is imported
    return measure(name, options, words, argv)


def measure(name: str, options: dict[str, Any], words: list[str], command: list[str]) -> int:
    """Run a benchmark; whatever ends it, what was measured is printed and written.

    Args:
        options: values of all its own options.
        words: the rest of the command line.
        command: all of it, for the record.
    """
    set_threads(options["threads"])
    # imported now: it loads torch and numpy, whose libraries read the number of threads only once
    from recbole_prune.bench.results import Results

    benchmark = BENCHMARKS[name]
    results = Results(
        name,
        benchmark.units,
        benchmark.references,
        options["to"],
        command=command,
        speedups=benchmark.speedups,
        ranges=benchmark.ranges,
    )
    results.save()  # a file that cannot be written is better known before the work

    def keep() -> None:
        results.save()
        if results.has_samples:
            print(printable_lines(results.text()))

    run: Callable[..., None] = import_module(f"recbole_prune.bench.{benchmark.module}").run
    with on_abort(keep):
        run(options, words, results)
    results.complete = True
    keep()
    return 0


def set_threads(threads: int | None) -> None:
    """Give every library, and every process started from here, the same number of threads; None changes nothing."""
    if threads is None:
        return
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    import torch

    torch.set_num_threads(threads)


def usage() -> str:
    """Every benchmark with its options."""
    lines = [USAGE]
    for name, benchmark in BENCHMARKS.items():
        lines += [f"  {name}: {benchmark.meaning}", *words_of.describe(benchmark.options)]
    lines += ["  generate: write a generated dataset (uniform users, Zipf items) in RecBole's files"]
    lines += words_of.describe(_GENERATE)
    lines += ["  table: print the JSON files of --to as a table in Markdown"]
    return "\n".join(lines)
