"""What each user scores: the values that RecBole's metrics are means of, before it rounds them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Callable

import numpy as np
from numpy.typing import NDArray
from recbole.evaluator import Evaluator
from recbole.evaluator.base_metric import TopkMetric

if TYPE_CHECKING:
    from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader

Values = dict[str, NDArray[np.float32]]


class UserValues:
    """Listens to the metrics of an evaluator that have a value for each user.

    These are the classes that inherit RecBole's ``TopkMetric`` (Recall, NDCG, MRR, MAP, Hit, Precision). GAUC and the
    metrics of values or of all lists together (AUC, MSE, ItemCoverage, ...) have none.

    Args:
        evaluator: RecBole's.

    Attributes:
        last: of the last evaluation, by metric, float32 ``[rows]`` in the order of its data.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.last: Values = {}
        for metric in evaluator.metric_class.values():
            if isinstance(metric, TopkMetric):
                # each calls it with what metric_info says of every user
                vars(metric)["topk_result"] = partial(self._keep, metric.topk, metric.topk_result)

    def _keep(
        self,
        topk: list[int],
        mean: Callable[[str, NDArray[np.float64]], object],
        name: str,
        values: NDArray[np.float64],
    ) -> object:
        """Values of a metric, ``[rows, largest k]``, on their way to their mean."""
        for k in topk:
            self.last[f"{name}@{k}"] = values[:, k - 1].astype(np.float32)
        return mean(name, values)


def users_of(loader: AbstractDataLoader) -> NDArray[np.int64]:
    """The user of each row of an evaluation, int64 ``[rows]``: internal ids in the order of the data.

    Args:
        loader: a dataloader of RecBole's that ranks, for users or for sequences.
    """
    users = getattr(loader, "uid_list", None)  # sequences that are ranked among all items have none
    if users is None:
        users = loader._dataset.inter_feat[loader._dataset.uid_field]
    return np.asarray(users, np.int64)
