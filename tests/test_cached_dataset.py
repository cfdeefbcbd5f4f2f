"""Datasets that are kept without pickles: what is read is what is built, and what does not fit is not believed."""

from __future__ import annotations

import logging
import pickle
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from marks import slow_but
from recbole.data.dataset import Dataset
from safetensors.numpy import load, load_file, save
from test_plain_equality import our_run
from test_plain_values import assert_same
from zoo import DATASET, config_for

import recbole_prune
from recbole_prune import PruneConfig, run_recbole_prune
from recbole_prune.data import cached
from recbole_prune.data.cached import cached_dataset
from recbole_prune.data.plain_values import Decoder
from recbole_prune.data.saved import create_dataset
from recbole_prune.disk.seals import seal, unseal
from recbole_prune.errors import ConfigError

# a model of every class of datasets, but that of DIEN, which draws random numbers
OF_EVERY_CLASS = {
    "BPR": "Dataset",
    "BERT4Rec": "SequentialDataset",
    "CFKG": "KnowledgeBasedDataset",
    "GRU4RecKG": "GRU4RecKGDataset",
    "KSR": "KSRDataset",
}
RUN = ("config", "logger")
ALWAYS = (
    "inter_feat", "user_feat", "item_feat", "feat_name_list", "field2type", "field2seqlen", "field2source",
    "field2id_token", "field2token_id", "benchmark_filename_list", "uid_field", "alias", "dataset_name",
)  # fmt: skip


def config_of(model: str, data: Path, **changes: Any) -> PruneConfig:
    return PruneConfig(model, DATASET, config_dict={**config_for(model, data), **changes})


def attributes(dataset: object) -> dict[str, Any]:
    return {name: value for name, value in vars(dataset).items() if name not in RUN}


def only_file(folder: Path) -> Path:
    [file] = folder.iterdir()
    return file


@pytest.fixture
def no_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("load", "loads", "dump", "dumps"):
        monkeypatch.setattr(pickle, name, lambda *args, **words: pytest.fail("something is pickled"))


# ---- the same --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "kind"), OF_EVERY_CLASS.items())
@pytest.mark.usefixtures("no_pickles")
def test_what_is_read_is_what_is_built(
    model: str, kind: str, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(model, tiny_data)
    expected = create_dataset(config)
    with caplog.at_level(logging.INFO, "recbole_prune"):
        built = cached_dataset(config, tmp_path / "cache")
        assert "the dataset is kept in" in caplog.messages[-1]
        read = cached_dataset(config, tmp_path / "cache")
        assert "the dataset was read from" in caplog.messages[-1]
    assert type(expected).__name__ == kind and type(built) is type(read) is type(expected)
    for dataset in (built, read):
        assert_same(attributes(expected), attributes(dataset))
        assert dataset.config is config
    assert str(read) == str(expected)
    file = only_file(tmp_path / "cache")
    assert file.name == f"{kind}.dataset.safetensors" and load_file(file), "other programs can open it"


ROWS = {
    "BPR": {"user_inter_num_interval": "[3,inf)", "item_inter_num_interval": "[3,inf)", "rm_dup_inter": "first"},
    "FM": {"val_interval": {"rating": "[2,inf)"}, "normalize_all": True},
    "DeepFM": {"threshold": {"rating": 4}},
}


@pytest.mark.parametrize(("model", "changes"), ROWS.items(), ids=ROWS)
def test_settings_that_building_asks_for(model: str, changes: dict[str, Any], tiny_data: Path, tmp_path: Path) -> None:
    config = config_of(model, tiny_data, **changes)
    cached_dataset(config, tmp_path)
    assert_same(attributes(create_dataset(config)), attributes(cached_dataset(config, tmp_path)))


def test_files_of_a_given_split(tiny_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / DATASET
    shutil.copytree(tiny_data / DATASET, folder)
    lines = (folder / f"{DATASET}.inter").read_text().splitlines(keepends=True)
    for number, part in enumerate(("a", "b", "c")):
        (folder / f"{DATASET}.{part}.inter").write_text("".join(lines[:1] + lines[1:][number::3]))
    config = config_of("BPR", tmp_path / "data", benchmark_filename=["a", "b", "c"])
    cached_dataset(config, tmp_path / "cache")
    read = cached_dataset(config, tmp_path / "cache")
    assert isinstance(read.field2seqlen, defaultdict)
    assert_same(attributes(create_dataset(config)), attributes(read))


@pytest.mark.parametrize("model", slow_but(["BPR"], ["BPR", "SASRec", "CKE", "FM"]))
def test_runs_from_a_file_are_runs_from_the_data(
    model: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = {**config_for(model, tiny_data), "epochs": 2, "output_dir": str(tmp_path)}
    expected = our_run(model, plain, monkeypatch)
    for word in ("is kept in", "was read from"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert our_run(model, {**plain, "cache_dataset": True, "fresh": True}, monkeypatch) == expected
        assert f"the dataset {word} {tmp_path / DATASET}" in caplog.text


def test_one_file_serves_models_and_teachers(tiny_data: Path, tmp_path: Path) -> None:
    common = {**config_for("BPR", tiny_data), "epochs": 1, "output_dir": str(tmp_path), "cache_dataset": True}
    run_recbole_prune("BPR", DATASET, config_dict={**common, "distiller": "rd", "distill_teacher_model": "LightGCN"})
    file = tmp_path / DATASET / "Dataset.dataset.safetensors"
    before = file.stat().st_mtime_ns
    run_recbole_prune("LightGCN", DATASET, config_dict={**common, "learning_rate": 0.1})
    assert file.stat().st_mtime_ns == before
    assert len(list((tmp_path / DATASET).glob("*.safetensors"))) == 1


# ---- not the same ----------------------------------------------------------------------------------------------------


def test_other_settings_data_and_versions_are_built_anew(
    tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_data, tmp_path / "data")
    atomic = tmp_path / "data" / DATASET / f"{DATASET}.inter"

    def messages(**changes: Any) -> str:
        caplog.clear()
        config = config_of("BPR", tmp_path / "data", **changes)
        with caplog.at_level(logging.INFO, "recbole_prune"):
            assert_same(attributes(create_dataset(config)), attributes(cached_dataset(config, tmp_path / "cache")))
        return "\n".join(caplog.messages)

    assert "is kept in" in messages()
    assert "was read from" in messages(learning_rate=0.5, seed=7, eval_args={"split": {"RS": [0.5, 0.3, 0.2]}})
    found = messages(user_inter_num_interval="[4,inf)")
    assert "is replaced: it was made with user_inter_num_interval='[0,inf)', and here it is '[4,inf)'" in found
    assert "was read from" in messages(user_inter_num_interval="[4,inf)")
    atomic.write_text("".join(atomic.read_text().splitlines(keepends=True)[:-1]))
    assert "is replaced: it was made from other files" in messages(user_inter_num_interval="[4,inf)")
    monkeypatch.setattr(recbole_prune, "__version__", "0.0")
    assert "or by other versions of RecBole" in messages(user_inter_num_interval="[4,inf)")
    assert "was read from" in messages(user_inter_num_interval="[4,inf)")


@pytest.fixture
def kept(tiny_data: Path, tmp_path: Path) -> tuple[PruneConfig, Path]:
    """A config whose dataset is kept, and the file."""
    config = config_of("BPR", tiny_data)
    cached_dataset(config, tmp_path / "cache")
    return config, only_file(tmp_path / "cache")


def refusal(kept: tuple[PruneConfig, Path], caplog: pytest.LogCaptureFixture) -> str:
    """The warning about a file, after which the dataset is as ever and the file in order."""
    config, file = kept
    caplog.clear()
    dataset = cached_dataset(config, file.parent)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert_same(attributes(create_dataset(config)), attributes(dataset))
    caplog.clear()
    cached_dataset(config, file.parent)
    assert not caplog.records
    return warning


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: b"", "cannot be read"),
        (lambda data: data[:100], "cannot be read"),
        (lambda data: data[:-8], "cannot be read"),
        (lambda data: b"\xff" * 8 + data[8:], "it is no safetensors file"),
        (lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "it is damaged"),
        (lambda data: save({"other": np.arange(3)}), "KeyError: 'description'"),
        (lambda data: save({"description": np.zeros(3, np.uint8)}), "cannot be read"),
    ],
)
def test_a_damaged_file_is_replaced(
    change: Any, words: str, kept: tuple[PruneConfig, Path], caplog: pytest.LogCaptureFixture
) -> None:
    kept[1].write_bytes(change(kept[1].read_bytes()))
    assert words in refusal(kept, caplog)


def forge(file: Path, change: Any) -> None:
    """Change what a file says, and make its hashes fit again."""
    arrays = load(file.read_bytes())
    record = unseal(arrays.pop("description").tobytes())
    assert record is not None
    arrays = {name: array.copy() for name, array in arrays.items()}
    record = change(record, arrays) or record
    record["arrays"] = cached._digest(arrays)
    file.write_bytes(save({**arrays, "description": np.frombuffer(seal(record), np.uint8)}))


def ids_of(record: dict[str, Any], field: str) -> str:
    """Name of the array of a field's ids among the interactions."""
    parts = dict(map(tuple, record["dataset"][1]))["inter_feat"]
    return dict(map(tuple, parts[2]))[field][1]


def _drop(pairs: list[list[Any]], name: str) -> None:
    pairs[:] = [pair for pair in pairs if pair[0] != name]


def _set(record: dict[str, Any], name: str, node: Any) -> None:
    for pair in record["dataset"][1]:
        if pair[0] == name:
            pair[1] = node


def _set_in(record: dict[str, Any], name: str, key: str, node: Any) -> None:
    """Another value in a dict, as pairs whatever it was written as."""
    fields = ["user_id", "item_id"]
    others = {"field2seqlen": 1, "field2type": ["enum", "FeatureType", "TOKEN", 10**6 + 1]}
    _set(record, name, ["dict", [[each, node if each == key else others[name]] for each in fields], 10**6 + 2])


def _put(array: np.ndarray, value: int) -> None:
    array[0] = value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r, a: _put(a[ids_of(r, "user_id")], 10**6), "user_id has ids from 1 to 1000000, and there are 121"),
        (lambda r, a: _put(a[ids_of(r, "item_id")], -1), "item_id has ids from -1 to 240, and there are 241"),
        (lambda r, a: r.update(dataset=["array", "0", 1]), "cannot be read"),
        (lambda r, a: r.update(dataset=["os.system", "true", 1]), "KeyError: 'os.system'"),
        (lambda r, a: r.update(dataset=["dict", [["field2type", ["dict", [], 1]]] * 2, 0]), "KeyError"),
        *((lambda r, a, name=name: _drop(r["dataset"][1], name), "cannot be read") for name in ALWAYS),
        (
            lambda r, a: _drop(dict(map(tuple, r["dataset"][1]))["inter_feat"][2], "user_id"),
            "inter_feat has no user_id",
        ),
        (lambda r, a: r["dataset"][1].append(["build", "x"]), "build cannot be"),
        (lambda r, a: r["dataset"][1].append(["config", "x"]), "config cannot be"),
        (lambda r, a: _set(r, "feat_name_list", ["list", [], 10**6]), "feat_name_list cannot be"),
        (lambda r, a: _set(r, "uid_field", "item_id"), "uid_field is not what the settings say"),
        (lambda r, a: _set(r, "dataset_path", "/"), "dataset_path is not what the settings say"),
        (lambda r, a: _set_in(r, "field2seqlen", "item_id", 10**11), "item_id has sequences of 100000000000"),
        (lambda r, a: _set_in(r, "field2type", "item_id", ["enum", "FeatureType", "FLOAT", 10**6]), "has no item_id"),
        (lambda r, a: r.update(origin=None), "cannot be read"),
    ],
)
def test_a_forged_file_is_replaced(
    change: Any, words: str, kept: tuple[PruneConfig, Path], caplog: pytest.LogCaptureFixture
) -> None:
    forge(kept[1], change)
    assert words in refusal(kept, caplog)


def test_what_draws_random_numbers_is_not_kept(
    tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of("DIEN", tiny_data)
    cached_dataset(config, tmp_path / "cache")
    assert "the dataset is not kept: building it draws random numbers" in caplog.text
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_takes_no_file_is_no_reason_to_end(
    tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    config = config_of("BPR", tiny_data)
    dataset = cached_dataset(config, tmp_path / "file" / "cache")
    assert_same(attributes(create_dataset(config)), attributes(dataset))
    assert "the dataset is not kept: cannot write" in caplog.text


@pytest.mark.parametrize("other", [{"save_dataset": True}, {"dataset_save_path": "there.pth"}])
def test_one_way_at_a_time(other: dict[str, Any], tiny_data: Path) -> None:
    [(name, value)] = other.items()
    with pytest.raises(ConfigError, match=f"cache_dataset=True is not allowed with {name}={value}"):
        config_of("BPR", tiny_data, cache_dataset=True, **other)


def test_files_that_change_while_they_are_read_are_not_kept(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tiny_data, tmp_path / "data")
    atomic = tmp_path / "data" / DATASET / f"{DATASET}.inter"
    config = config_of("BPR", tmp_path / "data")
    read = Dataset._load_data

    def read_and_lose_a_line(self: Dataset, *args: Any) -> None:
        read(self, *args)
        atomic.write_text("".join(atomic.read_text().splitlines(keepends=True)[:-1]))

    monkeypatch.setattr(Dataset, "_load_data", read_and_lose_a_line)
    cached_dataset(config, tmp_path / "cache")
    assert "the dataset is not kept: its files changed while it was built" in caplog.text
    assert not (tmp_path / "cache").exists()


def test_memory_that_does_not_suffice_is_no_reason_to_end(
    kept: tuple[PruneConfig, Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        monkeypatch.undo()
        raise MemoryError

    monkeypatch.setattr(Decoder, "decode", fail)
    assert "cannot be read (MemoryError: )" in refusal(kept, caplog)


def test_of_several_processes_the_first_keeps_it(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached.group, "is_first", lambda: False)
    cached_dataset(config_of("BPR", tiny_data), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
