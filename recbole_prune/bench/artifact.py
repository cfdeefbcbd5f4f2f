"""``bench artifact``: bytes on disk and time to load, against RecBole's checkpoint and the bare weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from recbole_prune.artifact import read_artifact
from recbole_prune.artifact.export import export_ticket
from recbole_prune.bench.measuring import Candidate, first_batches, take_turns
from recbole_prune.bench.plain import PlainRun, plain_config
from recbole_prune.bench.results import Results
from recbole_prune.bench.runs import OurRun, our_config, scratch_folder, settings_of
from recbole_prune.run.provenance import versions


def run(options: dict[str, Any], words: list[str], results: Results) -> None:
    """Export every sparsity in every number format; ``load`` reads a folder or a file back into dense arrays."""
    with scratch_folder() as scratch:
        config = our_config(words, scratch, epochs=1, show_progress=False)
        results.settings = settings_of(config)
        plain = PlainRun(plain_config(config, scratch)).begin()
        loads = [_checkpoint(plain, scratch / "checkpoint.pth", results), _bare(plain, scratch / "weights.pt", results)]
        ours = OurRun(config, scratch)
        weights = ours.trained(config["epochs"])
        for sparsity in options["sparsities"]:
            for values in options["values"]:
                folder = scratch / f"artifact-{sparsity:g}-{values}"
                name, sizes = f"artifact {values}", export(ours, weights, sparsity, folder, values)["bytes"]
                measured = {"bytes": sizes["total"], "tables": sizes["tables"], "bound": sizes["tables_bound"]}
                results.add(name, sparsity, **measured)
                loads.append(Candidate(name, sparsity, partial(_load, folder)))
        results.notes.append(
            "bytes: the whole folder, with tokens, what users have seen and the graph or the vectors of a model that "
            "propagates; tables: the pruned tables in it; "
            "bound: the fewest bytes for random positions and the same values"
        )
        take_turns(loads, options["repeats"], results, perf_counter, measure="load")


def _load(folder: Path) -> None:
    read_artifact(folder).state()


def export(
    ours: OurRun, weights: dict[str, torch.Tensor], sparsity: float, folder: Path, values: str
) -> dict[str, Any]:
    """Write the artifact of trained weights, pruned by magnitude; returns the content of ticket.json."""
    masks = ours.magnitude_masks(weights, sparsity)
    model = ours.workshop.build_model()
    model.load_state_dict({name: value * masks[name] if name in masks else value for name, value in weights.items()})
    return export_ticket(
        folder,
        model=model.eval(),
        masks=dict(masks),
        config=ours.config,
        dataset=ours.workshop.dataset,
        seen=ours.workshop.seen,
        info={
            "model": ours.config["model"],
            "dataset": ours.config["dataset"],
            "settings": ours.config.plain_settings(),
            "sparsity": masks.sparsity,
            "versions": versions(),
        },
        values=values,
        clip=ours.config.settings.export_int4_clip,
        vectors=ours.config.settings.export_vectors,
    )


def _checkpoint(plain: PlainRun, file: Path, results: Results) -> Candidate:
    """RecBole's checkpoint after an optimizer step, so that it holds the optimizer's state as in any run."""
    plain.trainer._train_epoch(first_batches(plain.train_data, 1), 0)
    plain.trainer._save_checkpoint(0, verbose=False, saved_model_file=str(file))
    results.add("checkpoint", None, bytes=file.stat().st_size)
    return Candidate("checkpoint", None, lambda: torch.load(file, map_location="cpu", weights_only=False))


def _bare(plain: PlainRun, file: Path, results: Results) -> Candidate:
    weights = {name: value.detach().clone() for name, value in plain.model.state_dict().items()}
    torch.save(weights, file)
    results.add("bare weights", None, bytes=sum(value.numel() * value.element_size() for value in weights.values()))
    return Candidate("bare weights", None, lambda: torch.load(file, map_location="cpu"))
