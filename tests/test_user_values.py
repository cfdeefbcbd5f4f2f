"""What each user scores: what RecBole's means are made of, in the order of the data, kept whatever happens to a run."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from recbole.evaluator import Collector
from recbole.utils import init_seed
from safetensors.numpy import load, save
from training_bench import Bench, Killed, kill
from zoo import DATASET, config_for

from recbole_prune import run_recbole_prune
from recbole_prune.disk import user_values
from recbole_prune.disk.names import JOURNAL, RESUME, SUMMARY, USERS
from recbole_prune.disk.seals import seal, unseal
from recbole_prune.errors import StoreError
from recbole_prune.report.users import read_users
from recbole_prune.run.store import RunFolder
from recbole_prune.scoring.user_values import users_of

RANDOM = {"split": {"RS": [0.6, 0.2, 0.2]}, "order": "RO", "mode": "full"}
ONE_OUT = {"split": {"LS": "valid_and_test"}, "order": "TO"}
METRICS = ["Recall", "MRR", "NDCG", "Hit", "Precision", "MAP"]
PROTOCOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "blocks of users": ("BPR", {"eval_args": RANDOM}),
    "RecBole's batches": ("BPR", {"eval_args": RANDOM, "metrics": [*METRICS, "GAUC"]}),
    "candidates": ("BPR", {"eval_args": {**RANDOM, "mode": "uni20"}}),
    "pairs": ("NeuMF", {"eval_args": RANDOM}),
    "sequences": ("GRU4Rec", {"eval_args": {**ONE_OUT, "mode": "full"}}),
    "candidates of sequences": ("GRU4Rec", {"eval_args": {**ONE_OUT, "mode": "pop20"}}),
    "several histories of a user": (
        "GRU4Rec",
        {"eval_args": {"split": {"RS": [6, 2, 2]}, "order": "TO", "mode": "full"}},
    ),
}


class Listener(Collector):
    """RecBole's collector, which also keeps of every row its user, its positives and its best items."""

    def eval_batch_collect(self, scores: Any, interaction: Any, positive_u: Any, positive_i: Any) -> None:
        wanted: dict[int, set[int]] = defaultdict(set)
        for row, item in zip(positive_u.tolist(), positive_i.tolist()):
            wanted[row].add(item)
        best = torch.topk(scores, max(self.topk), dim=-1).indices.tolist()
        self.rows = [*getattr(self, "rows", []), *((wanted[row], items) for row, items in enumerate(best))]
        super().eval_batch_collect(scores, interaction, positive_u, positive_i)


def targets_of(loader: Any) -> dict[int, list[set[int]]]:
    """The items to be found for each user, as the rows of the data say: all of them, or one in each row."""
    rows, dataset = loader._dataset.inter_feat, loader._dataset
    pairs = list(zip(rows[dataset.uid_field].tolist(), rows[dataset.iid_field].tolist()))
    found: dict[int, list[set[int]]] = defaultdict(list)
    if getattr(loader, "uid_list", None) is None:
        for user, item in pairs:
            found[user].append({item})
    else:
        for user, item in pairs:
            found[user] = [{item}.union(*found[user])]
    return found


@pytest.mark.parametrize("protocol", slow_but(["blocks of users", "candidates", "sequences"], PROTOCOLS))
def test_they_are_what_recboles_means_are_made_of(protocol: str, tiny_data: Path) -> None:
    name, changes = PROTOCOLS[protocol]
    chosen = {"metrics": METRICS, "topk": [1, 5], "valid_metric": "Recall@5", "metric_decimal_place": 12}
    base = Bench(name, tiny_data, **{**chosen, **changes})
    model = base.model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    trainer = base.trainer(model)
    init_seed(7, True)
    metrics = trainer.evaluate(base.test, load_best_model=False)
    values, users = trainer.user_values.last, users_of(base.test)
    assert sorted(values) == sorted(f"{metric.lower()}@{k}" for metric in METRICS for k in (1, 5))
    for metric, found in values.items():
        assert found.dtype == np.float32 and found.shape == users.shape
        assert found.astype(float).mean() == pytest.approx(metrics[metric], abs=1e-7), metric

    plain = base.plain.build_model()
    plain.load_state_dict(model.state_dict())
    other = base.plain.build_trainer(plain)
    other.eval_collector = Listener(other.config)
    other.eval_collector.data_collect(base.train)
    init_seed(7, True)
    assert dict(other.evaluate(base.test, load_best_model=False)) == dict(metrics)
    targets = targets_of(base.test)
    assert len(other.eval_collector.rows) == len(users) and set(users) == set(targets)
    for row, (wanted, best) in enumerate(other.eval_collector.rows):
        assert wanted in targets[users[row]], "the row is of this user"
        for k in (1, 5):
            hits = len(wanted & set(best[:k]))
            assert values[f"recall@{k}"][row] == pytest.approx(hits / len(wanted))
            assert values[f"precision@{k}"][row] == pytest.approx(hits / k)
            assert values[f"hit@{k}"][row] == float(hits > 0)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "changes"), [("FM", {"metrics": ["AUC", "LogLoss"], "valid_metric": "AUC"}),
                                                ("BPR", {"metrics": ["GAUC"], "valid_metric": "GAUC"})])  # fmt: skip
def test_metrics_of_all_rows_together_have_none(model: str, changes: dict[str, Any], tiny_data: Path) -> None:
    result = run(tiny_data, model, **changes)
    folder = Path(result["folder"])
    assert not (folder / USERS).exists() and [t["users_sha256"] for t in result["tickets"]] == [None, None]
    assert read_users(folder).users("test") is None and read_users(folder).metrics("test") == []


# ---- in a run --------------------------------------------------------------------------------------------------------


def run(data: Path, model: str = "BPR", **changes: Any) -> dict[str, Any]:
    settings = {
        **config_for(model, data),
        "epochs": 3,
        "pruner": "imp",
        "prune_rate": 0.5,
        "prune_rounds": 1,
        **changes,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    return run_recbole_prune(model, DATASET, config_dict=settings)


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with tickets 0 and 1."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:  # the words of pytest are no settings
        patch.setattr(sys, "argv", ["pytest"])
        return Path(run(tiny_data, output_dir=str(place))["folder"])


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "pruned" / DATASET / "BPR" / finished.name))


def test_a_run_keeps_them_of_both_parts_and_all_tickets(folder: Path) -> None:
    found, lines = read_users(folder), RunFolder(folder).tickets()
    arrays = load((folder / USERS).read_bytes())
    metrics = list(lines[0]["test"])
    assert sorted(arrays) == sorted(
        ["valid/users", "test/users", *(f"{p}/{t:03d}/{m}" for p in ("valid", "test") for t in (0, 1) for m in metrics)]
    )
    for line in lines:
        for part in ("valid", "test"):
            users = found.users(part)
            assert users is not None and len(np.unique(users)) == len(users) and users.min() > 0
            for metric, mean in line[part].items():
                values = found.values(part, line["ticket"], metric)
                assert values is not None and len(values) == len(users)
                assert float(values.astype(float).mean()) == pytest.approx(mean, abs=0.5001e-4), (
                    "rounded to four digits"
                )
    assert found.tickets("test", "NDCG@10") == [0, 1] and found.metrics("valid") == sorted(metrics)
    assert found.values("test", 2, "ndcg@10") is None and found.values("test", 1, "auc") is None


def test_validation_values_are_those_of_the_best_epoch(tiny_data: Path) -> None:
    """Not of the last one, and also where a process was killed in between."""
    result = run(tiny_data, learning_rate=0.3, epochs=8, prune_rounds=None, prune_rate=None, pruner="none")
    [ticket], values = result["tickets"], read_users(Path(result["folder"]))
    metric, history = "ndcg@10", [score for _, score in result["tickets"][0]["history"]]
    assert ticket["best_epoch"] < ticket["epochs"] and history[-1] < ticket["valid_score"]
    found = values.values("valid", 0, metric)
    assert found is not None and float(found.mean()) == pytest.approx(ticket["valid_score"], abs=0.5001e-4)


MOMENTS = ["before the line", "after an epoch"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in_the_middle_ends_with_the_same_bytes(moment: str, finished: Path, tiny_data: Path) -> None:
    """Killed in ticket 1 between the file and the line that names it, or after the resume point of the last epoch."""
    write, save_point = RunFolder.append_ticket, RunFolder.save_resume

    def append(folder: RunFolder, record: dict[str, Any]) -> None:
        if moment == MOMENTS[0] and record["ticket"] == 1:
            assert "test/001/ndcg@10" in load((folder.path / USERS).read_bytes())
            kill()
        write(folder, record)

    def save_resume(folder: RunFolder, ticket: int, epoch: int, *rest: Any) -> None:
        save_point(folder, ticket, epoch, *rest)
        if moment == MOMENTS[1] and (ticket, epoch) == (1, 2):
            kill()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append_ticket", append)
        patch.setattr(RunFolder, "save_resume", save_resume)
        with pytest.raises(Killed):
            run(tiny_data)
    [folder] = Path("pruned").glob(f"*/*/{finished.name}")
    assert (folder / RESUME).exists() and len(RunFolder(folder).tickets()) == 1
    run(tiny_data)
    assert (folder / USERS).read_bytes() == (finished / USERS).read_bytes()


def test_a_dense_model_that_is_taken_over_brings_them(folder: Path, tiny_data: Path) -> None:
    result = run(tiny_data, pruner="random", prune_rounds=None, prune_rate=None, prune_target_sparsity=0.5)
    dense, *_ = result["tickets"]
    assert dense["adopted_from"] == folder.name
    mine, theirs = read_users(Path(result["folder"])), read_users(folder)
    assert dense["users_sha256"] == RunFolder(folder).tickets()[0]["users_sha256"]
    for metric in dense["test"]:
        for part in ("valid", "test"):
            assert np.array_equal(mine.values(part, 0, metric), theirs.values(part, 0, metric))  # type: ignore[arg-type]
    assert mine.tickets("test", "ndcg@10") == [0, 1]


def test_a_folder_of_an_older_version_has_none_and_goes_on(folder: Path, tiny_data: Path) -> None:
    lines = [unseal(line) for line in (folder / JOURNAL).read_bytes().splitlines()]
    for line in lines:
        assert line is not None and line.pop("users_sha256")
    (folder / JOURNAL).write_bytes(b"".join(seal(line) + b"\n" for line in lines if line))
    (folder / USERS).unlink()
    assert read_users(folder).values("test", 0, "ndcg@10") is None
    assert len(run(tiny_data)["tickets"]) == 2
    (folder / JOURNAL).write_bytes((folder / JOURNAL).read_bytes().splitlines(keepends=True)[0])
    (folder / SUMMARY).unlink()
    assert run(tiny_data)["tickets"][1]["users_sha256"]
    assert read_users(folder).tickets("test", "ndcg@10") == [1], "those of the ticket that is new"


# ---- damage ----------------------------------------------------------------------------------------------------------


def arrays_of(folder: Path, **changes: Any) -> dict[str, Any]:
    return {**load((folder / USERS).read_bytes()), **{name.replace("__", "/"): a for name, a in changes.items()}}


METADATA = {"users_format_version": "1"}
DAMAGE: dict[str, tuple[Any, str]] = {
    "missing": (lambda folder: (folder / USERS).unlink(), "cannot read .*No such file"),
    "a folder": (lambda folder: ((folder / USERS).unlink(), (folder / USERS).mkdir()), "is in the way|is not a file"),
    "empty": (lambda folder: (folder / USERS).write_bytes(b""), "no file of users' values"),
    "cut": (lambda folder: (folder / USERS).write_bytes((folder / USERS).read_bytes()[:-4]), "is damaged"),
    "long header": (lambda folder: (folder / USERS).write_bytes(b"\xff" * 8 + b"{}"), "no file of users' values"),
    "another file": (lambda folder: (folder / USERS).write_bytes(save({"a": np.zeros(2)})), "no file of users' values"),
    "newer": (
        lambda folder: (folder / USERS).write_bytes(save(arrays_of(folder), metadata={"users_format_version": "2"})),
        "format version 2, this recbole_prune reads 1: upgrade",
    ),
    "not finite": (
        lambda folder: (folder / USERS).write_bytes(
            save(arrays_of(folder, **{"test__000__ndcg@10": np.full(3, np.nan, np.float32)}), metadata=METADATA)
        ),
        "does not have a value for each of test/users",
    ),
    "other ids": (
        lambda folder: (folder / USERS).write_bytes(
            save(arrays_of(folder, test__users=arrays_of(folder)["test/users"][::-1].copy()), metadata=METADATA)
        ),
        "the values of ticket 0 are not those that its line of the journal names",
    ),
    "a strange name": (
        lambda folder: (folder / USERS).write_bytes(
            save(arrays_of(folder, **{"test__x__ndcg@10": np.zeros(1, np.float32)}), metadata=METADATA)
        ),
        "no run writes a tensor test/x/ndcg@10",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_one_message_and_nothing_is_lost(damage: str, folder: Path, tiny_data: Path) -> None:
    spoil, said = DAMAGE[damage]
    spoil(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.name != "log.txt"}
    for read in (lambda: read_users(folder), lambda: run(tiny_data)):
        with pytest.raises(StoreError, match=said) as failure:
            read()
        assert str(folder / USERS).endswith(USERS) and USERS in str(failure.value) and "\n" not in str(failure.value)
    now = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.name != "log.txt"}
    assert now == before


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    (folder / USERS).unlink()
    os.mkfifo(folder / USERS)
    with pytest.raises(StoreError, match="not a file"):
        read_users(folder)


@given(st.data())
def test_any_flipped_bit_is_noticed(finished: Path, data: st.DataObject) -> None:
    whole = (finished / USERS).read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    spoiled = bytearray(whole)
    spoiled[place] ^= 1 << data.draw(st.integers(0, 7))
    digests = {line["ticket"]: line["users_sha256"] for line in map(json.loads, (finished / JOURNAL).open())}
    file = finished.parent / "spoiled.safetensors"
    file.write_bytes(spoiled)
    try:
        found = user_values.read(file, digests)
    except StoreError:
        return
    # blanks that fill the header up, or the order of its keys: the content is the same
    expected = load(whole)
    assert sorted(found) == sorted(expected) and all(np.array_equal(found[n], expected[n]) for n in expected)


names = st.sampled_from(["recall@10", "ndcg@5", "mrr@10"])
columns = st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4)


@given(st.dictionaries(st.tuples(st.sampled_from(["valid", "test"]), st.integers(0, 1200), names), columns, min_size=1))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, values: dict[Any, list[float]]) -> None:
    arrays: user_values.Arrays = {user_values.name_of(*key): np.array(v, np.float32) for key, v in values.items()}
    arrays.update({f"{part}/users": np.arange(4) for part in {key[0] for key in values}})
    file = tmp_path_factory.getbasetemp() / "written.safetensors"
    file.write_bytes(user_values.encode(arrays))
    digests = {ticket: user_values.digest_of(arrays, ticket) for _, ticket, _ in values}
    found = user_values.read(file, digests)  # type: ignore[arg-type]
    assert sorted(found) == sorted(arrays) and all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert user_values.read(file, {}) == {} and user_values.digest_of(arrays, 9999) is None
