"""Config files in yaml, read with one sentence for whatever is wrong with one."""

from __future__ import annotations

from typing import Any

import yaml

from recbole_prune.errors import ConfigError


def read_settings(file: str, loader: Any = yaml.BaseLoader) -> dict[str, Any]:
    """The settings of a config file by name.

    Args:
        file: its path.
        loader: yaml's loader; by default one that leaves every value a text.

    Raises:
        ConfigError: the file cannot be read, is not valid yaml, or holds no settings.
    """
    try:
        with open(file, encoding="utf-8") as stream:
            settings = yaml.load(stream.read(), Loader=loader)
    except OSError as error:
        raise ConfigError(f"config file {file} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {file} is not valid yaml: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise ConfigError(f"config file {file} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"config file {file} must hold 'key: value' lines")
    return settings
