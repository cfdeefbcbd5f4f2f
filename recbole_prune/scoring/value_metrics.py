"""Metrics of scores beside labels that RecBole lacks; :func:`join_recbole` lists them among RecBole's own.

Every class here is a metric under its name: ``config/evaluation.py`` reads this file as it reads RecBole's, unimported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

import numpy as np
from recbole.evaluator import register
from recbole.evaluator.base_metric import LossMetric
from recbole.evaluator.collector import DataStruct

Values = Union[np.ndarray, Sequence[float]]

# what a collector may hold beside the labels of the evaluated rows: the values that labels have in training
LABEL_VALUES = "data.label_values"


class MSE(LossMetric):
    """Mean squared error, the mean of (label - score)^2 over the evaluated rows: the square of RMSE."""

    smaller = True

    def calculate_metric(self, dataobject: DataStruct) -> dict[str, float]:
        """The metric by its name, rounded as RecBole's are."""
        found: dict[str, float] = self.output_metric("mse", dataobject)
        return found

    def metric_info(self, preds: np.ndarray, trues: np.ndarray) -> float:
        """Of scores ``[n]`` and labels ``[n]``."""
        return float(np.mean(np.square(np.float64(preds) - np.float64(trues))))


class Accuracy(LossMetric):
    """Share of the evaluated rows whose score, rounded to a value that labels can take, is their label.

    A score becomes the nearest of these values, halfway between two the upper one. They are 0 and 1 where labels have
    no other value, so that a score from 0.5 on says 1; else all that labels have in training and in the evaluated rows,
    such as the marks of a rating.
    """

    metric_need = [*LossMetric.metric_need, LABEL_VALUES]

    def calculate_metric(self, dataobject: DataStruct) -> dict[str, float]:
        """The metric by its name, rounded as RecBole's are."""
        preds, trues = self.used_info(dataobject)
        values = dataobject.get(LABEL_VALUES).numpy() if LABEL_VALUES in dataobject else ()
        return {"accuracy": round(self.metric_info(preds, trues, values), self.decimal_place)}

    def metric_info(self, preds: np.ndarray, trues: np.ndarray, values: Values = ()) -> float:
        """Of scores ``[n]``, labels ``[n]`` and further values of labels; NaN where a score is."""
        taken = label_values(trues, values)
        middles = (taken[1:] + taken[:-1]) / 2
        nearest = taken[np.searchsorted(middles, np.float64(preds), side="right")]
        return float(np.mean(np.where(np.isnan(preds), np.nan, nearest == trues)))


def label_values(*labels: Values) -> np.ndarray:
    """The values that labels can take, ascending: those that they have, but both 0 and 1 where they have no other."""
    found: np.ndarray = np.unique(np.concatenate([np.ravel(np.asarray(part, np.float64)) for part in labels]))
    return np.array([0.0, 1.0]) if np.isin(found, (0, 1)).all() else found


def join_recbole() -> None:
    """Let RecBole's ``metrics`` and ``valid_metric`` name the metrics of this file; one of that name stays."""
    metrics: tuple[Any, ...] = (MSE, Accuracy)
    for metric in metrics:
        name = metric.__name__.lower()
        if name in register.metrics_dict:
            continue
        register.metrics_dict[name] = metric
        register.metric_information[name] = metric.metric_need
        register.metric_types[name] = metric.metric_type
        if metric.smaller:
            register.smaller_metrics.append(name)
