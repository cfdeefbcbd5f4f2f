"""Run folders as runs write them, made without a training: a hundred tickets in no time, and hostile ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save

from recbole_prune.artifact import write_artifact
from recbole_prune.artifact.encoding import encode
from recbole_prune.artifact.files import Seen
from recbole_prune.disk import user_values
from recbole_prune.disk.seals import digest_of, seal, sha256
from recbole_prune.report.statistics import verdicts

USERS, ITEMS, WIDTH, MARGIN = 40, 25, 8, 0.02
METRICS = ("recall@10", "ndcg@10")
SHAPES = {"users.weight": (USERS + 1, WIDTH), "items.weight": (ITEMS + 1, WIDTH)}


def write_run(
    output: Path,
    sparsities: Sequence[float] = (0.0, 0.5, 0.75),
    *,
    model: str = "BPR",
    dataset: str = "tiny",
    method: str = "imp",
    run_hash: str = "0123456789",
    settings: Mapping[str, Any] | None = None,
    epochs: int = 6,
    metrics: Sequence[str] = METRICS,
    finished: bool = True,
    users: bool = True,
    artifact: bool = True,
    seed: int = 2020,
    command: str = "recbole-prune --model=BPR",
    lines: Mapping[int, Mapping[str, Any]] | None = None,
) -> Path:
    """Write a run folder and return its path.

    Args:
        output: the folder of all runs.
        sparsities: of the tickets, ticket 0 first.
        settings: further ones.
        finished: whether there is a summary.
        users: whether there are values of users.
        artifact: whether there is an artifact, which says what users consumed.
        lines: fields of journal lines that are to be others, by ticket.
    """
    folder = output / dataset.replace("/", "_") / model / f"{method}-{run_hash}"
    (folder / "masks").mkdir(parents=True)
    pruner, _, distiller = method.partition("+")
    given = {
        "model": model,
        "dataset": dataset,
        "pruner": pruner,
        "seed": seed,
        "valid_metric": metrics[0],
        **(settings or {}),
    }
    record = {
        "command": command, "versions": {"python": "3.11", "recbole-prune": "0.1.0"},
        "data_sha256": "d" * 64, "run_hash": run_hash,
        "settings": {**given, **({"distiller": distiller} if distiller else {})},
    }  # fmt: skip
    config = yaml.safe_dump(record, sort_keys=False, allow_unicode=True).encode()
    (folder / "config.yaml").write_bytes(config)
    targets = [{"name": name, "shape": list(shape), "padding_rows": [0]} for name, shape in SHAPES.items()]
    scope = {"targets": targets, "config_sha256": sha256(config)}
    (folder / "scope.json").write_bytes(seal(scope) + b"\n")
    identity = digest_of(scope)
    values = _values(len(sparsities), metrics, seed) if users else {}
    journal = []
    for ticket, sparsity in enumerate(sparsities):
        line = _line(folder, ticket, sparsity, metrics, epochs, values, seed)
        journal.append({**line, **(lines or {}).get(ticket, {}), "run_sha256": identity})
    (folder / "tickets.jsonl").write_bytes(b"".join(seal(line) + b"\n" for line in journal))
    if users:
        (folder / "users.safetensors").write_bytes(user_values.encode(values))
    if artifact:
        _write_artifact(folder / "artifact", model, dataset)
    if finished:
        tests = _tests(values, metrics[0], len(sparsities))
        tickets = [
            {"ticket": line["ticket"], "bytes": 4 * line["kept"] + 100, "as_good": tests.get(line["ticket"])}
            for line in journal
        ]
        summary = {"chosen": len(journal) - 1, "valid_metric": metrics[0], "reason": "the sparsest", "tickets": tickets}
        (folder / "summary.json").write_bytes(seal({**summary, "run_sha256": identity}, indent=2) + b"\n")
    return folder


def _values(tickets: int, metrics: Sequence[str], seed: int) -> dict[str, Any]:
    """Values of users: a ticket's are the dense model's with some noise."""
    random = np.random.default_rng(seed)
    found: dict[str, Any] = {f"{part}/users": np.arange(1, USERS + 1) for part in ("valid", "test")}
    for part in ("valid", "test"):
        for metric in metrics:
            dense = random.random(USERS) / 2 + 0.25
            for ticket in range(tickets):
                noise = 0 if ticket == 0 else random.normal(-0.005 * ticket, 0.02, USERS)
                found[f"{part}/{ticket:03d}/{metric}"] = (dense + noise).astype(np.float32)
    return found


def _tests(values: Mapping[str, Any], metric: str, tickets: int) -> dict[int, Any]:
    """What the run tested of its pruned tickets."""
    if not values or tickets < 2:
        return {}
    of_tickets = {number: values[f"test/{number:03d}/{metric}"] for number in range(1, tickets)}
    return {
        number: test.to_json() for number, test in verdicts(values[f"test/000/{metric}"], of_tickets, MARGIN).items()
    }


def masks_of(ticket: int, sparsity: float) -> dict[str, Any]:
    """Boolean masks of the two tables; the padding rows are live."""
    found = {}
    for name, shape in SHAPES.items():
        order = np.random.default_rng([ticket, shape[0]]).permutation((shape[0] - 1) * WIDTH)
        mask = np.ones(shape, bool)
        mask[1:] = (order >= round(sparsity * len(order))).reshape(shape[0] - 1, WIDTH)
        found[name] = mask
    return found


def _line(
    folder: Path,
    ticket: int,
    sparsity: float,
    metrics: Sequence[str],
    epochs: int,
    values: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    masks = masks_of(ticket, sparsity)
    packed = save({name: np.packbits(mask.reshape(-1)) for name, mask in masks.items()})
    mask_file = f"masks/ticket-{ticket:03d}.safetensors"
    (folder / mask_file).write_bytes(packed)
    kept = int(sum(mask[1:].sum() for mask in masks.values()))
    prunable = sum((rows - 1) * width for rows, width in SHAPES.values())
    history = [
        [epoch, round(0.4 - 0.3 * math.exp(-epoch / 9) - 0.01 * ticket % 7, 4)] for epoch in range(1, epochs + 1)
    ]

    def scores(part: str) -> dict[str, float]:
        if values:
            return {name: round(float(np.mean(values[f"{part}/{ticket:03d}/{name}"])), 4) for name in metrics}
        return {name: round(0.4 - 0.003 * ticket - 0.01 * number, 4) for number, name in enumerate(metrics)}

    line = {
        "ticket": ticket, "sparsity": 1 - kept / prunable, "kept": kept, "prunable": prunable,
        "parameters": prunable + WIDTH, "epochs": epochs, "best_epoch": epochs,
        "valid": scores("valid"), "test": scores("test"),
        "valid_score": scores("valid")[metrics[0]],
        "wins": None if ticket == 0 else ticket % 2 == 1, "wins_metric": None if ticket == 0 else True,
        "train_seconds": 1.5, "eval_seconds": 0.25, "seed": seed, "mask_file": mask_file, "mask_sha256": sha256(packed),
        "checkpoint_file": f"checkpoints/ticket-{ticket:03d}.pth",
        "checkpoint_sha256": sha256(str(folder).encode()), "history": history,
        "losses": [round(20 / epoch + ticket, 3) for epoch in range(1, epochs + 1)],
        "relative_epochs": None if ticket == 0 else 1 + ticket / 4,
        "popularity": {
            "share": 0.5, "k": 10, "popular": 0.5 - 0.01 * ticket,
            "unpopular": 0.2 - 0.05 * ticket if ticket < 4 else None,
            "at": {"10": {"tail_share": 0.25, "coverage": 0.5, "gini": 0.75, "average_popularity": 12.5}},
        },
        "measured": {"latency": {"latency_median_s": 1e-4 * (1 + ticket % 5), "latency_p95_s": 3e-4, "threads": 1}},
    }  # fmt: skip
    digest = user_values.digest_of(values, ticket) if values else None
    return {**line, **({"users_sha256": digest} if digest else {})}


def consumed() -> list[tuple[int, int]]:
    """What users of :func:`write_run` consumed: pairs of a user and an item, low ids more than high ones."""
    return [
        (user, item)
        for user in range(1, USERS + 1)
        for item in range(1, ITEMS + 1)
        if (user * item) % (item + 1) == 0 or item == 1
    ]


def _write_artifact(folder: Path, model: str, dataset: str) -> None:
    users, items = (np.array(column) for column in zip(*consumed()))
    write_artifact(
        folder,
        tensors={name: encode(np.ones(shape, np.float32)) for name, shape in SHAPES.items()},
        users=[f"u{number}" for number in range(USERS + 1)],
        items=[f"i{number}" for number in range(ITEMS + 1)],
        seen=Seen.from_pairs(users, items, USERS + 1),
        document={"model": model, "dataset": dataset},
    )
