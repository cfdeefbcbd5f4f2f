"""The RecBole model of an artifact, or of a checkpoint, built anew from its settings and the dataset."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from recbole.utils import init_seed
from torch import nn

from recbole_prune.anatomy.caches import on_device
from recbole_prune.artifact import Artifact, PathLike, read_artifact
from recbole_prune.artifact.encoding import Array
from recbole_prune.artifact.fields import Fields
from recbole_prune.artifact.files import TICKET
from recbole_prune.config.fingerprint import to_json
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.data.random_streams import preserved_random_streams
from recbole_prune.data.saved import create_dataset, data_preparation
from recbole_prune.errors import ArtifactError, ConfigError, PruneError
from recbole_prune.run.foreign_checkpoint import Checkpoint
from recbole_prune.run.foreign_settings import Bounds, checked_settings, settings_of
from recbole_prune.scoring.dot_product import to_numpy
from recbole_prune.scoring.probe import load_state, tensors_of

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

# what a constructor may make and drop again, beside a model as large as the one that is stored
_SPARE = 1 << 20
_SPARE_WEIGHTS = 1000


def load_ticket(
    folder: PathLike,
    config_dict: Mapping[str, Any] | None = None,
    model: str | type | None = None,
    *,
    data_path: PathLike | None = None,
) -> Any:
    """Rebuild the RecBole model of an artifact, in eval mode, with its decoded weights.

    The dataset is read and the model is built as in the run that made the artifact, under the same seed, since some
    models draw neighbours or graphs in their constructor. The global random streams stay where they are. No pickle of
    the artifact is opened, nothing is downloaded, and of its settings only those of model and data are used, once
    checked (:mod:`recbole_prune.run.foreign_settings`).

    Args:
        folder: the artifact.
        config_dict: settings that replace the stored ones, for example ``{"gpu_id": ""}``; they are taken as they are.
        model: the model class, where the run was given one of the user's own; an artifact holds no code.
        data_path: the folder that the dataset's folder lies in; None: where the run found it.

    Returns:
        the model, on the device that RecBole's settings choose.

    Raises:
        ArtifactError: the artifact cannot be read, its settings are refused, or the dataset or the model no longer fit.
        ConfigError: RecBole refuses the settings, for example because the dataset is not there.
    """
    changes = dict(config_dict or {})
    if model is not None:
        changes["model"] = model
    if data_path is not None:
        changes["data_path"] = os.fspath(data_path)
    return rebuild_model(read_artifact(folder), changes)


class Rebuilt(NamedTuple):
    """A model with the data that it was built for.

    Attributes:
        model: in eval mode, with its weights.
        config: its settings.
        dataset: RecBole's dataset.
        training: RecBole's dataset of the training interactions.
    """

    model: Any
    config: PruneConfig
    dataset: Any
    training: Any


def rebuild_model(artifact: Artifact, changes: Mapping[str, Any]) -> Any:
    """What :func:`load_ticket` does once the artifact is read; ``changes`` replace settings."""
    return rebuild(artifact, changes).model


def rebuild(artifact: Artifact, changes: Mapping[str, Any]) -> Rebuilt:
    """As :func:`rebuild_model`, with the data."""
    place = str(artifact.folder / TICKET)
    with _in_one_line(place):
        _check_model(artifact, changes.get("model"))
        settings = settings_of(artifact, changes)
        return build(settings, artifact.state(), place, lambda dataset: _check_tokens(artifact, dataset))


def rebuild_checkpoint(checkpoint: Checkpoint, place: str, changes: Mapping[str, Any]) -> Rebuilt:
    """Rebuild the model of a checkpoint of RecBole, of models without gradients too.

    Args:
        checkpoint: what was read.
        place: the file, for messages.
        changes: settings that replace its own.

    Raises:
        PruneError: as for :func:`load_ticket`.
    """
    plain = {name: to_json(value) for name, value in checkpoint.settings.items()}
    with _in_one_line(place):
        largest = max((size for tensor in checkpoint.state.values() for size in tensor.shape), default=0)
        settings = checked_settings(Fields(plain, Path(place)), changes, Bounds(0, largest))
        state = {name: to_numpy(tensor) for name, tensor in checkpoint.state.items()}
        return build(settings, state, place, lambda dataset: None, checkpoint.others)


def build(
    settings: Mapping[str, Any],
    state: Mapping[str, Array],
    place: str,
    check: Callable[[Any], None],
    others: Mapping[str, Any] | None = None,
) -> Rebuilt:
    """A model as its run built it, from its settings, with stored weights.

    Args:
        settings: checked ones; ``model`` may be a class.
        state: weights by name in the ``state_dict``.
        place: where they are stored, for messages.
        check: refuses a dataset.
        others: what the model keeps beside its weights.

    Raises:
        PruneError: there is no such dataset, or the model is another one.
    """
    with preserved_random_streams():
        config = PruneConfig.from_plain_settings(settings, settings["model"], download=False)
        _check_data_folder(config, place)
        init_seed(config["seed"], config["reproducibility"])
        dataset = create_dataset(config)
        check(dataset)
        training = data_preparation(config, dataset)[0]._dataset
        model = _model_with(config, training, state, place, others)
    return Rebuilt(model, config, dataset, training)


def rebuild_state(rebuilt: Rebuilt, checkpoint: Checkpoint, place: str) -> Any:
    """The model of another checkpoint of the same training, in eval mode.

    Args:
        rebuilt: of one of its checkpoints, or of its artifact; it stays as it is.
        checkpoint: what was read.
        place: the file, for messages.

    Raises:
        ArtifactError: the weights are those of another model.
    """
    state = {name: to_numpy(tensor) for name, tensor in checkpoint.state.items()}
    with _in_one_line(place), preserved_random_streams():
        return _model_with(rebuilt.config, rebuilt.training, state, place, checkpoint.others)


def _model_with(
    config: PruneConfig, training: Dataset, state: Mapping[str, Array], place: str, others: Mapping[str, Any] | None
) -> Any:
    """The model as its run built it, with stored weights."""
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    try:
        with _constructing_from(state):
            model = config.model_class(config, training).to(config["device"])
        if others:
            model.load_other_parameter(on_device(others, config["device"]))
        load_state(model, state)
    except (RuntimeError, KeyError) as error:
        raise ArtifactError(
            f"{place}: the weights do not fit {config['model']} as it is built from dataset "
            f"{config['dataset']} and the settings: {' '.join(str(error).split())}"
        ) from error
    return model.eval()


def _check_model(artifact: Artifact, model: str | type | None) -> None:
    """Refuse another model than the artifact's, and one of RecBole's where it was one of the user's own."""
    name = artifact.info.get("model")
    given = model if isinstance(model, str) or model is None else model.__name__
    if given not in (None, name):
        raise ArtifactError(f"{artifact.folder} holds the model {name}, not {given}")
    if artifact.info.get("own_model") and not isinstance(model, type):
        raise ArtifactError(
            f"{artifact.folder} has a model class of the user's own: give it, load_ticket(folder, model={name})"
        )


@contextmanager
def _in_one_line(place: str) -> Iterator[None]:
    """Name the stored settings where RecBole fails on them in its own words, or wants to end the process."""
    settings = f"{place}: settings"
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{settings}: {error}") from error
    except PruneError:
        raise
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        raise ArtifactError(f"{settings}: RecBole cannot build the model: {type(error).__name__} {text}") from error


def _check_data_folder(config: PruneConfig, place: str) -> None:
    """RecBole would wait for ever for what is written into a pipe."""
    folder = Path(config["data_path"])
    if not folder.is_dir():
        raise ArtifactError(
            f"{place}: settings.data_path: there is no folder {folder}; "
            "give the right one with load_ticket(folder, data_path=...)"
        )
    for entry in os.scandir(folder):
        if entry.name.startswith(f"{config['dataset']}.") and not entry.is_file() and not entry.is_dir():
            raise ArtifactError(f"{entry.path} is no regular file")


def _check_tokens(artifact: Artifact, dataset: Any) -> None:
    """Refuse a dataset whose internal ids stand for other users or items than the artifact's."""
    for kind, id_field, stored in (
        ("user", dataset.uid_field, artifact.users),
        ("item", dataset.iid_field, artifact.items),
    ):
        present = [str(token) for token in dataset.field2id_token[id_field]] if id_field else []
        differing = next((i for i, pair in enumerate(zip(present, stored)) if pair[0] != pair[1]), None)
        if differing is None and len(present) == len(stored):
            continue
        detail = (
            f"{len(present)} instead of {len(stored)} {kind}s"
            if differing is None
            else f"{kind} {differing} is {present[differing]!r} instead of {stored[differing]!r}"
        )
        raise ArtifactError(
            f"dataset {dataset.dataset_name} is not the one of {artifact.folder}: {detail}; "
            "give the right folder with load_ticket(folder, data_path=...)"
        )


@contextmanager
def _constructing_from(state: Mapping[str, Array]) -> Iterator[None]:
    """Keep a model's constructor from what the artifact's settings could make it do.

    ``torch.load`` hands ``state`` to models that open the checkpoint of an earlier stage (S3Rec, RaCT, NeuMF): what
    they would read is overwritten afterwards, its file need not exist any more, and it would be a pickle. ``np.load``
    opens no pickle (LDiffRec reads one beside the data). Weights far beyond those of ``state`` are refused when they
    are made or copied (a transformer's layers are copies), before anything is written into their memory.
    """
    entries = sum(array.size for array in state.values())
    room = {"entries": 4 * entries + _SPARE, "weights": 8 * len(state) + _SPARE_WEIGHTS}
    numpy_load, make_weight = np.load, nn.Parameter.__new__

    def load_state_instead(*args: object, **kwargs: object) -> dict[str, Any]:
        return {"state_dict": tensors_of(state)}

    def load_no_pickle(*args: Any, **kwargs: Any) -> Any:
        return numpy_load(*args, **{**kwargs, "allow_pickle": False})

    def make_within(kind: type, *args: Any, **kwargs: Any) -> nn.Parameter:
        weight: nn.Parameter = make_weight(kind, *args, **kwargs)
        room["entries"] -= weight.numel()
        room["weights"] -= 1
        if min(room.values()) < 0:
            raise RuntimeError(f"its settings ask for far more than the {entries} entries that are stored")
        return weight

    with ExitStack() as stack:
        stack.enter_context(_replaced(torch, "load", load_state_instead))
        stack.enter_context(_replaced(np, "load", load_no_pickle))
        stack.enter_context(_replaced(nn.Parameter, "__new__", staticmethod(make_within)))
        yield


@contextmanager
def _replaced(owner: object, name: str, member: object) -> Iterator[None]:
    before = vars(owner)[name]
    setattr(owner, name, member)
    try:
        yield
    finally:
        setattr(owner, name, before)
