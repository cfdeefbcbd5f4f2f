"""The RecBole model of an artifact, built anew from its settings and the dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from recbole.data import create_dataset, data_preparation
from recbole.utils import init_seed

from recbole_prune.artifact import Artifact, PathLike, read_artifact
from recbole_prune.artifact.encoding import Array
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.data.random_streams import preserved_random_streams
from recbole_prune.errors import ArtifactError
from recbole_prune.scoring.probe import load_state, tensors_of


def load_ticket(folder: PathLike, config_dict: Mapping[str, Any] | None = None) -> Any:
    """Rebuild the RecBole model of an artifact, in eval mode, with its decoded weights.

    The dataset is read and the model is built as in the run that made the artifact, under the same seed, since some
    models draw neighbours or graphs in their constructor. The global random streams stay where they are, and no
    pickle is opened.

    Args:
        folder: the artifact.
        config_dict: settings that replace the stored ones, for example ``{"data_path": "data", "gpu_id": ""}``.

    Returns:
        the model, on the device that RecBole's settings choose.

    Raises:
        ArtifactError: the artifact cannot be read, or the dataset or the model no longer fit it.
        ConfigError: the settings are refused, for example because the dataset is not there.
    """
    return rebuild_model(read_artifact(folder), config_dict or {})


def rebuild_model(artifact: Artifact, changes: Mapping[str, Any]) -> Any:
    """What :func:`load_ticket` does once the artifact is read; ``changes`` replace settings."""
    state = artifact.state()
    with preserved_random_streams():
        config = PruneConfig.from_plain_settings(_settings(artifact, changes))
        init_seed(config["seed"], config["reproducibility"])
        dataset = create_dataset(config)
        _check_tokens(artifact, dataset)
        train_data = data_preparation(config, dataset)[0]
        init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
        try:
            with _weights_for_constructors(state):
                model = config.model_class(config, train_data._dataset).to(config["device"])
            load_state(model, state)
        except (RuntimeError, KeyError) as error:
            raise ArtifactError(
                f"the weights in {artifact.folder} do not fit {config['model']} as it is built from dataset "
                f"{config['dataset']}: {' '.join(str(error).split())}"
            ) from error
    return model.eval()


def _settings(artifact: Artifact, changes: Mapping[str, Any]) -> dict[str, Any]:
    settings = artifact.info.get("settings")
    if not isinstance(settings, dict):
        raise ArtifactError(f"{artifact.folder} names no settings, so the model cannot be built")
    # RecBole would unpickle files that it finds at these places
    no_pickles = {
        "checkpoint_dir": os.path.join(os.devnull, "none"),
        "dataset_save_path": None,
        "dataloaders_save_path": None,
        "save_dataset": False,
        "save_dataloaders": False,
    }
    return {**settings, **no_pickles, **changes}


def _check_tokens(artifact: Artifact, dataset: Any) -> None:
    """Refuse a dataset whose internal ids stand for other users or items than the artifact's."""
    for kind, id_field, stored in (
        ("user", dataset.uid_field, artifact.users),
        ("item", dataset.iid_field, artifact.items),
    ):
        present = [str(token) for token in dataset.field2id_token[id_field]] if id_field else list(stored)
        if present == list(stored):
            continue
        differing = next((i for i, pair in enumerate(zip(present, stored)) if pair[0] != pair[1]), None)
        detail = (
            f"{len(present)} instead of {len(stored)} {kind}s"
            if differing is None
            else f"{kind} {differing} is {present[differing]!r} instead of {stored[differing]!r}"
        )
        raise ArtifactError(
            f"dataset {dataset.dataset_name} is not the one of {artifact.folder}: {detail}; "
            "give the right folder with load_ticket(folder, {'data_path': ...})"
        )


@contextmanager
def _weights_for_constructors(state: Mapping[str, Array]) -> Iterator[None]:
    """Hand ``state`` to models whose constructor opens the checkpoint of an earlier stage (S3Rec, RaCT, NeuMF).

    What they would read is overwritten afterwards, its file need not exist any more, and it would be a pickle.
    """
    torch_load = torch.load
    torch.load = lambda *args, **kwargs: {"state_dict": tensors_of(state)}
    try:
        yield
    finally:
        torch.load = torch_load
