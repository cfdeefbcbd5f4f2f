"""``bench processes``: an epoch of the ordinary command in one process and in several."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recbole_prune.bench.results import Results
from recbole_prune.bench.runs import our_config, scratch_folder, settings_of
from recbole_prune.processes import command, run_to_end
from recbole_prune.report.folders import read_run

_EPOCHS = 5


def run(options: dict[str, Any], words: list[str], results: Results) -> None:
    """Runs of the ordinary command in one process and in several (``--nproc``), in turn."""
    with scratch_folder() as scratch:
        config = our_config(words, scratch, epochs=_EPOCHS, show_progress=False)
        results.settings = settings_of(config)
        counts = {"one process": 1, f"{options['processes']} processes": options["processes"]}
        results.notes.append(
            f"seconds of an epoch, the mean of {config['epochs']}; the first loads what the others find loaded"
        )
        jobs = [(name, sparsity) for sparsity in options["sparsities"] for name in counts]
        total = len(jobs) * options["repeats"]
        with tqdm(total=total, desc="bench processes", unit="run", ncols=100) as bar:
            for _ in range(options["repeats"]):
                for name, sparsity in jobs:
                    bar.set_postfix_str(f"{name} {sparsity:g}")
                    folder = tempfile.mkdtemp(dir=scratch)
                    own = [f"--epochs={config['epochs']}", "--show_progress=False", f"--output_dir={folder}"]
                    run_to_end(command(["run", *words, *own, *_sparse(sparsity), f"--nproc={counts[name]}"]))
                    results.add(name, sparsity, seconds=_seconds_of_an_epoch(Path(folder)))
                    bar.update(1)
                results.save()


def _sparse(sparsity: float) -> list[str]:
    if not sparsity:
        return ["--pruner=none"]
    return ["--pruner=static", f"--prune_target_sparsity={sparsity!r}", "--prune_dense=False"]


def _seconds_of_an_epoch(folder: Path) -> float:
    [summary] = folder.rglob("summary.json")
    ticket = read_run(summary.parent).tickets[-1]
    return float(ticket["train_seconds"]) / int(ticket["epochs"])
