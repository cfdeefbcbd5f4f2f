"""Datasets that are kept without pickles: what is read is what is built, and what does not fit is not believed."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import tracemalloc
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow_but
from recbole.data.dataset import Dataset
from recbole.utils import FeatureSource, FeatureType
from safetensors.numpy import load, load_file, save
from test_plain_equality import our_run
from zoo import DATASET, config_for

import recbole_prune
from recbole_prune import PruneConfig, run_recbole_prune
from recbole_prune.data import cached
from recbole_prune.data.cached import cached_dataset
from recbole_prune.data.plain_values import Decoder, Encoder, NotPlain
from recbole_prune.data.saved import create_dataset
from recbole_prune.disk.seals import sha256
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


def assert_same(one: Any, other: Any, place: str = "") -> None:
    """Equal in all of it: types, order, dtypes, indices."""
    text = isinstance(one, str) and isinstance(other, str)
    assert text or type(one) is type(other), f"{place}: {type(one)} and {type(other)}"
    if isinstance(one, dict):
        assert_same(list(one), list(other), f"{place} keys")
        for name, value in one.items():
            assert_same(value, other[name], f"{place}.{name}")
    elif isinstance(one, (list, tuple)) or (isinstance(one, np.ndarray) and one.dtype == object):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other)):
            assert_same(*pair, f"{place}[{number}]")
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, place
        np.testing.assert_array_equal(one, other, place)
    elif isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, check_exact=True, check_column_type="exact")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), place
    else:
        assert one == other or (one != one and other != other), place


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
    record = json.loads(arrays.pop("description").tobytes()[64:])
    arrays = {name: array.copy() for name, array in arrays.items()}
    record = change(record, arrays) or record
    record["arrays"] = cached._digest(arrays)
    text = json.dumps(record).encode()
    sealed = np.frombuffer(sha256(text).encode() + text, np.uint8)
    file.write_bytes(save({**arrays, "description": sealed}))


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


# ---- values ----------------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([np.int64, np.float64, np.float32, np.uint8, np.bool_])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
ARRAYS = st.builds(lambda kind, size: np.arange(size).astype(kind), NUMBERS, st.integers(0, 4))
TEXTS = st.lists(st.text(max_size=3).filter(lambda text: not text.endswith("\0")), min_size=1, max_size=4)
LEAVES = (
    SCALARS
    | ARRAYS
    | ARRAYS.map(lambda array: torch.from_numpy(array.astype(np.float32)))
    | TEXTS.map(lambda texts: np.array(texts, dtype=object))
    | TEXTS.map(lambda texts: np.array(texts, dtype="U9"))
    | st.sampled_from([FeatureType.TOKEN_SEQ, FeatureSource.ITEM_ID, np.float32(0.5), np.int64(3)])
    | TEXTS.map(lambda texts: {text: number for number, text in enumerate(texts)})
    | ARRAYS.map(lambda array: pd.DataFrame({"a": array, "b": array[::-1]}, index=np.arange(len(array)) * 2))
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


def there_and_back(value: object) -> Any:
    encoder = Encoder()
    node = json.loads(json.dumps(encoder.encode(value)))
    return Decoder(load(save(encoder.arrays)) if encoder.arrays else {}).decode(node)


@settings(max_examples=150, deadline=None)
@given(value=VALUES)
def test_values_come_back(value: Any) -> None:
    assert_same(value, there_and_back(value))


def test_sequences_of_any_length_and_what_stands_twice_come_back() -> None:
    ragged = np.empty(3, dtype=object)
    for number, length in enumerate((2, 0, 3)):
        ragged[number] = np.arange(length)
    shared = {"a": 1}
    found = there_and_back([{"rows": ragged, "even": np.array([[1, 2], [3, 4]])}, shared, shared, {3, "x"}])
    assert_same(found[0]["rows"], ragged)
    assert found[1] is found[2] and found[3] == {3, "x"}


@pytest.mark.parametrize("value", [object(), len, np.array([object()]), np.array(["2024"], "M8[D]"), {1: [object()]}])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(NotPlain):
        Encoder().encode(value)


KINDS = "list tuple set dict counts ids array unicode texts ragged tensor frame number again enum".split()
NODES = st.recursive(
    st.none() | st.integers(-2, 3) | st.sampled_from([*"0123x", 1 << 40]),
    lambda inner: st.lists(inner, max_size=4) | st.builds(lambda kind, parts: [kind, *parts, 7], st.sampled_from(KINDS),
                                                          st.lists(inner, max_size=3)),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(node=NODES)
def test_any_node_is_a_value_or_refused(node: Any) -> None:
    arrays = {"0": np.arange(4), "1": np.array([1, 2, 1]), "2": np.zeros((10**9, 0)), "3": np.array([-3, 3, 4])}
    tracemalloc.start()
    with suppress(NotPlain):
        Decoder(arrays).decode(node)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


ONE = np.arange(4)
EMPTY = np.zeros(0, np.uint8)
GROWING = {
    "texts of no bytes, but wide": (["unicode", ["a", "b"], 1 << 40, 0], {"a": EMPTY, "b": np.zeros(1000, np.int64)}),
    "a width that numpy chooses": (["unicode", ["a", "b"], 0, 0], {"a": np.full(9, 65, np.uint8), "b": np.array([9])}),
    "texts that overlap": (["texts", ["a", "b"], 0], {"a": np.full(9, 65, np.uint8), "b": np.array([9, -9, 9])}),
    "sequences that overlap": (["ragged", "a", "b", 0], {"a": ONE, "b": np.array([4, -4, 4])}),
    "more than there is": (["ragged", "a", "b", 0], {"a": ONE, "b": np.array([4, 1])}),
    "a scalar as a column": (["frame", 1 << 40, [["a", "x"]], None, 0], {}),
    "a number as a column": (["frame", 1 << 40, [["a", ["number", "a"]]], None, 0], {"a": ONE[:1]}),
    "a dict as a column": (["frame", 1 << 40, [["a", ["dict", [], 1]]], None, 0], {}),
    "a column twice": (["frame", 4, [["a", ["array", "a", 1]], ["b", ["again", 1]]], None, 2], {"a": ONE}),
    "rows without columns": (["frame", 1 << 40, [], None, 0], {}),
    "an array twice": (["list", [["array", "a", 1], ["array", "a", 2]], 3], {"a": ONE}),
    "an array of no bytes": (["array", "a", 1], {"a": np.zeros((1 << 40, 0))}),
    "a key that is a tuple": (["dict", [[["tuple", [], 1], 1]], 0], {}),
    "a tuple in a set": (["set", [["tuple", [], 1]], 0], {}),
    "keys of counts": (["counts", ["list", [["tuple", [1, 2], 1]], 2], 0], {}),
}


@pytest.mark.parametrize(("node", "arrays"), GROWING.values(), ids=GROWING)
def test_nothing_grows_beyond_its_file(node: Any, arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(NotPlain):
        Decoder(dict(arrays)).decode(node)


def test_what_would_be_refused_is_not_written() -> None:
    with pytest.raises(NotPlain, match="few of them so long"):
        Encoder().encode(np.array(["x" * 20_000, *"abcdefgh" * 1000]))


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
