"""Settings out of an artifact, which may come from anybody: what of them reaches RecBole, and what is refused.

RecBole evaluates texts as Python, unpickles files that settings name, opens connections between processes and downloads
data. So only settings that say how data and model are built are handed over, as the plain values that JSON has, each of
the type that RecBole declares. What says how a process runs, what is a setting of ours and what nobody reads is left
out: a run may have had it, and rebuilding a model needs none of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from recbole_prune.anatomy.outside import CHECKPOINTS, EVALUATED
from recbole_prune.artifact import Artifact
from recbole_prune.artifact.fields import Fields
from recbole_prune.artifact.files import TICKET
from recbole_prune.config import host, names, schema, values
from recbole_prune.config.fingerprint import WITHOUT_EFFECT
from recbole_prune.data.saved import NOWHERE, OPENING
from recbole_prune.errors import ArtifactError, ConfigError

# of the settings without effect on a result, those that say where the data and the devices are
_KEPT = frozenset({"model", "dataset", "data_path", "use_gpu", "gpu_id"})
_LEFT_OUT = WITHOUT_EFFECT - _KEPT
# settings that become a part of the name of a file
_PARTS_OF_NAMES = ("dataset", "benchmark_filename", "additional_feat_suffix")
# settings that pandas takes as a regular expression, which a few characters cannot make slow
_SEPARATORS = ("field_separator", "seq_separator")
_LONGEST_SEPARATOR = 3
# RecBole pads every sequence to this length, whatever the data have
_PADDED_TO = "MAX_ITEM_LIST_LENGTH"
_LONGEST_PADDING = 1000
# widths, layers and counts of a model, where no tensor is as large: up to this, or a multiple of RecBole's default
_LARGEST_NUMBER = 10_000
_TIMES_DEFAULT = 100
_DURATION = re.compile(r"\w+_(?:steps?|epochs|interval)")  # of a training, which a rebuilt model does not go through

# what a constructor is told where it looks for a checkpoint; it is given the artifact's weights instead
_NO_CHECKPOINT = "none"
# RecBole would unpickle files that it finds at these places
_NO_PICKLES = {
    "checkpoint_dir": NOWHERE,
    **OPENING,
}


class Bounds(NamedTuple):
    """What settings are compared with.

    Attributes:
        history: the most items that a user has, 0 where that is not known.
        dimension: the largest dimension of a stored weight.
    """

    history: int
    dimension: int


def settings_of(artifact: Artifact, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that rebuild an artifact's model.

    Args:
        artifact: whose settings are checked.
        changes: settings of the caller, which replace the artifact's and are taken as they are.

    Raises:
        ArtifactError: a setting of the artifact that would be used has the wrong type, or could reach other files or
            code; the message names it.
    """
    fields = Fields(artifact.info, artifact.folder / TICKET).inner("settings")
    histories = np.diff(artifact.seen.indptr.astype(np.int64))
    dimensions = (size for tensor in artifact.tensors.values() for size in tensor.shape)
    return checked_settings(fields, changes, Bounds(int(histories.max(initial=0)), max(dimensions, default=0)))


def checked_settings(fields: Fields, changes: Mapping[str, Any], bounds: Bounds) -> dict[str, Any]:
    """The settings among some from elsewhere that rebuild a model.

    Args:
        fields: the settings.
        changes: as for :func:`settings_of`.
        bounds: what is known of the data and the model.

    Raises:
        ArtifactError: as for :func:`settings_of`.
    """
    model = changes.get("model") or fields.text("model")
    if isinstance(model, str):
        names.check_model(model)
    kept = {}
    for name in fields:
        if name in changes or name in _LEFT_OUT or name in schema.known_keys():
            continue
        if name in _KEPT or host.is_known_setting(name, model):
            kept[name] = _checked(fields, name, model, bounds)
    return {**kept, **_NO_PICKLES, **changes}


def _checked(fields: Fields, name: str, model: str | type, bounds: Bounds) -> Any:
    """The value of a setting, where it does no harm."""
    value = fields.values[name]
    try:
        values.check_values({name: value}, [name], model if isinstance(model, str) else model.__name__)
    except ConfigError as error:
        raise ArtifactError(f"{fields.path}: {fields.name_of('')}{error}") from error
    _refuse_absurd(fields, name, model if isinstance(model, str) else model.__name__, bounds)
    if name in EVALUATED:
        return fields.text(name, EVALUATED[name])
    if name in CHECKPOINTS and value:
        fields.text(name)
        return _NO_CHECKPOINT
    if name == "data_path" or (name == "gpu_id" and not isinstance(value, int)):
        return fields.text(name)
    parts = value if isinstance(value, list) else [value]
    if name in _PARTS_OF_NAMES and not all(part is None or _stays_in_folder(part) for part in parts):
        raise fields.wrong(name, "a part of a file's name, without a path")
    if name in _SEPARATORS and len(fields.text(name)) > _LONGEST_SEPARATOR:
        raise fields.wrong(name, f"text of at most {_LONGEST_SEPARATOR} characters")
    if name == _PADDED_TO:
        return fields.whole(name, max(_LONGEST_PADDING, bounds.history))
    return value


def _refuse_absurd(fields: Fields, name: str, model: str, bounds: Bounds) -> None:
    """Refuse a whole number with which building the model would take hours, or all memory: a billion layers."""
    usual, given = (values.numbers_in(each) for each in (values.default_of(name, model), fields.values[name]))
    if not usual or not given or _DURATION.fullmatch(name):
        return
    most = max(_LARGEST_NUMBER, _TIMES_DEFAULT * max(usual), bounds.dimension)
    if max(given) > most:
        raise fields.wrong(name, f"at most {most}, unless you say otherwise in load_ticket(folder, config_dict)")


def _stays_in_folder(part: object) -> bool:
    return isinstance(part, str) and part not in ("", ".", "..") and not set("/\\\0") & set(part)
