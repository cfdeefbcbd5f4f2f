"""``bench search``: a whole pruning run against one dense run of plain RecBole with the same epochs."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from recbole_prune import quick_start
from recbole_prune.bench.measuring import device_clock
from recbole_prune.bench.plain import PlainRun, plain_config
from recbole_prune.bench.results import Results
from recbole_prune.bench.runs import our_config, scratch_folder, settings_of
from recbole_prune.errors import printable
from recbole_prune.run.opening import run_path
from recbole_prune.run.store import RunFolder


def run(options: dict[str, Any], words: list[str], results: Results) -> None:
    """Our run first: it is a normal run folder, so after an interruption the same command continues it."""
    with scratch_folder() as scratch:
        config = our_config(words, scratch, pruner="imp", epochs=10, show_progress=False)
        results.settings = settings_of(config)
        begun = RunFolder(run_path(config)).is_trained()
        start = perf_counter()
        result = quick_start.run(config)
        seconds = perf_counter() - start
        result.raise_failure()
        found = result.to_dict()
        add_ours(found["tickets"], seconds, begun and not config.settings.fresh, results)
        results.notes.append(f"run folder: {printable(found['folder'])}")
        results.save()
        add_plain(lambda: PlainRun(plain_config(config, scratch)).begin(), results, device_clock(config["device"]))


def add_ours(tickets: list[dict[str, Any]], seconds: float, begun: bool, results: Results) -> None:
    """Record our run: wall clock if this process did all of it, and the sums of the journal."""
    train, evaluation = (sum(ticket[key] for ticket in tickets) for key in ("train_seconds", "eval_seconds"))
    sparsity = round(tickets[-1]["sparsity"], 4)
    results.add("ours", sparsity, train=train, eval=evaluation, train_and_eval=train + evaluation)
    results.candidate("ours", sparsity, tickets=len(tickets), epochs=sum(ticket["epochs"] for ticket in tickets))
    adopted = [ticket["adopted_from"] for ticket in tickets if "adopted_from" in ticket]
    if begun or adopted:
        results.notes.append(
            "ours: an earlier run did part of the work "
            f"({f'the dense ticket is that of {adopted[0]}' if adopted else 'the folder was continued'}), so there is "
            "no wall clock of the whole; times are summed from the journal's train_seconds and eval_seconds"
        )
    else:
        results.add("ours", sparsity, seconds=seconds)
        results.candidate("ours", sparsity, other_seconds=seconds - train - evaluation)
    results.notes.append(f"ours: {len(tickets)} trainings of {[ticket['epochs'] for ticket in tickets]} epochs")


def add_plain(build: Callable[[], PlainRun], results: Results, clock: Callable[[], float] = perf_counter) -> None:
    """Run plain RecBole as ``run_recbole`` does, from loading the data to the test, and record it."""
    spent = {"train": 0.0, "eval": 0.0}

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            try:
                return function(*args, **kwargs)
            finally:
                spent[part] += clock() - start

        return call

    start = clock()
    plain = build()
    trainer = plain.trainer
    trainer._train_epoch = timed("train", trainer._train_epoch)
    trainer._valid_epoch = timed("eval", trainer._valid_epoch)
    show = plain.config["show_progress"]
    trainer.fit(plain.train_data, plain.valid_data, saved=True, show_progress=show)
    trainer.evaluate(plain.test_data, load_best_model=True, show_progress=show)
    seconds = clock() - start
    total = sum(spent.values())
    results.add("plain", None, seconds=seconds, train_and_eval=total, **spent)
    results.candidate("plain", epochs=len(trainer.train_loss_dict), other_seconds=seconds - total)
    results.notes.append(f"plain: one training of {len(trainer.train_loss_dict)} epochs")
