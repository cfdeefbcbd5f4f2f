"""Product quantization: rows are put together of pieces of codebooks, a byte for each piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

from recbole_prune.artifact.forms import TableForm, codes, column_groups
from recbole_prune.errors import ConfigError
from recbole_prune.pruners.k_means import k_means
from recbole_prune.pruners.table_forms import NUMBER_BYTES, TableForms, split_padding
from recbole_prune.run.ticket import Plan, Ticket
from recbole_prune.scoring.dot_product import to_numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recbole_prune.masking.scope import Target

    Array = NDArray[Any]

_NOISE = 1e-5


class ProductQuantization(TableForms):
    """Columns in m groups; in each group a row is one of at most 256 centroids: n m + 4 d k bytes a table.

    Jegou et al., IEEE TPAMI 33(1), 2011. ``prune_pq_codes=kmeans`` clusters the pieces of the trained tables; nothing
    is trained unless ``prune_form_tune`` says so, which trains the centroids with codes that stay. ``svd`` is RecJPQ
    (Petrov and Macdonald, WSDM 2024, arXiv 2312.06165): codes of users and items are the ranks of their entries in the
    singular vectors of the training interactions, cut into 256 equal parts, and the centroids are trained with the
    model from its initial weights. Tables that would not get smaller stay dense; so do, with ``svd``, those of
    anything else than users and items.
    """

    form = "codes"
    promises = replace(TableForms.promises, trains=False, least_sparsity=0.8)

    @property
    def _before_training(self) -> bool:
        return bool(self.settings.prune_pq_codes == "svd")

    def check(self) -> None:
        """Codes before training need a table of users or of items, and leave nothing to train on afterwards."""
        if self._before_training and self.tables() and not self._coded():
            raise ConfigError(
                f"prune_pq_codes=svd: {self.experiment.config['model']} has no table of users or of items alone in "
                "scope, whose interactions could give codes; use kmeans"
            )
        if self._before_training and self.settings.prune_form_tune:
            raise ConfigError(
                "prune_form_tune=True trains on from the trained tables, but prune_pq_codes=svd trains the codebooks "
                "from the start: leave prune_form_tune out"
            )
        super().check()

    def _coded(self) -> list[Target]:
        """The tables that get codes, if that makes them smaller."""
        tables = self.tables()
        return [target for target in tables if self._side(target)] if self._before_training else tables

    def _side(self, target: Target) -> str | None:
        """``user`` or ``item`` where rows of a table are just those; where there are as many of both, by its name."""
        dataset = self.experiment.workshop.dataset
        if not dataset.uid_field or not dataset.iid_field or target.padding_rows != (0,):
            return None
        sides = [s for s, n in (("user", dataset.user_num), ("item", dataset.item_num)) if n == target.shape[0]]
        return next((side for side in sides if len(sides) == 1 or side in target.name), None)

    def _centroids(self, target: Target) -> int:
        return min(int(self.settings.prune_pq_centroids), target.rows)

    def _subspaces(self, size: int) -> dict[str, int]:
        """Codes of a row of each table that gets smaller by them."""
        found = {}
        for target in self._coded():
            groups = min(size, target.width)
            if self._bytes(target, groups) < NUMBER_BYTES * target.rows * target.width:
                found[target.name] = groups
        return found

    def _bytes(self, target: Target, groups: int) -> int:
        return target.rows * groups + NUMBER_BYTES * target.width * self._centroids(target)

    def sizes(self) -> Sequence[int]:
        """Codes of a row; as many as columns at most."""
        return range(1, max((target.width for target in self._coded()), default=1) + 1)

    def bytes_of(self, size: int) -> int:
        """n m + 4 d k for a table with codes, 4 n d for one that stays dense."""
        groups = self._subspaces(size)
        return sum(
            self._bytes(t, groups[t.name]) if t.name in groups else NUMBER_BYTES * t.rows * t.width
            for t in self.tables()
        )

    def plan(self, number: int, keep: int, size: int, dense: Ticket) -> Plan:
        """Codes of the dense ticket's tables; or codes of the interactions, trained from the start."""
        groups = self._subspaces(size)
        self._say_codebooks(keep, groups)
        method = {"centroids": {name: self._centroids(self.scope[name]) for name in groups}}
        if self._before_training:
            return self._trained(number, keep, size, self._of_interactions(groups), **method)
        weights = self.experiment.weights_of(dense)
        forms = {}
        for name, count in groups.items():
            target = self.scope[name]
            self.experiment.logger.info(f"pq: {count} codebooks of {self._centroids(target)} centroids for {name}")
            counted, padding = split_padding(to_numpy(weights[name]), target)
            seed = self.experiment.config["seed"]
            picked, values = quantized(counted, count, self._centroids(target), seed)
            forms[name] = codes(picked, values, target.padding_rows, padding)
        return self._untrained(number, keep, size, weights, forms, **method)

    def _say_codebooks(self, keep: int, groups: Mapping[str, int]) -> None:
        """On small data the codebooks alone take more than the mask that the form is compared with."""
        alone = sum(NUMBER_BYTES * self.scope[name].width * self._centroids(self.scope[name]) for name in groups)
        if alone > self.budget(keep):
            self.experiment.logger.warning(
                f"pq: its codebooks alone take {alone:,} bytes, more than the {self.budget(keep):,.0f} of a mask that "
                f"keeps {keep}: a prune_pq_centroids below {self.settings.prune_pq_centroids} makes them smaller"
            )

    def _of_interactions(self, groups: Mapping[str, int]) -> dict[str, TableForm]:
        """Codes by the singular vectors of the training interactions; centroids as wide as the initial rows."""
        interactions, initial = self._interactions(), self.initial()
        draw = np.random.RandomState(self.experiment.config["seed"])
        forms = {}
        for name, count in groups.items():
            target = self.scope[name]
            matrix = interactions if self._side(target) == "user" else interactions.T.tocsr()
            picked = rank_codes(singular_vectors(matrix, count, draw), self._centroids(target), draw)
            counted, padding = split_padding(initial[name], target)
            values = draw.standard_normal((self._centroids(target), target.width)) * counted.std()
            forms[name] = codes(picked, values.astype(counted.dtype), target.padding_rows, padding)
        return forms

    def _interactions(self) -> csr_matrix:
        """Which user has which item in the training data: 0 or 1, ``[users, items]`` without padding."""
        workshop = self.experiment.workshop
        training = workshop.train_data._dataset
        users = training.inter_feat[training.uid_field].numpy()
        items = training.inter_feat[training.iid_field].numpy()
        earlier = f"{training.iid_field}{workshop.config['LIST_SUFFIX']}"
        if earlier in training.inter_feat:  # a row of sequential models is an item and those before it
            lists = training.inter_feat[earlier].numpy()
            users, items = np.append(users, np.repeat(users, lists.shape[1])), np.append(items, lists)
        real = (users > 0) & (items > 0)
        shape = (training.user_num - 1, training.item_num - 1)
        found = csr_matrix((np.ones(real.sum()), (users[real] - 1, items[real] - 1)), shape=shape)
        found.data[:] = 1.0
        return found


def quantized(table: Array, groups: int, clusters: int, seed: int) -> tuple[NDArray[np.uint8], Array]:
    """Codes and codebooks of a table.

    Args:
        table: ``[n, d]``.
        groups: m, from 1 to d.
        clusters: k, from 1 to min(256, n).
        seed: of k-means.

    Returns:
        codes ``[n, m]`` and the codebooks beside each other, ``[k, d]`` in the table's dtype.
    """
    draw = np.random.RandomState(seed)
    picked = np.empty((len(table), groups), dtype=np.uint8)
    values = np.empty((clusters, table.shape[1]), dtype=table.dtype)
    for group, (first, last) in enumerate(column_groups(table.shape[1], groups)):
        picked[:, group], values[:, first:last] = k_means(table[:, first:last], clusters, draw)
    return picked, values


def singular_vectors(matrix: csr_matrix, count: int, draw: np.random.RandomState) -> Array:
    """The first left singular vectors of a matrix, largest first; where it has fewer, zeros.

    Args:
        matrix: ``[n, others]``.
        count: how many.
        draw: of the start of the iteration.

    Returns:
        ``[n, count]``.
    """
    vectors = np.zeros((matrix.shape[0], count))
    start = draw.standard_normal(min(matrix.shape))
    possible = min(count, min(matrix.shape) - 1)
    if possible > 0:
        left, values, _ = svds(matrix, k=possible, v0=start)
        vectors[:, :possible] = left[:, np.argsort(-values, kind="stable")]
    return vectors


def rank_codes(vectors: Array, clusters: int, draw: np.random.RandomState) -> NDArray[np.uint8]:
    """Each column cut into parts of equally many rows: code = floor(k * rank / n).

    Values are brought to [0, 1] and get noise of 1e-5, which decides between rows that the data do not tell apart.

    Args:
        vectors: ``[n, m]``.
        clusters: k, at most 256.
        draw: the noise.
    """
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    scaled = (vectors - low) / np.where(high > low, high - low, 1)
    noisy = scaled + _NOISE * draw.standard_normal(vectors.shape)
    ranks = np.argsort(np.argsort(noisy, axis=0, kind="stable"), axis=0, kind="stable")
    found: NDArray[np.uint8] = (clusters * ranks // len(vectors)).astype(np.uint8)
    return found
