"""What the installed RecBole knows by name: models, datasets, settings. Read from its files; no model is imported."""

from __future__ import annotations

import importlib.util
import inspect
import re
from functools import cache, lru_cache
from pathlib import Path

import yaml

from recbole_prune.config.paths import properties_dir
from recbole_prune.errors import ConfigError
from recbole_prune.models import model_files

# settings of RecBole's launchers that its package never reads from a Config, or writes there itself
_LAUNCHER = {"model", "dataset", "config_files", "config_file_list", "params_file", "saved", "model_list",
             "nproc", "ip", "port", "world_size", "group_offset", "offset", "local_rank"}  # fmt: skip
_READS = re.compile(
    r"""(?:config|cfg|config_dict|config_settings)(?:\.get\(|\.setdefault\(|\[)\s*["'](\w+)["']"""
    r"""|["'](\w+)["']\s+(?:not\s+)?in\s+(?:self\.)?config"""
    r"""|\bconfig\.(\w+)"""
)
BUNDLED_DATASET = "ml-100k"


@lru_cache(maxsize=1)
def recbole_folder() -> Path:
    """Folder of the installed RecBole package.

    Raises:
        ConfigError: RecBole is not installed.
    """
    spec = importlib.util.find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("RecBole is not installed: pip install 'recbole>=1.2.0,<1.3'")
    return Path(next(iter(spec.submodule_search_locations)))


@lru_cache(maxsize=1)
def model_names() -> list[str]:
    """Sorted class names of RecBole's models and of our own, as ``--model`` takes them."""
    names = []
    for file in [*recbole_folder().glob("model/*_recommender/*.py"), *model_files()]:
        classes = re.findall(r"^class (\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE)
        # RecBole finds a model by the module that bears its name in lower case
        names += [name for name in classes if name.lower() == file.stem]
    return sorted(names)


@lru_cache(maxsize=1)
def dataset_names() -> list[str]:
    """Sorted names of the datasets that RecBole brings along or can download."""
    urls = yaml.safe_load((recbole_folder() / "properties/dataset/url.yaml").read_text(encoding="utf-8"))
    return sorted({BUNDLED_DATASET, *urls})


def is_known_setting(name: str, model: type | str | None = None) -> bool:
    """Whether RecBole, or a model class from elsewhere, reads a setting of this name.

    Args:
        name: key of a setting.
        model: model class whose own source file is searched too; a name stands for a model of RecBole.
    """
    if name in _settings_in_properties() or name in _settings_in_source():
        return True
    return isinstance(model, type) and name in _settings_read_by(model)


def setting_names(model: str) -> set[str]:
    """Names that RecBole's property files list for a run of this model: the ones that a misspelt name may stand for."""
    folder = recbole_folder() / "properties"
    own = model_properties(model)
    files = [folder / "overall.yaml", folder / "dataset" / "sample.yaml", *([own] if own else [])]
    return _LAUNCHER.union(*map(_keys_of, files))


def model_properties(model: str) -> Path | None:
    """The property file of a model, RecBole's or ours; None where it has none."""
    folders = recbole_folder() / "properties" / "model", properties_dir() / "model"
    return next((file for folder in folders if (file := folder / f"{model}.yaml").is_file()), None)


@lru_cache(maxsize=1)
def _settings_in_properties() -> set[str]:
    files = [*(recbole_folder() / "properties").rglob("*.yaml"), *(properties_dir() / "model").glob("*.yaml")]
    return _LAUNCHER.union(*(_keys_of(file) for file in files if not file.stem.endswith("url")))


def _keys_of(file: Path) -> set[str]:
    """Keys only, since RecBole's values need its own loader."""
    return set(re.findall(r"^([\w-]+)\s*:", file.read_text(encoding="utf-8"), re.MULTILINE))


@lru_cache(maxsize=1)
def _settings_in_source() -> set[str]:
    found: set[str] = set()
    for file in [*recbole_folder().rglob("*.py"), *model_files()]:
        text = file.read_text(encoding="utf-8")
        found |= _settings_in(text)
        if file.name == "argument_list.py":
            found |= set(re.findall(r"'(\w+)'", text))
    return found


@cache
def _settings_read_by(model: type) -> set[str]:
    try:
        return _settings_in(inspect.getsource(inspect.getmodule(model)))  # type: ignore[arg-type]
    except (OSError, TypeError):
        return set()


def _settings_in(source: str) -> set[str]:
    return {name for groups in _READS.findall(source) for name in groups if name}
