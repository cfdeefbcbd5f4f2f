"""FreqD: hints behind a filter that keeps what neighbours in the training data have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn.functional import cosine_similarity

from recbole_prune.anatomy.tables import user_and_item_table
from recbole_prune.distillers.base import Promises
from recbole_prune.distillers.latent import VectorDistiller, student_vectors
from recbole_prune.sparse.distinct import distinct

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction

    from recbole_prune.data.used_ids import UsedIds
    from recbole_prune.training.model import MaskAware


# rows of the counts of common values that are there at once
_KEYS_AT_ONCE = 512


class GraphHints(VectorDistiller):
    """FreqD: the cosines of smoothed vectors, the student's through a mean of experts and the teacher's.

    Source: methods/more_methods.md, A5 (the equations are those of the code of KDs). The student's vectors are those of
    its own tables, before any propagation, where it has one for users and one for items.
    """

    promises = Promises(
        vectors=True,
        closed_users=True,
        refuses=(*VectorDistiller.promises.refuses, r"are histories and no closed set"),
    )

    def attach(self, model: MaskAware) -> None:
        """Build the experts and the two graphs."""
        count = self.settings.distill_neighbours
        sides = self.pupils.consumed, self.pupils.consumers
        self._graphs = {side: neighbour_graph(used, count) for side, used in zip(("user", "item"), sides)}
        self._own_tables = None not in user_and_item_table(model)  # before pruning, which keeps their names
        super().attach(model)

    def helpers(self, model: MaskAware) -> nn.ModuleDict:
        """The experts of users and of items."""
        settings, ones = self.settings, torch.ones(1, dtype=torch.long, device=model.device)
        found = {}
        for side, width in zip(("user", "item"), self.teacher.widths):
            with torch.no_grad():
                own = self._vectors(model, side, ones).shape[1]
            found[side] = MeanOfExperts(own, width, settings.distill_experts, settings.distill_dropout)
        return nn.ModuleDict(found)

    def _vectors(self, model: MaskAware, side: str, ids: torch.Tensor) -> torch.Tensor:
        """The student's."""
        if self._own_tables:
            vectors: torch.Tensor = getattr(model, f"{side}_embedding")(ids)
            return vectors
        accessor = student_vectors(model)
        return accessor.user_vectors(model, ids) if side == "user" else accessor.item_vectors(model, ids)

    def terms(self, model: MaskAware, interaction: Interaction) -> Mapping[str, tuple[float, torch.Tensor]]:
        """Users whole; positive and negative items by half each."""
        there = self.pupils.entities(interaction)
        assert there.users is not None, "users are no histories"
        total = self._error(model, "user", there.users)
        for ids in (there.positives, there.negatives):
            total = total + 0.5 * self._error(model, "item", ids)
        return {"freqd": (self.settings.distill_weight, total)}

    def _error(self, model: MaskAware, side: str, ids: torch.Tensor) -> torch.Tensor:
        """The sum of ``1 - cos`` over entities of one kind; links are dropped anew, for both alike."""
        graph = self._graphs[side]
        links = Links.of(graph, ids).kept(self.settings.distill_link_keep)
        found, places = distinct(torch.cat([ids, links.others]), graph.shape[0])
        own, others = places[: len(ids)], places[len(ids) :]
        theirs = self.teacher.user_vectors(found) if side == "user" else self.teacher.item_vectors(found)
        both = self._helpers[side](self._vectors(model, side, found)), theirs
        share = self.settings.distill_link_share
        return cosine_loss(*(links.smoothed(vectors, own, others, share) for vectors in both)).sum()


class MeanOfExperts(nn.Module):
    """The mean of networks ``dropout - linear - relu - dropout - linear``, hidden layers as wide as the teacher.

    Args:
        student, teacher: widths of the vectors.
        count: of the networks.
        dropout: the chance with which a number becomes 0.
    """

    def __init__(self, student: int, teacher: int, count: int, dropout: float) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Dropout(dropout),
                nn.Linear(student, teacher),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(teacher, teacher),
            )
            for _ in range(count)
        )

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """The teacher's vectors ``[b, d_T]`` as reconstructed from the student's ``[b, d_S]``."""
        return torch.stack([expert(vectors) for expert in self.experts]).mean(0)


class Links:
    """The entries of some rows of a graph.

    Args:
        rows: which of the rows each entry is of.
        others: ids of the columns.
        weights: the values.
    """

    def __init__(self, rows: torch.Tensor, others: torch.Tensor, weights: torch.Tensor) -> None:
        self.rows, self.others, self.weights = rows, others, weights

    @classmethod
    def of(cls, graph: sparse.csr_matrix, ids: torch.Tensor) -> Links:
        """Those of the rows ``ids``."""
        some = graph[ids.cpu().numpy()].tocoo()
        rows, others = (torch.from_numpy(part.astype(np.int64)).to(ids.device) for part in (some.row, some.col))
        return cls(rows, others, torch.from_numpy(some.data).to(ids.device))

    def kept(self, share: float) -> Links:
        """Each with a chance of ``share``, and divided by it."""
        if share == 1:
            return self
        kept = torch.rand(len(self.weights), device=self.weights.device) < share
        return Links(self.rows[kept], self.others[kept], self.weights[kept] / share)

    def smoothed(self, vectors: torch.Tensor, own: torch.Tensor, others: torch.Tensor, share: float) -> torch.Tensor:
        """``(1 - a) x + a A x`` for the rows.

        Args:
            vectors: ``x``, of rows and columns ``[m, d]``.
            own: where the rows stand in it ``[n]``.
            others: where the column of each entry stands in it.
            share: the ``a``.
        """
        weighted = vectors[others] * self.weights.to(vectors.dtype)[:, None]
        around = torch.zeros_like(vectors[own]).index_add(0, self.rows, weighted)
        return (1 - share) * vectors[own] + share * around


def cosine_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """``1 - cos`` of vectors of the same entities ``[n, d]``, one value each; 1 and no gradient with one of zeros."""
    there = ((student != 0).any(1) & (teacher != 0).any(1))[:, None]
    mine, theirs = (torch.where(there, vectors.float(), 1.0) for vectors in (student, teacher))
    return 1 - cosine_similarity(mine, theirs, dim=1) * there.squeeze(1)


def neighbour_graph(used: UsedIds, count: int) -> sparse.csr_matrix:
    """Who has used most of the same: symmetric and normalised by degrees, float32 ``[keys, keys]``.

    Every key is linked to the ``count`` others with which it has most values in common, smaller ids first among equals;
    to fewer where fewer have any. With ``G`` the mean of those links and their transpose, it is
    ``D^-1/2 G D^-1/2``.

    Args:
        used: the values of each key.
        count: links of a key.
    """
    keys, values = np.divmod(used.codes, used.value_count)
    size = used.key_count
    pairs = sparse.csr_matrix((np.ones(len(keys), np.int32), (keys, values)), (size, used.value_count))
    transposed, ends, found = pairs.T.tocsr(), [], []
    for start in range(0, size, _KEYS_AT_ONCE):
        common = (pairs[start : start + _KEYS_AT_ONCE] @ transposed).tocsr()
        for row in range(common.shape[0]):
            part = slice(common.indptr[row], common.indptr[row + 1])
            others, counts = common.indices[part].astype(np.int64), common.data[part]
            # more in common first, then smaller ids; never itself
            order = counts.astype(np.int64) * size - others
            order[others == start + row] = 0
            best = np.argpartition(-order, min(count, len(order)) - 1)[:count] if len(order) else order
            best = best[order[best] > 0]
            found.append(others[best])
            ends.append(len(best))
    rows, columns = np.repeat(np.arange(size), ends), np.concatenate(found)
    links = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), (size, size))
    links = (links + links.T) / 2
    degrees = np.asarray(links.sum(1)).ravel()
    scale = sparse.diags(np.where(degrees > 0, 1 / np.sqrt(np.maximum(degrees, 0.5)), 0.0).astype(np.float32))
    return sparse.csr_matrix(scale @ links @ scale, dtype=np.float32)
