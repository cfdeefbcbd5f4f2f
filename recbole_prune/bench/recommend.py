"""``bench recommend``: seconds of top-k for all users from an artifact, against dense libraries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recbole_prune.artifact import Artifact, read_artifact
from recbole_prune.artifact.fields import Fields
from recbole_prune.artifact.files import TICKET
from recbole_prune.bench.artifact import export
from recbole_prune.bench.measuring import Candidate, Clock, take_turns
from recbole_prune.bench.options import SPARSITIES
from recbole_prune.bench.results import Results
from recbole_prune.bench.rivals import RIVALS
from recbole_prune.bench.runs import OurRun, our_config, scratch_folder, settings_of
from recbole_prune.errors import ConfigError, printable
from recbole_prune.serving import Recommender


def run(options: dict[str, Any], words: list[str], results: Results) -> None:
    """Time the rivals and ours in turn on each artifact; compare their lists with torch's."""
    with scratch_folder() as scratch:
        if options["artifact"]:
            _refuse_settings(options, words)
            artifact = read_artifact(options["artifact"])
            fields = Fields({"sparsity": 0.0, **artifact.info}, artifact.folder / TICKET)
            artifacts = {round(fields.number("sparsity"), 4): artifact}
            results.settings = {name: printable(fields.text(name)) for name in ("model", "dataset")}
        else:
            artifacts = make_artifacts(options, words, results, scratch)
        for sparsity, artifact in artifacts.items():
            measure(artifact, sparsity, options, results)


def _refuse_settings(options: dict[str, Any], words: list[str]) -> None:
    """An artifact is measured as it is: nothing is trained or pruned, so settings would do nothing."""
    given = ["--sparsities"] if options["sparsities"] else [word.partition("=")[0] for word in words]
    if given:
        raise ConfigError(
            f"bench recommend: {given[0]} and --artifact= exclude each other: the artifact decides all settings"
        )


def make_artifacts(options: dict[str, Any], words: list[str], results: Results, scratch: Path) -> dict[float, Artifact]:
    """Artifacts of a briefly trained model, pruned by magnitude to each sparsity."""
    config = our_config(words, scratch, epochs=1, show_progress=False, export_vectors=True)
    results.settings = settings_of(config)
    ours = OurRun(config, scratch)
    weights = ours.trained(config["epochs"])
    artifacts = {}
    for sparsity in options["sparsities"] or SPARSITIES.default:
        folder = scratch / f"artifact-{sparsity:g}"
        export(ours, weights, sparsity, folder, config.settings.export_values)
        artifacts[sparsity] = read_artifact(folder)
    return artifacts


def measure(
    artifact: Artifact, sparsity: float, options: dict[str, Any], results: Results, clock: Clock = perf_counter
) -> None:
    """Time everything that is installed on one artifact.

    Every side leaves out what a user has seen, gives lists of ``k``, and uses the threads of this process.
    """
    recommender = Recommender(artifact)
    users, items = _tables(artifact)
    numbers, k, threads = np.arange(1, len(users)), options["k"], int(torch.get_num_threads())
    pointers, seen = _seen_and_padding(artifact)
    work: dict[str, Callable[[], NDArray[np.int64]]] = {}
    for name, top_k in RIVALS.items():
        if find_spec(name.partition(",")[0]) is None:
            results.candidate(name, sparsity, failed="not installed")
            continue
        work[name] = partial(top_k, users[1:], items, k, pointers, seen, threads)
    work["ours"] = lambda: recommender.top_k(numbers, k, True, threads=threads).items
    lists = {name: call() for name, call in work.items()}
    expected = scores_of(users[1:], items, lists["torch"])
    for name, found in lists.items():
        same = float((found == lists["torch"]).all(axis=1).mean())
        close = float(np.isclose(scores_of(users[1:], items, found), expected, atol=1e-6).all(axis=1).mean())
        results.candidate(name, sparsity, same_lists_as_torch=same, same_scores_as_torch=close)
        if name != "torch":
            results.notes.append(
                f"sparsity {sparsity:g}: {100 * same:.2f} % of {name}'s lists are torch's, {100 * close:.2f} % have "
                "their scores (among equal scores the order is free)"
            )
    candidates = [Candidate(name, sparsity, call) for name, call in work.items()]
    take_turns(candidates, options["repeats"], results, clock)


def scores_of(users: NDArray[np.float32], items: NDArray[np.float32], lists: NDArray[np.int64]) -> NDArray[np.float32]:
    """The dot products of users and the items in their lists, shaped as ``lists``; -inf for no item."""
    scores = np.empty(lists.shape, np.float32)
    for column, chosen in enumerate(lists.T):
        scores[:, column] = np.einsum("uf,uf->u", users, items[chosen])
    return np.where(lists < 0, np.float32(-np.inf), scores)


def _seen_and_padding(artifact: Artifact) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What every user but the padding one has seen, item 0 among it, as compressed rows."""
    starts = artifact.seen.indptr.astype(np.int64)[1:]
    items = np.insert(artifact.seen.indices.astype(np.int64)[starts[0] :], starts[:-1] - starts[0], 0)
    return starts - starts[0] + np.arange(len(starts)), items


def _tables(artifact: Artifact) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The dense vectors of users and items, the scale of the scores in the users'."""
    serving = artifact.info["serving"]
    users = artifact.tensor(serving["user"]).astype(np.float32) * np.float32(serving["scale"])
    return users, np.ascontiguousarray(artifact.tensor(serving["item"])[: len(artifact.items)], dtype=np.float32)
