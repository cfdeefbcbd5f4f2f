"""Benchmarks over real models on the data set ``tiny``: both sides are what they claim to be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from zoo import DATASET, config_for

from recbole_prune import cli
from recbole_prune.artifact import read_artifact
from recbole_prune.bench import artifact, evaluate, memory, recommend, train
from recbole_prune.bench.plain import PlainRun, plain_config
from recbole_prune.bench.results import Results, read_document
from recbole_prune.bench.runs import OurRun, our_config, scratch_folder
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.masking.masks import MaskSet
from recbole_prune.sparse.compiling import available

_WIDTH = 16


pytestmark = pytest.mark.usefixtures("restored_threads")


@pytest.fixture
def words(tiny_data: Path, tmp_path: Path) -> list[str]:
    """Words of the command line for BPR on ``tiny``."""
    return words_for("BPR", tiny_data, tmp_path)


def words_for(model: str, tiny_data: Path, tmp_path: Path, **settings: Any) -> list[str]:
    (tmp_path / "bpr.yaml").write_text(yaml.safe_dump({**config_for(model, tiny_data), **settings}))
    return [f"--model={model}", f"--dataset={DATASET}", f"--config_files={tmp_path / 'bpr.yaml'}"]


def bench(name: str, words: list[str], tmp_path: Path, *options: str) -> dict[str, Any]:
    """The document that a benchmark wrote."""
    file = tmp_path / f"{name}.json"
    assert cli.main(["bench", name, f"--to={file}", "--threads=1", *options, *words]) == 0
    document = read_document(file)
    assert document["complete"]
    return document


def measures(document: dict[str, Any], name: str, sparsity: float | None = None) -> dict[str, Any]:
    [found] = [c for c in document["candidates"] if (c["name"], c["sparsity"]) == (name, sparsity)]
    return found["measures"]  # type: ignore[no-any-return]


@pytest.fixture
def both(words: list[str]) -> Iterator[tuple[PlainRun, OurRun]]:
    with scratch_folder() as scratch:
        config = our_config(words, scratch)
        yield PlainRun(plain_config(config, scratch)).begin(), OurRun(config, scratch)


def test_train_times_every_candidate(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = bench("train", words, tmp_path, "--repeats=2", "--sparsities=0,0.5", "--batches=2")
    for name, sparsity in (("plain", None), ("ours", 0.0), ("ours", 0.5)):
        seconds = measures(document, name, sparsity)["seconds"]
        assert len(seconds["samples"]) == 2 and min(seconds["samples"]) > 0
        if name == "ours":
            expected = measures(document, "plain")["seconds"]["median"] / seconds["median"]
            assert seconds["ratio_to"]["plain"] == pytest.approx(expected)
    assert document["settings"]["model"] == "BPR" and document["settings"]["train_batch_size"] == 1024
    assert "first 2 batches" in capsys.readouterr().out
    assert [path.name for path in Path.cwd().iterdir() if path.suffix not in (".json", ".yaml")] == []


def test_interrupted_epoch_leaves_the_rounds_before(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(0, 1000, 3))

    def clock() -> float:
        tick = next(ticks)
        if tick >= 15:  # two readings for each sample: the third sample never ends
            raise KeyboardInterrupt
        return float(tick)

    monkeypatch.setattr(train, "device_clock", lambda device: clock)
    file = tmp_path / "found.json"
    assert cli.main(["bench", "train", "--sparsities=0.5", "--batches=1", f"--to={file}", *words]) == 130
    document = read_document(file)
    assert not document["complete"]
    assert measures(document, "plain")["seconds"]["samples"] == [3.0]
    assert measures(document, "ours", 0.5)["seconds"] == {
        "samples": [3.0], "median": 3.0, "min": 3.0, "max": 3.0, "ratio_to": {"plain": 1.0}
    }  # fmt: skip


def test_plain_is_recbole_itself_and_ours_is_a_run_of_the_same(both: tuple[PlainRun, OurRun]) -> None:
    plain, ours = both
    assert type(plain.model).__module__ == "recbole.model.general_recommender.bpr"
    assert type(plain.trainer).__module__ == "recbole.trainer.trainer"
    assert not isinstance(plain.config, PruneConfig) and "pruner" not in plain.config
    assert type(plain.train_data).__module__.startswith("recbole.data.")
    assert plain.train_data is not ours.workshop.train_data
    trainer = ours.trainer(MaskSet.dense(ours.scope))
    for key, value in plain.model.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[key], value)
    plain.reseed(3)
    theirs = plain.trainer._train_epoch(plain.train_data, 0)
    ours.reseed(3)
    assert trainer._train_epoch(ours.workshop.train_data, 0) == pytest.approx(theirs, rel=1e-5)


def test_settings_of_both_sides_come_from_the_same_places(words: list[str], tmp_path: Path) -> None:
    with scratch_folder() as scratch:
        ours = our_config([*words, "--learning_rate=0.25"], scratch, epochs=7, eval_batch_size=11)
        plain = plain_config(ours, scratch)
    for config in (ours, plain):
        assert config["learning_rate"] == 0.25  # command line
        assert config["epochs"] == 1  # the user's file, above the benchmark's default
        assert config["eval_batch_size"] == 11  # the benchmark's default, above RecBole's


def test_masks_are_exact(both: tuple[PlainRun, OurRun]) -> None:
    ours = both[1]
    masks = ours.random_masks(0.9)
    for target in ours.scope:
        assert int(masks.per_row(target.name).sum()) == round(0.1 * target.prunable)
    weights = ours.trained(1)
    masks = ours.magnitude_masks(weights, 0.75)
    assert masks.kept == masks.prunable - int(0.75 * masks.prunable)
    live = torch.cat([weights[name][1:][mask[1:]].abs() for name, mask in masks.items()])
    pruned = torch.cat([weights[name][1:][~mask[1:]].abs() for name, mask in masks.items()])
    assert live.min() >= pruned.max()
    assert ours.random_masks(0.0).is_dense


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "ways"),
    [
        ("BPR", ["^blocks of matrix products$", "^a scan of inverted lists$" if available() else "matrix products"]),
        ("LightGCN", ["matrix products", "matrix products|inverted lists"]),
        ("SASRec", ["^RecBole's batches: SASRec ranks for sequences"] * 2),
    ],
)
def test_validation_finds_the_same_metrics_on_both_sides(
    model: str, ways: list[str], tiny_data: Path, tmp_path: Path
) -> None:
    words = words_for(model, tiny_data, tmp_path)
    document = bench("eval", words, tmp_path, "--repeats=1", "--sparsities=0,0.8", "--large_batch=50000")
    ours = [candidate for candidate in document["candidates"] if candidate["name"] == "ours"]
    assert [candidate["metrics_equal"] for candidate in ours] == [True, True]
    assert [candidate["metrics"] == candidate["plain_metrics"] for candidate in ours] == [True, True]
    assert ours[0]["metrics"] != ours[1]["metrics"]
    for candidate, way in zip(ours, ways):
        assert re.search(way, candidate["ranked_by"])
        assert sum(f"ranked by {candidate['ranked_by']}" in note for note in document["notes"]) >= 1
    sizes = {c["name"]: c["eval_batch_size"] for c in document["candidates"] if c["name"] != "ours"}
    assert sizes == {"plain": 4096, "plain, large batches": 50000}
    assert set(measures(document, "ours", 0.8)["seconds"]["ratio_to"]) == set(sizes)
    assert sum("metrics equal plain RecBole's" in note for note in document["notes"]) == 2


def test_different_metrics_are_called_different(both: tuple[PlainRun, OurRun], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ours = both
    weights = ours.trained(3)
    trainer = ours.trainer(MaskSet.dense(ours.scope), weights)
    monkeypatch.setattr(plain, "wear", lambda weights: None)  # it evaluates its own, untrained weights
    found = Results("eval", {"seconds": "seconds"}, ["plain"])
    evaluate._compare(trainer, ours.workshop.select_data, plain, 0.0, found)
    assert found.document()["candidates"][0]["metrics_equal"] is False
    assert "METRICS DIFFER" in found.notes[0]


def test_bytes_of_a_training_are_those_of_the_formula(both: tuple[PlainRun, OurRun]) -> None:
    plain, ours = both
    entries = (plain.dataset.user_num + plain.dataset.item_num) * _WIDTH
    table = {"weights": 4 * entries, "gradients": 4 * entries, "optimizer": 2 * 4 * entries + 2 * 4}
    plain.trainer._train_epoch(plain.train_data, 0)
    assert memory.tensor_bytes(plain.trainer) == {**table, "buffers": 0, "other": 0}
    trainer = ours.trainer(ours.random_masks(0.0))
    trainer._train_epoch(ours.workshop.train_data, 0)
    found = memory.tensor_bytes(trainer)
    assert {name: found[name] for name in table} == table
    assert found["other"] == entries  # the masks, a byte each


@pytest.fixture
def taught(words: list[str], tiny_data: Path, tmp_path: Path) -> list[str]:
    """The same with a file of ranked lists that teaches: the same ten items to every user of ``tiny``."""
    with scratch_folder() as scratch:
        dataset = OurRun(our_config(words, scratch), scratch).workshop.train_data._dataset
    users, items = (dataset.field2id_token[field][1:] for field in (dataset.uid_field, dataset.iid_field))
    (tmp_path / "lists.tsv").write_text("".join("\t".join([user, *items[:10]]) + "\n" for user in users))
    return [*words, "--distiller=rrd", f"--distill_teacher={tmp_path / 'lists.tsv'}"]


def test_training_is_timed_with_a_teacher_and_without(taught: list[str], tmp_path: Path) -> None:
    document = bench("train", taught, tmp_path, "--repeats=1", "--sparsities=0,0.5", "--batches=2", "--pruner=dsl")
    names = [(one["name"], one["sparsity"]) for one in document["candidates"]]
    assert names == [("plain", None), ("ours", 0), ("ours, rrd", 0), ("ours, dsl", 0.5), ("ours, dsl, rrd", 0.5)]
    assert document["settings"]["distiller"] == "rrd"


def test_every_benchmark_names_a_candidate_alike(taught: list[str]) -> None:
    with scratch_folder() as scratch:
        config = our_config([*taught, "--pruner=dsl"], scratch, teaches=True)
    options = {"sparsities": [0, 0.5], "skip_plain": True}
    names = [job[0] for job in memory._jobs(config, options, Results("memory", {}, []))]
    assert names == ["ours", "ours, rrd", "ours, dsl", "ours, dsl, rrd"]


def test_bytes_of_what_teaches_are_counted(taught: list[str]) -> None:
    with scratch_folder() as scratch:
        ours = OurRun(our_config(taught, scratch, teaches=True), scratch)
        data, sizes = ours.workshop.train_data, []
        for is_taught in (False, True):
            trainer = ours.candidate(0.0, is_taught)[1]
            trainer._train_epoch(data, 0)
            sizes.append(memory.tensor_bytes(trainer))
        [part] = trainer.session.parts
        lists = part.teacher.ranked_items
    assert {**sizes[1], "other": 0} == {**sizes[0], "other": 0}
    assert sizes[1]["other"] >= sizes[0]["other"] + sum(table.nbytes for table in lists)


@pytest.mark.parametrize(
    ("name", "words_of_teacher", "message"),
    [
        (
            "train",
            ["--distiller=rrd", "--distill_teacher_model=BPR"],
            "distill_teacher is empty: a benchmark trains no",
        ),
        ("eval", ["--distiller=rrd", "--distill_teacher_model=BPR"], "distiller=rrd is not allowed: only bench train"),
    ],
)
def test_teachers_that_a_benchmark_does_not_take(
    name: str, words_of_teacher: list[str], message: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", name, *words, *words_of_teacher]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_memory_is_measured_in_processes(words: list[str], tmp_path: Path) -> None:
    document = bench("memory", words, tmp_path, "--skip_plain=True", "--sparsities=0.5", "--batches=1")
    assert document["settings"]["model"] == "BPR" and len(document["candidates"]) == 2
    assert document["candidates"][0]["failed"] == "left out (--skip_plain)"
    ours, details = measures(document, "ours", 0.5), document["candidates"][1]["details"]
    assert ours["state"]["median"] == details["weights"] + details["gradients"] + details["optimizer"]
    assert ours["all_tensors"]["median"] == sum(details.values())
    assert ours["peak"]["median"] >= ours["peak_of_epoch"]["median"] > 1e8  # torch alone is larger


@pytest.mark.multiprocess
def test_what_the_runs_refuse_is_one_message(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "memory", "--sparsities=0.5", *words, "--prune_scope=everything"]) == 2
    assert "prune_scope=everything" in capsys.readouterr().err.splitlines()[-1]


def test_artifact_is_compared_with_checkpoint_weights_and_bound(words: list[str], tmp_path: Path) -> None:
    document = bench("artifact", words, tmp_path, "--repeats=1", "--sparsities=0,0.9", "--values=fp32,int8")
    bare = measures(document, "bare weights")["bytes"]["median"]
    assert bare == 4 * _WIDTH * (121 + 241)
    assert measures(document, "checkpoint")["bytes"]["median"] > 3 * bare  # weights and two moments
    dense = measures(document, "artifact fp32", 0.0)
    assert dense["tables"]["median"] == bare
    sparse = measures(document, "artifact fp32", 0.9)
    assert 0.1 * bare < sparse["bound"]["median"] <= sparse["tables"]["median"] < 0.2 * bare
    assert measures(document, "artifact int8", 0.9)["tables"]["median"] < sparse["tables"]["median"]
    assert sparse["load"]["median"] > 0
    assert sparse["bytes"]["ratio_to"]["bare weights"] == pytest.approx(sparse["bytes"]["median"] / bare)


def test_exported_weights_are_the_trained_ones_without_the_pruned(
    both: tuple[PlainRun, OurRun], tmp_path: Path
) -> None:
    ours = both[1]
    weights = ours.trained(1)
    artifact.export(ours, weights, 0.8, tmp_path / "artifact", "fp32")
    state, masks = read_artifact(tmp_path / "artifact").state(), ours.magnitude_masks(weights, 0.8)
    for name, mask in masks.items():
        assert np.array_equal(state[name], (weights[name] * mask).numpy())


def test_recommending_compares_lists_and_says_what_is_missing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recommend, "RIVALS", {"torch": recommend.RIVALS["torch"], "absent": lambda *_: None})
    document = bench("recommend", words, tmp_path, "--repeats=2", "--sparsities=0.5,0.9", "--k=7")
    for sparsity in (0.5, 0.9):
        ours = measures(document, "ours", sparsity)["seconds"]
        assert set(ours["ratio_to"]) == {"torch"} and len(ours["samples"]) == 2
    [missing, _] = [c for c in document["candidates"] if c["name"] == "absent"]
    assert missing["failed"] == "not installed" and missing["measures"] == {}
    [same, _] = [c["same_lists_as_torch"] for c in document["candidates"] if c["name"] == "ours"]
    assert same > 0.99
    assert {c["same_scores_as_torch"] for c in document["candidates"] if c["name"] == "ours"} == {1.0}


@pytest.mark.parametrize("word", ["--model=BPR", "-d", "--learning_rate=0.1", "--sparsities=0.5"])
def test_an_artifact_takes_no_settings(word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They would be ignored: everything but the measuring is decided by the artifact."""
    words = ["bench", "recommend", f"--artifact={tmp_path / 'absent'}", "--k=3", "--repeats=1", "--threads=1"]
    assert cli.main([*words, word]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--artifact=" in error and error.count(word.partition("=")[0]) == 1


def test_recommending_from_an_artifact(
    both: tuple[PlainRun, OurRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = both[1]
    artifact.export(ours, ours.trained(1), 0.8, tmp_path / "artifact", "fp32")
    monkeypatch.setattr(recommend, "RIVALS", {"torch": recommend.RIVALS["torch"]})
    document = bench("recommend", [], tmp_path, f"--artifact={tmp_path / 'artifact'}", "--repeats=1", "--k=3")
    assert document["settings"] == {"model": "BPR", "dataset": DATASET}
    assert {c["sparsity"] for c in document["candidates"]} == {0.8}


def test_scores_of_lists() -> None:
    users, items = np.float32([[1, 2], [0, 1]]), np.float32([[9, 9], [1, 0], [3, 4]])
    scores = recommend.scores_of(users, items, np.array([[2, 1], [2, -1]]))
    assert np.array_equal(scores, np.float32([[11, 1], [4, -np.inf]]))


@pytest.mark.parametrize("name", recommend.RIVALS)
def test_rivals_do_what_their_docstrings_say(name: str) -> None:
    pytest.importorskip(name.partition(",")[0])
    draw = np.random.default_rng(1)
    users, items = draw.normal(size=(70, 8)).astype(np.float32), draw.normal(size=(50, 8)).astype(np.float32)
    seen = [np.unique(np.append(draw.integers(1, 50, draw.integers(0, 9)), 0)) for _ in users]
    seen[3] = np.delete(np.arange(50), [17, 30])  # fewer items are left than are asked for
    seen[4] = np.arange(50)
    pointers = np.concatenate([[0], np.cumsum([len(ids) for ids in seen])])
    found = recommend.RIVALS[name](users, items, 5, pointers, np.concatenate(seen), 1)
    for user, row in enumerate(found):
        scores = items @ users[user]
        scores[[] if name == "faiss, seen kept" else seen[user]] = -np.inf
        best = np.argsort(-scores)[:5]
        assert row.tolist() == np.where(np.isinf(scores[best]), -1, best).tolist()


def test_search_against_one_dense_run(words: list[str], tmp_path: Path) -> None:
    options = [f"--output_dir={tmp_path / 'pruned'}", "--prune_rounds=1", "--prune_rate=0.5", "--epochs=2"]
    document = bench("search", [*words, *options], tmp_path)
    plain, ours = measures(document, "plain"), measures(document, "ours", 0.5)
    for side in (plain, ours):
        parts = side["train"]["median"] + side["eval"]["median"]
        assert side["train_and_eval"]["median"] == pytest.approx(parts)
        assert side["seconds"]["median"] > parts
    expected = ours["seconds"]["median"] / plain["seconds"]["median"]
    assert ours["seconds"]["ratio_to"]["plain"] == pytest.approx(expected)
    [epochs] = [c["epochs"] for c in document["candidates"] if c["name"] == "ours"]
    assert epochs == 4
    again = bench("search", [*words, *options], tmp_path)  # the folder is finished: nothing is trained
    assert "seconds" not in measures(again, "ours", 0.5)
    assert measures(again, "ours", 0.5)["train"]["median"] == ours["train"]["median"]
    assert any("summed from the journal" in note for note in again["notes"])
