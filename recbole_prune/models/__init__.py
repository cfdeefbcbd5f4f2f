"""Models that RecBole lacks, found by name like RecBole's own.

A file ``<name in lower case>.py`` here and ``properties/model/<Name>.yaml`` are a model: RecBole looks for models in
the folder of its general recommenders, and :func:`join_recbole` makes this folder a part of it.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def model_files() -> list[Path]:
    """The source files of the models."""
    return sorted(file for file in _FOLDER.glob("*.py") if file.name != "__init__.py")


def join_recbole() -> None:
    """Let ``recbole.utils.get_model`` find the models of this folder."""
    from recbole.model import general_recommender

    if str(_FOLDER) not in general_recommender.__path__:
        general_recommender.__path__.append(str(_FOLDER))
