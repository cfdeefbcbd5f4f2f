"""Where files lie that are read, not imported; property files beside the package in a checkout, in it in a wheel."""

from __future__ import annotations

from pathlib import Path

from recbole_prune.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent.parent
METRICS = _PACKAGE / "scoring" / "value_metrics.py"  # the metrics that RecBole lacks


def properties_dir(package: Path = _PACKAGE) -> Path:
    """Return the folder that holds ``overall.yaml`` and the folders ``pruner``, ``distiller``, ``recipe``.

    Args:
        package: folder of the package's modules.

    Raises:
        ConfigError: neither place has it, so the installation is damaged.
    """
    candidates = [package / "properties", package.parent / "properties"]
    for folder in candidates:
        if (folder / "overall.yaml").is_file() and (folder / "pruner").is_dir():
            return folder
    places = " or ".join(str(folder) for folder in candidates)
    raise ConfigError(f"overall.yaml of recbole_prune is missing, looked in {places}: install the package again")


def property_names(kind: str) -> list[str]:
    """Sorted names of the yaml files in ``properties/<kind>``; empty where the folder does not exist."""
    return sorted(file.stem for file in (properties_dir() / kind).glob("*.yaml"))


def property_file(kind: str, name: str) -> Path:
    """Return the path of ``properties/<kind>/<name>.yaml``; the name is one of :func:`property_names`."""
    return properties_dir() / kind / f"{name}.yaml"
