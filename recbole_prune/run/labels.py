"""Whether the labels of the data are what a model can learn and metrics compare scores with; asked before training."""

from __future__ import annotations

from logging import getLogger
from typing import TYPE_CHECKING

import numpy as np
from recbole.utils import ModelType

from recbole_prune.anatomy.labels import learns_probabilities, scores_estimate_labels
from recbole_prune.config.evaluation import metrics_of_scores
from recbole_prune.errors import ConfigError
from recbole_prune.scoring.value_metrics import label_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recbole.data.dataloader import AbstractDataLoader

    from recbole_prune.config.prune_config import PruneConfig

# marks from 0 to 100; with more a label is a measurement, and hardly any rounded score is equal to it
_MOST_VALUES = 101
_MAKE_LABELS = "make 0/1 labels with threshold, such as {'rating': 4}"
_ERRORS = "['MSE', 'MAE']"


def check_labels(config: PruneConfig, loaders: Sequence[AbstractDataLoader]) -> None:
    """Refuse labels that training or a metric can do nothing with.

    Args:
        config: of the run.
        loaders: of training, validation and test data.

    Raises:
        ConfigError: the message names metric, field and what would be allowed.
    """
    field, modes = config["LABEL_FIELD"], config["eval_args"]["mode"]
    train = _labels(loaders[0], field)
    _check_training(config, train)
    compared = metrics_of_scores(config["metrics"])
    read = {
        part: _labels(loader, field)
        for part, loader in zip(("valid", "test"), loaders[1:])
        if compared and modes[part] == "labeled" and len(loader)
    }
    if not read:
        return
    if any(labels is None for labels in read.values()):
        raise ConfigError(
            f"metrics={config['metrics']} is not allowed: {compared[0]} compares scores with labels (eval_args: "
            f"mode=labeled), but the interactions are implicit, they have no field {field}; {_MAKE_LABELS}, name a "
            "column in LABEL_FIELD, or set mode to uni100, or to full with metrics such as ['Recall', 'NDCG']"
        )
    known = [labels for labels in (train, *read.values()) if labels is not None]
    _check_values(config, compared, label_values(*known))
    _check_selection(config, read.get(config.settings.prune_select))
    errors = [name for name in compared if name != "AUC"]
    if errors and not scores_estimate_labels(config.model_class):
        getLogger().warning(
            f"the scores of {config['model']} rank, they do not estimate {config['LABEL_FIELD']}: "
            f"{', '.join(errors)} of them say little"
        )


def _labels(loader: AbstractDataLoader, field: str) -> np.ndarray | None:
    """The labels of a part of the data, ``[rows]``; None where it has none."""
    rows = loader._dataset.inter_feat
    if field not in rows:
        return None
    found: np.ndarray = rows[field].numpy()
    return found


def _check_training(config: PruneConfig, labels: np.ndarray | None) -> None:
    """Refuse training data without what the model learns, or beyond what its loss is made for."""
    if config["train_neg_sample_args"]["distribution"] != "none":
        return  # a sampler of negatives makes the labels
    model, field = config["model"], config["LABEL_FIELD"]
    learns = learns_probabilities(config.model_class)
    if labels is None:
        if learns or config["MODEL_TYPE"] == ModelType.CONTEXT:
            raise ConfigError(
                f"{model} learns from labels, but the interactions have no field {field}: make it of "
                "ratings with threshold, such as {'rating': 4}, or load a column (load_col) and name it in LABEL_FIELD"
            )
    elif learns and not (labels.min() >= 0 and labels.max() <= 1):
        raise ConfigError(
            f"{model} learns probabilities, but its labels, LABEL_FIELD={field}, go from {labels.min():g} to "
            f"{labels.max():g}: scale them to 0 to 1 with normalize_field=['{field}'] (errors are then in that scale), "
            f"or {_MAKE_LABELS}"
        )


def _check_values(config: PruneConfig, compared: Sequence[str], values: np.ndarray) -> None:
    """Refuse metrics that labels of these values do not define."""
    count = f"{len(values)} values from {values[0]:g} to {values[-1]:g}" if len(values) > 1 else f"only {values[0]:g}"
    said = f"metrics={config['metrics']} is not allowed: LABEL_FIELD={config['LABEL_FIELD']} has {count}, but"
    if "AUC" in compared and not np.array_equal(values, (0, 1)):
        raise ConfigError(f"{said} AUC takes 0 and 1; set metrics to such as {_ERRORS}, or {_MAKE_LABELS}")
    if "LogLoss" in compared and not (values[0] >= 0 and values[-1] <= 1):
        raise ConfigError(f"{said} LogLoss takes 0 to 1; set metrics to such as {_ERRORS}, or {_MAKE_LABELS}")
    if "Accuracy" in compared and not 1 < len(values) <= _MOST_VALUES:
        raise ConfigError(
            f"{said} Accuracy, which rounds scores to these, takes 2 to {_MOST_VALUES} values; set metrics to such as "
            f"{_ERRORS}"
        )


def _check_selection(config: PruneConfig, labels: np.ndarray | None) -> None:
    """Refuse to pick tickets by the AUC of one class."""
    classes = np.unique([] if labels is None else labels)
    if config["valid_metric"].lower() == "auc" and len(classes) == 1:
        raise ConfigError(
            "valid_metric=AUC is not defined on the data that tickets are picked on "
            f"(eval_args={config['eval_args']}): all its labels are {classes[0]:g}; "
            "give it labels of both classes, or set another valid_metric"
        )
