"""RecBole's Config with the settings of this package: checked, frozen and hashed."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from logging import getLogger
from typing import Any

import torch

from recbole_prune import compat

compat.apply()  # before RecBole: some patches are of what it imports

from recbole.config import Config
from recbole.evaluator import metric_types

from recbole_prune.config import fingerprint, host, names, schema, values
from recbole_prune.config.evaluation import check_direction, check_evaluation
from recbole_prune.config.files import read_settings
from recbole_prune.config.paths import property_file, property_names
from recbole_prune.config.pickling import unshared
from recbole_prune.config.settings import HostFacts, Settings, defaults, settle
from recbole_prune.config.words import settings_in
from recbole_prune.errors import ConfigError, printable
from recbole_prune.models import join_recbole
from recbole_prune.ranks import group
from recbole_prune.scoring import value_metrics

__all__ = ["PruneConfig", "Settings"]

# our settings that ask for something once and are no part of what a config describes
_ONE_SHOT = ("fresh", "dry_run", "verbose")
# what RecBole's launchers read and its Config passes over
_OF_LAUNCHERS = {"config_files", "config_file_list", "params_file", "model_list"}


class PruneConfig(Config):
    """RecBole's Config plus the settings of this package.

    RecBole's settings and its precedence stay as they are: command line, then ``config_dict``, then config files, the
    later file first. Below them come the recipe, then RecBole's and our defaults. It pickles as a plain
    ``recbole.config.Config``, so that checkpoints load without this package.

    Args:
        model: name of a RecBole model, or a model class; None takes it from the settings.
        dataset: name of the dataset; None takes it from the settings.
        config_file_list: yaml files.
        config_dict: settings by name.
        words: of a command line, as ``--key=value``. Unlike RecBole's, this Config does not look at ``sys.argv``
            itself: pass ``sys.argv[1:]`` where a program's own words are meant.

    Attributes:
        words: the words it was given.
        settings: the settings of this package in force, read-only.
        warnings: the warnings given while it was built, for the log file.

    Raises:
        ConfigError: a setting is unknown, malformed, out of range or contradicts another one; also whatever RecBole's
            Config refuses, with its sentence.
    """

    final_config_dict: dict[str, Any]

    def __init__(
        self,
        model: Any = None,
        dataset: str | None = None,
        config_file_list: list[str] | None = None,
        config_dict: Mapping[str, Any] | None = None,
        words: Sequence[str] = (),
    ) -> None:
        given = fingerprint.plain_numbers(dict(config_dict or {}))
        self._build(_Private(model=model, given=given, words=tuple(words)), model, dataset, config_file_list)

    @classmethod
    def from_plain_settings(cls, plain: Mapping[str, Any], model: Any = None, *, download: bool = True) -> PruneConfig:
        """Build the config that :meth:`plain_settings` describes.

        Args:
            plain: the settings.
            model: the model class, where it is none of RecBole's or ours: settings hold its name only.
            download: whether RecBole may download a dataset that is not there.

        Raises:
            ConfigError: as for the constructor.
        """
        config = cls.__new__(cls)
        private = _Private(model=model, given=dict(plain), replayed=True, download=download)
        config._build(private, model, None, None)
        return config

    def _build(self, private: _Private, model: Any, dataset: Any, files: Any) -> None:
        join_recbole()
        value_metrics.join_recbole()
        self._private = private
        try:
            super().__init__(model, dataset, files, private.given)
        except ConfigError:
            raise
        except Exception as error:  # whatever fails in there, RecBole refuses what the user wrote
            raise ConfigError(f"RecBole refuses the settings: {_sentence(error)}") from error
        # a dataset may go into checkpoints too: it shares the texts of the settings, whatever was built before
        self.final_config_dict = unshared(self.final_config_dict)
        private.differences = self._differences()
        for warning in private.warnings:
            getLogger().warning(warning)

    def _differences(self) -> dict[str, Any]:
        # settings that are read back may belong to a finished run, which needs its teacher no longer
        missing = "missing" if self._private.replayed else None
        return fingerprint.differences(self, self._private.settings, missing)

    # ---- what the user says ------------------------------------------------------------------------------------------

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        """Leave our values to the schema, which needs no ``eval``; RecBole converts its own."""
        if self._private.replayed:
            return config_dict
        return {name: self._convert(name, value) for name, value in config_dict.items()}

    def _convert(self, name: str, value: Any) -> Any:
        if name in schema.known_keys():
            return value
        try:
            converted = super()._convert_config_dict({name: value})[name]
        except Exception as error:
            raise ConfigError(f"RecBole refuses the settings: {name}={value} cannot be read: {error}") from error
        # a folder called 2020 is text; so is the open interval (5,10), which JSON would make a closed one
        return value if values.is_text(name) and not isinstance(converted, (str, list, type(None))) else converted

    def _load_cmd_line(self) -> dict[str, Any]:
        private = self._private
        if private.command_line is None:
            found, others = settings_in(private.words)
            if others:
                self._warn(f"no settings, so without effect: {' '.join(others)}")
            private.command_line = self._convert_config_dict(found)
        return private.command_line

    def _load_config_files(self, file_list: list[str] | None) -> dict[str, Any]:
        """Read the user's files, and below them the recipe that the command line, the dict or a file names."""
        private = self._private
        files: dict[str, Any] = {}
        for file in file_list or []:
            files.update(self._load_file(file))
        named = {**files, **private.given, **self._load_cmd_line()}
        recipe = schema.check("recipe", named.get("recipe"))
        private.recipe = {}
        if recipe and not private.replayed:
            private.recipe = self._load_file(str(property_file("recipe", recipe)))
        private.user = set(named)
        for name in sorted(_OF_LAUNCHERS & ({*files, *private.given} if file_list else {*named})):
            self._warn(f"{name}={named[name]} has no effect here: only RecBole's launchers read it")
        return {**private.recipe, **files}

    def _load_file(self, file: str) -> dict[str, Any]:
        return read_settings(file, self.yaml_loader)

    def _merge_external_config_dict(self) -> None:
        super()._merge_external_config_dict()
        private = self._private
        model = private.model or self.external_config_dict.get("model")
        # among the words of somebody's own program may be options of that program
        said = {} if private.replayed else {**self.file_config_dict, **private.given}
        for name in self.external_config_dict:
            warning = names.check_setting(str(name), model, exact=name in said)
            if warning:
                self._warn(warning)

    def _warn(self, message: str) -> None:
        if not self._private.replayed:
            self._private.warnings.append(printable(message))

    # ---- model, dataset, defaults ------------------------------------------------------------------------------------

    def _get_model_and_dataset(self, model: Any, dataset: Any) -> tuple[str, type, str]:
        name = self.external_config_dict.get("model") if model is None else model
        if isinstance(name, str):
            names.check_model(name)
        try:
            found: tuple[str, type, str] = super()._get_model_and_dataset(model, dataset)
        except ImportError as error:
            raise ConfigError(f"model {name} cannot be imported: {error}") from error
        names.check_folder_name("dataset", found[2])
        return found

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        if model in property_names("model"):
            self._update_internal_config_dict(str(property_file("model", model)))
        self._private.own_l2 = bool({"reg_weight", "reg_weights"} & set(self.internal_config_dict))
        methods = {kind: schema.check(kind, self.external_config_dict.get(kind)) for kind in schema.METHOD_KINDS}
        self.internal_config_dict.update(defaults(**methods))

    def _get_final_config_dict(self) -> dict[str, Any]:
        merged: dict[str, Any] = super()._get_final_config_dict()
        if not self._private.replayed:  # checked when the run began
            values.check_values(merged, self.external_config_dict, self.model)
            values.check_processes(merged, self.external_config_dict, group.count())
            check_evaluation(merged, metric_types)
            check_direction(merged["valid_metric"], self.external_config_dict.get("valid_metric_bigger"))
        user = {name: merged[name] for name in schema.known_keys() if name in self._private.user}
        recipe = {name: value for name, value in self._private.recipe.items() if name in schema.known_keys()}
        facts = HostFacts(merged["epochs"], self.model, self._private.own_l2)
        self._private.settings, warnings = settle(user, recipe, facts)
        for warning in warnings:
            self._warn(warning)
        merged.update(self._private.settings)
        self.external_config_dict.update({name: merged[name] for name in sorted({*user, *recipe})})
        names.check_dataset(self.dataset, merged, download=self._private.download)
        return merged

    def _init_device(self) -> None:
        """RecBole's choice; of several processes of a machine each has a GPU of its own."""
        super()._init_device()
        if group.count() > 1 and self.final_config_dict["device"].type == "cuda":
            here = torch.cuda.device_count()
            if group.local_rank() >= here:
                raise ConfigError(
                    f"gpu_id={self.final_config_dict['gpu_id']} leaves {here} GPUs for the processes of this machine, "
                    f"of which this is number {group.local_rank() + 1}: name one for each (--gpu_id=0,1), take fewer "
                    "processes, or train on the CPU (--gpu_id=)"
                )
            self.final_config_dict["device"] = torch.device("cuda", group.local_rank())
            torch.cuda.set_device(group.local_rank())
        if not group.is_first():
            self.final_config_dict["show_progress"] = False

    # ---- what others read --------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The settings of this package in force."""
        return self._private.settings

    @property
    def words(self) -> tuple[str, ...]:
        """The words of a command line that it was given."""
        return self._private.words

    @property
    def has_own_l2(self) -> bool:
        """Whether RecBole's settings of the model hold an L2 weight, so that prune_l2_weight does not apply."""
        return self._private.own_l2

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings given while the config was built."""
        return tuple(self._private.warnings)

    @property
    def own_model(self) -> str | None:
        """sha256 that tells a model class of the user's own by its source; None for RecBole's and our models."""
        return fingerprint.own_model(self.model_class)

    @property
    def run_hash(self) -> str:
        """10 hex digits over the settings that differ from their defaults and matter to the result.

        Not in it: the names of model, dataset and methods, which stand in the run folder's path, and settings that
        change no result.
        """
        return fingerprint.digest_of_run(self._private.differences, self.settings)

    @property
    def base_hash(self) -> str:
        """The run hash without what only concerns pruning: equal where the dense training is equal."""
        found = fingerprint.of_every_training(self._private.differences)
        if self.settings.distiller:
            found["distiller"] = self.settings.distiller
        return fingerprint.digest(found)

    @property
    def teacher_digests(self) -> list[str]:
        """sha256 of the content of each of ``distill_teacher`` when this config was built."""
        found = self._private.differences.get("distill_teacher", [])
        return [found] if isinstance(found, str) else found

    def run_hash_of(self, teacher_digests: Sequence[str]) -> str:
        """The :attr:`run_hash` if ``distill_teacher`` held contents of other sha256."""
        found = fingerprint.one_or_all(teacher_digests)
        return fingerprint.digest_of_run({**self._private.differences, "distill_teacher": found}, self.settings)

    def plain_settings(self) -> dict[str, Any]:
        """JSON-able settings that rebuild this config through :meth:`from_plain_settings`.

        What the user and the recipe set, after checking, with model, dataset and where that lies; paths are absolute,
        so that they hold in any working directory. Written to a yaml file and given as its config file, they rebuild
        RecBole's own Config too.
        """
        ours, base = self.settings, defaults(self.settings.pruner, self.settings.distiller)
        theirs = {
            name: fingerprint.to_json(value)
            for name, value in self.external_config_dict.items()
            if name not in ours and name not in fingerprint.OF_THE_PROCESS
        }
        if self.dataset != host.BUNDLED_DATASET:
            theirs.setdefault("data_path", self.internal_config_dict["data_path"])
        theirs.update({name: os.path.abspath(theirs[name]) for name in fingerprint.PATHS if theirs.get(name)})
        methods = {kind: ours[kind] for kind in schema.METHOD_KINDS if ours[kind] is not None}
        changed = {
            name: [os.path.abspath(path) for path in ours[name]] if key.type == "list of path" else ours[name]
            for name, key in schema.known_keys().items()
            if ours[name] != base[name] and name not in _ONE_SHOT
        }
        return {**theirs, "model": self.model, "dataset": self.dataset, **methods, **changed}

    def with_changes(self, **changes: Any) -> PruneConfig:
        """Return a copy with other values for RecBole's settings, taken as they are (a smaller ``embedding_size``).

        Raises:
            ConfigError: a setting is ours, or decides which defaults hold.
        """
        for name in changes:
            if name in self.settings or name in ("model", "dataset"):
                raise ConfigError(f"{name} cannot be changed in a copy of a config: build a new one")
        new = copy.copy(self)
        new.final_config_dict = {**copy.deepcopy(self.final_config_dict), **changes}
        new.external_config_dict = {**copy.deepcopy(self.external_config_dict), **changes}
        new._private = copy.copy(self._private)
        new._private.differences = new._differences()
        return new

    # ---- copies and pickles ------------------------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        # RecBole never asks a Config for its class again, and another process may not know one of the user's own
        left_out = {"_private"} | ({"model_class"} if self.own_model else set())
        state = {name: value for name, value in self.__dict__.items() if name not in left_out}
        return (object.__new__, (Config,), unshared(state))

    def __copy__(self) -> PruneConfig:
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> PruneConfig:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new


class _Private:
    """What a PruneConfig keeps for itself; none of it goes into a pickle.

    Attributes:
        model: the model argument.
        given: the ``config_dict`` argument.
        words: the ``words`` argument.
        replayed: built from plain settings: no recipe, no warnings, values are taken as typed.
        download: whether RecBole may download the dataset.
        command_line: settings of the command line, None before they are read.
        recipe: settings of the recipe.
        user: names that the user set anywhere.
        own_l2: whether the model has an L2 weight of its own.
        settings: settings of this package in force.
        differences: what the hashes are made of.
        warnings: warnings given.
    """

    def __init__(
        self,
        given: dict[str, Any],
        model: Any = None,
        words: tuple[str, ...] = (),
        replayed: bool = False,
        download: bool = True,
    ) -> None:
        self.model = model
        self.given = given
        self.words = words
        self.replayed = replayed
        self.download = download
        self.command_line: dict[str, Any] | None = None
        self.recipe: dict[str, Any] = {}
        self.user: set[str] = set()
        self.own_l2 = False
        self.settings = Settings({})
        self.differences: dict[str, Any] = {}
        self.warnings: list[str] = []


def _sentence(error: Exception) -> str:
    """What RecBole says, and the way out of the one error that its own defaults run into."""
    text = str(error.args[0]) if error.args else type(error).__name__
    if "should be None when the loss_type is CE" in text:
        text += " Pass --train_neg_sample_args=None."
    return text
