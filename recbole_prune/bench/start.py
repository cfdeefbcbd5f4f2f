"""``bench start``: whole processes, from the command to their end: lists for one user, and a run up to its training."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from recbole_prune.bench.artifact import export
from recbole_prune.bench.measuring import Candidate, first_batches, take_turns
from recbole_prune.bench.plain import PlainRun, plain_config
from recbole_prune.bench.results import Results
from recbole_prune.bench.runs import OurRun, our_config, scratch_folder, settings_of
from recbole_prune.processes import command, run_to_end

# RecBole's own way to lists from a checkpoint: all data is loaded and split again, then one user is ranked
_PLAIN = """
import sys
from recbole_prune import compat
compat.apply()
from recbole.quick_start import load_data_and_model
from recbole.utils.case_study import full_sort_topk
config, model, dataset, _, _, test_data = load_data_and_model(sys.argv[1])
ids = dataset.token2id(dataset.uid_field, [sys.argv[2]])
print(full_sort_topk(ids, model, test_data, k=20, device=config["device"]))
"""


def run(options: dict[str, Any], words: list[str], results: Results) -> None:
    """Whole processes: lists for one user from RecBole's checkpoint and from ours, and a dry run."""
    with scratch_folder() as scratch:
        config = our_config(words, scratch, epochs=1, show_progress=False)
        results.settings = settings_of(config)
        checkpoint = scratch / "checkpoint.pth"
        ours = OurRun(config, scratch)
        user = ours.workshop.dataset.field2id_token[ours.workshop.dataset.uid_field][1]
        users = scratch / "users.txt"
        users.write_text(f"{user}\n", encoding="utf-8")
        _save_checkpoint(PlainRun(plain_config(config, scratch)).begin(), checkpoint)
        asked = [sys.executable, "-c", _PLAIN, str(checkpoint), user]
        calls = [Candidate("plain", None, partial(run_to_end, asked, scratch))]
        weights = ours.trained(config["epochs"])
        for sparsity in options["sparsities"]:
            folder = scratch / f"artifact-{sparsity:g}"
            export(ours, weights, sparsity, folder, config.settings.export_values)
            asked = command(["recommend", f"--artifact={folder}", f"--users_file={users}", "--k=20"])
            calls.append(Candidate("recommend", sparsity, partial(run_to_end, asked, scratch)))
        results.notes.append("one_user: the lists of one user, from the command to the end of its process")
        take_turns(calls, options["repeats"], results, measure="one_user")
        dry = command(["run", *words, "--dry_run=True"])
        kept = [*dry, "--cache_dataset=True", f"--output_dir={scratch}"]
        run_to_end(kept)
        results.notes.append("dry_run: data and model are loaded as for a run, which ends before its first epoch")
        starts = [
            Candidate("run", None, partial(run_to_end, dry)),
            Candidate("run cache_dataset", None, partial(run_to_end, kept)),
        ]
        take_turns(starts, options["repeats"], results, measure="dry_run")


def _save_checkpoint(plain: PlainRun, file: Path) -> None:
    # the process that reads it has another working directory
    plain.config["data_path"] = str(Path(plain.config["data_path"]).resolve())
    plain.trainer._train_epoch(first_batches(plain.train_data, 1), 0)
    plain.trainer._save_checkpoint(0, verbose=False, saved_model_file=str(file))
