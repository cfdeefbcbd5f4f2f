"""Datasets as they are once RecBole has read, filtered and renumbered them, kept in a file that runs no code.

RecBole's ``save_dataset`` pickles them. Here a file is safetensors: arrays, and JSON that says what they are
(:mod:`recbole_prune.data.plain_values`). It is believed only if the data's files, every setting that building the
dataset asked for, and the versions of RecBole, pandas, numpy and this package are those it was made from; otherwise the
dataset is built, and the file replaced. Where a file is damaged, or not such as is written here, that is said and the
dataset is built. Hashes show damage, not forgery: who can write the file can put other data in it, but nothing that
runs, grows out of proportion, or has ids that are no rows.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from logging import INFO, WARNING, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import recbole
from recbole.utils import FeatureType, ModelType
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

import recbole_prune
from recbole_prune.data.plain_values import Array, Decoder, Encoder, NotPlain
from recbole_prune.data.random_streams import have_moved, random_state
from recbole_prune.disk.files import read_file, write_atomic
from recbole_prune.disk.seals import seal, unseal
from recbole_prune.errors import StoreError, printable
from recbole_prune.ranks import group

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset

SUFFIX = ".dataset.safetensors"
_FORMAT = 1
_DESCRIPTION = "description"
_LONGEST_HEADER = 1 << 24
_CLASSES = {ModelType.SEQUENTIAL: "SequentialDataset", ModelType.KNOWLEDGE: "KnowledgeBasedDataset"}
# attributes that every run has its own of
_OF_A_RUN = ("config", "logger")
# what SequentialDataset takes from settings
_OF_SETTINGS = {"max_item_list_len": "MAX_ITEM_LIST_LENGTH", "item_list_length_field": "ITEM_LIST_LENGTH_FIELD"}
# that are kept, of fields whose longest sequences were filtered out
_LONGEST_SEQUENCE = 1 << 16
# what a file may lead to whatever is in it
_UNREADABLE = (
    ValueError, StoreError, LookupError, TypeError, AttributeError, OverflowError, RuntimeError, MemoryError,
)  # fmt: skip


class _Outdated(Exception):
    """A file in order, of another dataset."""


def cached_dataset(config: Config, folder: Path) -> Dataset:
    """The dataset of a config as RecBole's ``create_dataset`` builds it, from a file of the folder if one has it.

    Args:
        config: of the run.
        folder: where a file for each class of datasets lies.
    """
    kind = _class_of(config)
    path = folder / f"{kind.__name__}{SUFFIX}"
    if path.exists():
        try:
            dataset = _read(path, kind, config)
            _say(f"the dataset was read from {path}")
            return dataset
        except _Outdated as reason:
            _say(f"{path} is replaced: {reason}")
        except _UNREADABLE as error:
            what = error if isinstance(error, NotPlain) else f"{type(error).__name__}: {error}"
            _say(f"{path} cannot be read ({what}): the dataset is built, and the file replaced", WARNING)
    streams, asked, origin = random_state(), _Asked(config), _origin(config, kind)
    dataset = kind(asked)
    dataset.config = config
    try:
        if have_moved(streams):
            raise NotPlain("building it draws random numbers")
        if _origin(config, kind) != origin:
            raise NotPlain("its files changed while it was built")
        if group.is_first():
            write_atomic(path, _to_bytes(dataset, {**origin, "settings": asked.answers()}))
            _say(f"the dataset is kept in {path}")
    except (ValueError, StoreError) as error:  # JSON lacks some numbers
        _say(f"the dataset is not kept: {error}", WARNING)
    return dataset


def data_digest(folder: Path, dataset: str) -> str:
    """sha256 over the atomic files of a dataset, by name and content. Folders, pipes and dangling links are none."""
    digest = hashlib.sha256()
    entries = folder.iterdir() if folder.is_dir() else ()
    for file in sorted(entry for entry in entries if entry.name.startswith(f"{dataset}.") and entry.is_file()):
        digest.update(file.name.encode() + b"\0")
        with open(file, "rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def _class_of(config: Config) -> type[Dataset]:
    """RecBole's choice: a class that is named as the model, else that of the model's kind."""
    classes = importlib.import_module("recbole.data.dataset")
    of_kind = getattr(classes, _CLASSES.get(config["MODEL_TYPE"], "Dataset"))
    found: type[Dataset] = getattr(classes, f"{config['model']}Dataset", of_kind)
    return found


def _origin(config: Config, kind: type[Dataset]) -> dict[str, Any]:
    """What a dataset is built from beside settings."""
    libraries = {module.__name__: module.__version__ for module in (recbole, recbole_prune, pd, np)}
    data = data_digest(Path(config["data_path"]), config["dataset"])
    return {"format": _FORMAT, "class": f"{kind.__module__}.{kind.__qualname__}", "data": data, "versions": libraries}


class _Asked:
    """A config that keeps what it is asked for, while a dataset is built."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._names: set[str] = set()
        self._attributes: list[str] = []

    def __getitem__(self, name: str) -> object:
        self._names.add(name)
        return self._config[name]

    def __contains__(self, name: str) -> bool:
        self._names.add(name)
        return name in self._config

    def __setitem__(self, name: str, value: object) -> None:
        self._attributes.append(f"{name}, to set it")
        self._config[name] = value

    def __getattr__(self, name: str) -> object:
        self._attributes.append(name)
        return getattr(self._config, name)

    def answers(self) -> dict[str, str]:
        """Every setting that was asked for, as text.

        Raises:
            NotPlain: not only settings were asked for.
        """
        if self._attributes:
            raise NotPlain(f"building it asks for config.{self._attributes[0]}")
        return {name: _answer(self._config, name) for name in sorted(self._names)}


def _answer(config: Config, name: str) -> str:
    return repr(config[name])


def _to_bytes(dataset: Dataset, origin: Mapping[str, Any]) -> bytes:
    encoder = Encoder()
    node = encoder.encode({name: value for name, value in vars(dataset).items() if name not in _OF_A_RUN})
    record = {"origin": origin, "dataset": node, "arrays": _digest(encoder.arrays)}
    return save_safetensors({**encoder.arrays, _DESCRIPTION: np.frombuffer(seal(record), np.uint8)})


def _digest(arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        digest.update(arrays[name].data)
    return digest.hexdigest()


def _read(path: Path, kind: type[Dataset], config: Config) -> Dataset:
    arrays = _load(read_file(path))
    record = unseal(arrays.pop(_DESCRIPTION).tobytes())
    if record is None or record["arrays"] != _digest(arrays):
        raise NotPlain("it is damaged")
    answers = record["origin"].pop("settings")
    if record["origin"] != _origin(config, kind):
        raise _Outdated("it was made from other files, or by other versions of RecBole, pandas, numpy or recbole_prune")
    for name, answer in answers.items():
        if _answer(config, name) != answer:
            raise _Outdated(f"it was made with {name}={answer}, and here it is {_answer(config, name)}")
    return _restore(kind, Decoder(arrays).decode(record["dataset"]), config)


def _load(data: bytes) -> dict[str, Array]:
    if int.from_bytes(data[:8], "little") > _LONGEST_HEADER:
        raise NotPlain("it is no safetensors file")
    try:
        return load_safetensors(data)
    except SafetensorError as error:
        raise NotPlain(str(error)) from error


def _restore(kind: type[Dataset], given: dict[str, Any], config: Config) -> Dataset:
    """A dataset with the attributes that were kept; refused where they are not such as RecBole leaves."""
    _require_what_settings_say(kind, given, config)
    for name, setting in _OF_SETTINGS.items():
        if name in given and given[name] != config[setting]:
            raise NotPlain(f"{name} is not {setting}")
    wrong = [name for name in given if name in _OF_A_RUN or hasattr(kind, name)]
    frames = [name for name, value in given.items() if isinstance(value, pd.DataFrame)]
    if wrong or set(given["feat_name_list"]) != set(frames) or not {"user_feat", "item_feat"} <= set(given):
        raise NotPlain(f"{', '.join(wrong) or 'feat_name_list'} cannot be")
    dataset = object.__new__(kind)
    vars(dataset).update(given, config=config, logger=getLogger())
    for field in filter(None, (dataset.uid_field, dataset.iid_field)):
        if field not in dataset.inter_feat or dataset.field2type[field] != FeatureType.TOKEN:
            raise NotPlain(f"inter_feat has no {field}")
    for name in frames:
        for field in given[name]:
            _check_column(dataset, field, given[name][field].to_numpy())
    return dataset


def _require_what_settings_say(kind: type[Dataset], given: dict[str, Any], config: Config) -> None:
    """Compare attributes with those that a dataset has before it has read anything."""
    begun = object.__new__(kind)
    vars(begun).update(config=config, logger=getLogger(), dataset_name=config["dataset"])
    begun._get_preset()
    begun._get_field_from_config()
    for name, value in vars(begun).items():
        if name in _OF_A_RUN:
            continue
        kept = given[name]
        if isinstance(value, dict) and isinstance(kept, dict):
            kept = {key: kept[key] for key in value}
        if type(kept) is not type(value) or kept != value:
            raise NotPlain(f"{name} is not what the settings say")


def _check_column(dataset: Dataset, field: str, column: Array) -> None:
    """Refuse ids that a table of the field's tokens has no row for, and what is of another kind than its field."""
    of_type = dataset.field2type[field]
    if (column.dtype == object) != (of_type in (FeatureType.TOKEN_SEQ, FeatureType.FLOAT_SEQ)):
        raise NotPlain(f"{field} is no {of_type}")
    longest = max([1, *map(len, column)]) if column.dtype == object else 1
    asked = dataset.config["seq_len"] or {}
    if not 0 <= dataset.field2seqlen[field] <= max(longest, asked.get(field, 0), _LONGEST_SEQUENCE):
        raise NotPlain(f"{field} has sequences of {dataset.field2seqlen[field]}")
    if of_type in (FeatureType.TOKEN, FeatureType.TOKEN_SEQ):
        ids = np.concatenate([*column, np.zeros(0, np.int64)]) if column.dtype == object else column
        if len(ids) and not 0 <= ids.min() <= ids.max() < dataset.num(field):
            raise NotPlain(f"{field} has ids from {ids.min()} to {ids.max()}, and there are {dataset.num(field)}")


def _say(text: str, level: int = INFO) -> None:
    getLogger("recbole_prune").log(level, printable(text))
