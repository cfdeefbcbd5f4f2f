"""``bench eval``: seconds of a full validation, with the proof that both sides find the same metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from recbole_prune.anatomy.caches import forget_caches
from recbole_prune.bench.measuring import Candidate, agreement, device_clock, take_turns
from recbole_prune.bench.plain import PlainRun, plain_config
from recbole_prune.bench.results import Results
from recbole_prune.bench.runs import OurRun, our_config, scratch_folder, settings_of

_USERS_AT_ONCE = 512


def run(options: dict[str, Any], words: list[str], results: Results) -> None:
    """Plain RecBole with the ``eval_batch_size`` of the settings and with a large one, then ours, in turn."""
    with scratch_folder() as scratch:
        config = our_config(words, scratch, epochs=1, show_progress=False)
        results.settings = settings_of(config)
        ours = OurRun(config, scratch)
        weights = ours.trained(config["epochs"])
        plain = {"plain": PlainRun(plain_config(config, scratch)).begin()}
        large = plain_config(config, scratch)
        large["eval_batch_size"] = options["large_batch"] or _USERS_AT_ONCE * ours.workshop.dataset.item_num
        plain["plain, large batches"] = PlainRun(large).begin()
        candidates = []
        for name, side in plain.items():
            side.wear(weights)
            results.candidate(name, eval_batch_size=side.config["eval_batch_size"])
            # nothing of plain RecBole is compiled, and one user at a time it takes minutes
            warm = replace(_candidate(name, None, side.trainer, side.valid_data), warm_up=lambda: None)
            candidates.append(warm)
        for sparsity in options["sparsities"]:
            masks = ours.magnitude_masks(weights, sparsity)
            trainer = ours.trainer(masks, weights)
            _compare(trainer, ours.workshop.select_data, plain["plain, large batches"], sparsity, results)
            candidates.append(_candidate("ours", sparsity, trainer, ours.workshop.select_data))
        plain["plain, large batches"].wear(weights)
        take_turns(candidates, options["repeats"], results, device_clock(config["device"]))


def _candidate(name: str, sparsity: float | None, trainer: Any, data: Any) -> Candidate:
    """Propagated tables are forgotten before each sample: in a run, every validation computes them anew."""
    return Candidate(
        name,
        sparsity,
        work=lambda: _evaluate(trainer, data),
        before=lambda number: forget_caches(trainer.model),
    )


def _evaluate(trainer: Any, data: Any) -> Mapping[str, float]:
    return trainer.evaluate(data, load_best_model=False)  # type: ignore[no-any-return]


def _compare(trainer: Any, data: Any, plain: PlainRun, sparsity: float, results: Results) -> None:
    """Plain RecBole evaluates the same weights, pruned entries set to zero.

    The results say whether metrics agree, and which way ours ranked, which is what is timed.
    """
    plain.wear(trainer.model.state_dict())
    theirs, own = _evaluate(plain.trainer, plain.valid_data), _evaluate(trainer, data)
    equal, largest = agreement(own, theirs)
    way = trainer._block_evaluation.way
    facts = {"metrics": _floats(own), "plain_metrics": _floats(theirs), "metrics_equal": equal, "ranked_by": way}
    results.candidate("ours", sparsity, **facts)
    found = f"all {len(own)} metrics equal plain RecBole's" if equal else f"METRICS DIFFER by up to {largest:.3g}"
    results.notes.append(f"sparsity {sparsity:g}: {found} on the same weights; ours ranked by {way}")


def _floats(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
