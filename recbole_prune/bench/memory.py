"""``bench memory``: bytes that training holds, counted from its tensors, and the peak of a process that trains.

Every candidate trains in a process of its own: what another one held before would count otherwise. This module is that
process too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from recbole_prune.bench.measuring import first_batches
from recbole_prune.bench.plain import PlainRun, plain_config
from recbole_prune.bench.results import Results, quantity
from recbole_prune.bench.runs import OurRun, name_of_candidate, our_config, scratch_folder, settings_of, ways_to_train
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.errors import ConfigError, PruneError
from recbole_prune.metering.memory import peak_bytes, reset_peak_bytes
from recbole_prune.signals import on_abort
from recbole_prune.training.state import optimizers_of
from recbole_prune.training.trainer import MaskAwareTrainer


def run(options: dict[str, Any], words: list[str], results: Results) -> None:
    """One process for plain RecBole, one for each sparsity of ours."""
    with scratch_folder() as scratch:
        config = our_config(words, scratch, teaches=True, show_progress=False)
        results.settings = settings_of(config)
        jobs = _jobs(config, options, results)
        for name, sparsity, taught in tqdm(jobs, desc="bench memory", unit="process", ncols=100):
            job = {"name": name, "sparsity": sparsity, "taught": taught, "batches": options["batches"]}
            found = _run_process({**job, "settings": config.plain_settings()}, scratch / "found.json")
            failed = found.pop("failed", None)
            if failed:
                results.candidate(name, sparsity, failed=failed)
                results.notes.append(f"{name} at sparsity {sparsity:g}: {failed}" if sparsity else f"{name}: {failed}")
            else:
                details = found.pop("details")
                results.add(name, sparsity, **{measure: size for measure, size in found.items() if size is not None})
                results.candidate(name, sparsity, details=details)
                shown = ", ".join(f"{part} {quantity(size, 'bytes')}" for part, size in details.items())
                results.notes.append(f"{name}{'' if sparsity is None else f' {sparsity:g}'}: {shown}")
            results.save()
    results.notes.append(
        "state: weights, gradients and optimizer state after the last step; all_tensors: with buffers and every other "
        "tensor that the model keeps (masks, positions of live entries, graphs); peak: of the process, with data and "
        "libraries; peak_of_epoch: likewise, from the end of loading and building on"
    )


def _jobs(config: PruneConfig, options: dict[str, Any], results: Results) -> list[tuple[str, float | None, bool]]:
    """Name, sparsity, and whether a distiller teaches, of every process."""
    pairs = product(options["sparsities"], ways_to_train(config))
    ours = [(name_of_candidate(config.settings, one, taught), one, taught) for one, taught in pairs]
    if options["skip_plain"]:
        results.candidate("plain", failed="left out (--skip_plain)")
        return [*ours]
    return [("plain", None, False), *ours]


def _run_process(job: dict[str, Any], file: Path) -> dict[str, Any]:
    """Train one candidate in a new process; a process that memory ends is a result, not an error."""
    file.unlink(missing_ok=True)
    warnings = [f"-W{option}" for option in sys.warnoptions]
    # what a killed process leaves lies in our own temporary folder
    process = subprocess.Popen(
        [sys.executable, *warnings, "-m", "recbole_prune.bench.memory"],
        stdin=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(file.parent)},
    )
    with process, on_abort(process.kill):
        process.communicate(json.dumps({**job, "file": str(file)}))
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if "refused" in found:
            raise ConfigError(found["refused"])
        return found
    if process.returncode == -signal.SIGKILL:
        return {"failed": "killed by the system, as happens when memory runs out"}
    raise ConfigError(f"bench memory: the process of {job['name']} failed with status {process.returncode}, see above")


# ---- in the process of a candidate -----------------------------------------------------------------------------------


def main(job: dict[str, Any]) -> None:
    """Train an epoch or some batches, count, and write what was found to the job's file."""
    try:
        found = _train_and_count(job)
    except PruneError as error:
        found = {"refused": str(error)}
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        found = {"failed": f"out of memory: {' '.join(str(error).split())[:200]}"}
    Path(job["file"]).write_text(json.dumps(found), encoding="utf-8")


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch or Python could not allocate."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("can't allocate memory", "out of memory", "not enough memory")
    )


def _train_and_count(job: dict[str, Any]) -> dict[str, Any]:
    with scratch_folder() as scratch:
        config = PruneConfig.from_plain_settings(job["settings"])
        if job["name"] == "plain":
            plain = PlainRun(plain_config(config, scratch)).begin()
            plain.reseed()
            trainer, data = plain.trainer, plain.train_data
        else:
            ours = OurRun(config, scratch)
            trainer, data = ours.candidate(job["sparsity"], job["taught"])[1], ours.workshop.train_data
            ours.reseed()
        before = peak_bytes() or 0
        reset_peak_bytes()
        trainer._train_epoch(first_batches(data, job["batches"]), 0)
        of_epoch = peak_bytes() or 0
        details = tensor_bytes(trainer)
        cuda = config["device"].type == "cuda"
        return {
            "details": details,
            "state": sum(details[part] for part in ("weights", "gradients", "optimizer")),
            "all_tensors": sum(details.values()),
            "peak": max(before, of_epoch),
            "peak_of_epoch": of_epoch,
            "peak_on_device": torch.cuda.max_memory_allocated(config["device"]) if cuda else None,
        }


def tensor_bytes(trainer: Any) -> dict[str, int]:
    """Bytes of the tensors of a training, each piece of memory once, whatever the storage.

    Returns:
        ``weights`` (parameters, those of what trains along included), ``gradients``, ``optimizer`` (state of every
        optimizer of the trainer), ``buffers``, and ``other``: tensors and arrays in attributes of the model, its
        modules and what trains along, such as masks, positions of live entries, a graph's adjacency, what is kept
        of a teacher.
    """
    model = trainer.model
    parts = trainer.session.parts if isinstance(trainer, MaskAwareTrainer) else ()
    seen: set[int] = set()
    parameters = [*model.parameters(), *(parameter for part in parts for parameter in part.parameters().values())]
    groups: dict[str, Any] = {
        "weights": parameters,
        "gradients": [p.grad for p in parameters],
        "optimizer": [dict(optimizer.state) for optimizer in optimizers_of(trainer).values()],
        "buffers": list(model.buffers()),
        "other": [*(vars(module) for module in model.modules()), *parts],
    }
    return {name: sum(_bytes_of(group, seen)) for name, group in groups.items()}


def _bytes_of(value: Any, seen: set[int]) -> Iterator[int]:
    """Bytes of every tensor and array reachable through containers and objects of this package."""
    if isinstance(value, torch.Tensor):
        for part in _dense_parts(value):
            storage = part.untyped_storage() if hasattr(part, "untyped_storage") else part.storage()
            if storage.data_ptr() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                yield storage.nbytes()
    elif isinstance(value, np.ndarray):
        owner = value if value.base is None else value.base
        if id(owner) not in seen:
            seen.add(id(owner))
            yield value.nbytes
    elif isinstance(value, dict) or (
        type(value).__module__.startswith("recbole_prune.") and hasattr(value, "__dict__")
    ):
        if id(value) not in seen and not isinstance(value, torch.nn.Module):
            seen.add(id(value))
            for inner in (value if isinstance(value, dict) else vars(value)).values():
                yield from _bytes_of(inner, seen)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _bytes_of(inner, seen)


def _dense_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout == torch.sparse_csr:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    return [tensor]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent reports an interruption
    main(json.load(sys.stdin))
