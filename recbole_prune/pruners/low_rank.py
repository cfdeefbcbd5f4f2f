"""Tables of low rank: the honest linear rival of every mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recbole_prune.anatomy.caches import refresh
from recbole_prune.anatomy.tables import WIDTH_KEYS
from recbole_prune.artifact.forms import factors
from recbole_prune.errors import ConfigError, RecBoleError
from recbole_prune.pruners.table_forms import NUMBER_BYTES, TableForms, split_padding
from recbole_prune.run.ticket import Plan, Ticket
from recbole_prune.scoring.dot_product import DotProduct, find_dot_product, to_numpy
from recbole_prune.scoring.probe import Probe, disagreement, undisturbed
from recbole_prune.sparse.ascending import ascending
from recbole_prune.training.computed_tables import StartCounts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recbole_prune.run.experiment import Weights

    Table = NDArray[Any]


class LowRank(TableForms):
    """The trained tables with as few singular values as fit into the bytes of a mask.

    Where scores are dot products of a user and an item table (:func:`joint_factors`) the best score matrix of rank r
    is that of a narrower model (Eckart and Young, Psychometrika 1936), so a ticket is one: form ``narrow``, r numbers
    a row. Where they are dot products of what the tables become by the same linear propagation (LightGCN), both tables
    are projected on r directions that they share (:func:`common_directions`), which is a narrower model too. Any other
    model keeps its width, and each table becomes a product of two: form ``factors``. Which of the three a model is
    is found by its scores. Nothing is trained unless ``prune_form_tune`` says so.
    """

    promises = replace(TableForms.promises, trains=False)

    @property
    def form(self) -> str:  # type: ignore[override]
        """``narrow`` or ``factors``."""
        return "factors" if self._joint is None else "narrow"

    def check(self) -> None:
        """``prune_lowrank_form=joint`` needs a model whose scores are dot products that a narrower one gives too."""
        super().check()
        if self.settings.prune_lowrank_form == "joint" and self._joint is None:
            names = ", ".join(target.name for target in self.tables())
            raise ConfigError(
                f"prune_lowrank_form=joint: no narrower {self.experiment.config['model']} scores like tables of low "
                f"rank, as its scores are no dot products of the tables in scope ({names}) alone; use auto or table"
            )

    @cached_property
    def _joint(self) -> DotProduct | None:
        """The dot product that narrower models compute; None where tables are factorised one by one."""
        tables = self.tables()
        widths = {target.width for target in tables}
        if self.settings.prune_lowrank_form == "table" or len(tables) < len(self.scope.targets) or len(widths) != 1:
            return None
        workshop = self.experiment.workshop
        model = workshop.build_model()
        weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        with undisturbed(model):
            refresh(model)
            probe = Probe(model, workshop.config, workshop.dataset)
            scores = probe.scores(model)
            arrays = {name: to_numpy(value) for name, value in weights.items()}
            dot, _ = find_dot_product(model, probe, scores, arrays, workshop.dataset)
            if dot is None or (dot.stored and {dot.user, dot.item} != {target.name for target in tables}):
                return None
            pair = _pair(dot, arrays if dot.stored else vars(model))
        as_wide = {table.shape[1] for table in pair} == widths  # not what concatenates the layers of a propagation
        return dot if as_wide and self._narrow_agrees(dot, weights, pair, probe) else None

    def _narrow_agrees(self, dot: DotProduct, weights: Weights, pair: tuple[Table, Table], probe: Probe) -> bool:
        """Whether a narrower model scores the probe as tables of low rank do."""
        rank = max(1, pair[0].shape[1] // 2)
        try:
            changes = self._changes(rank)
            model = self.experiment.workshop.scored_model(changes)
        except (ConfigError, RecBoleError):
            return False
        state = self._narrowed(dot, weights, pair, rank)
        if {n: v.shape for n, v in state.items()} != {n: v.shape for n, v in model.state_dict().items()}:
            return False
        model.load_trained(state, None)
        left, right = joint_factors(*pair, rank) if dot.stored else projected(*pair, rank)
        assert probe.users is not None, "dot products have users"
        expected = dot.scale * left[probe.users - 1] @ right.T
        items = self.experiment.workshop.dataset.item_num - 1
        return not disagreement(probe.scores(model)[:, 1:], expected[:, :items])

    def _changes(self, rank: int) -> dict[str, int]:
        """The settings of a model of that width.

        Raises:
            ConfigError: no setting says the width of the tables.
        """
        config, width = self.experiment.config, self.tables()[0].width
        changes = {key: rank for key in WIDTH_KEYS if isinstance(config[key], int) and config[key] == width}
        if not changes:
            raise ConfigError(f"{config['model']} has no setting of the width {width}")
        return changes

    def _narrowed(self, dot: DotProduct, weights: Weights, pair: tuple[Table, Table], rank: int) -> Weights:
        """Weights of the narrower model: padding rows are 0, tensors beside the tables stay."""
        small: dict[str, Table] = {}
        if dot.stored:
            small = dict(zip((dot.user, dot.item), joint_factors(*pair, rank)))
        else:
            shared = common_directions(*pair, rank)
            for target in self.tables():
                counted, _ = split_padding(to_numpy(weights[target.name]), target)
                small[target.name] = counted.astype(np.float64) @ shared
        state = dict(weights)
        for target in self.tables():
            narrow = torch.zeros(target.shape[0], rank, dtype=weights[target.name].dtype)
            narrow[target.countable()] = torch.from_numpy(small[target.name]).to(narrow.dtype)
            state.update(dict.fromkeys((target.name, *target.tied_to), narrow))
        return state

    def sizes(self) -> Sequence[int]:
        """Ranks."""
        return range(1, max(target.width for target in self.tables()) + 1)

    def bytes_of(self, size: int) -> int:
        """Narrow: 4 r n. Factors: 4 r (n + d) a table, or 4 n d where that is no more."""
        if self._joint is not None:
            return sum(NUMBER_BYTES * size * target.rows for target in self.tables())
        return sum(NUMBER_BYTES * min(min(size, t.width) * (t.rows + t.width), t.rows * t.width) for t in self.tables())

    def stored_bytes(self, size: int) -> int:
        """With padding rows, which are as narrow as the others in a narrower model."""
        if self._joint is None:
            return super().stored_bytes(size)
        return sum(NUMBER_BYTES * size * target.shape[0] for target in self.tables())

    def plan(self, number: int, keep: int, size: int, dense: Ticket) -> Plan:
        """The dense ticket's tables with the first ``size`` singular values."""
        weights = self.experiment.weights_of(dense)
        method = {"items_never_trained": self._items_never_trained()}
        if method["items_never_trained"]:
            self.experiment.logger.info(
                f"lowrank: {method['items_never_trained']:.1%} of the items are in no training interaction; their rows "
                "are noise that takes rank"
            )
        if self._joint is None:
            forms = {}
            for target in self.tables():
                rank = min(size, target.width)
                if rank * (target.rows + target.width) < target.rows * target.width:
                    counted, padding = split_padding(to_numpy(weights[target.name]), target)
                    forms[target.name] = factors(*table_factors(counted, rank), target.padding_rows, padding)
            return self._untrained(number, keep, size, weights, forms, **method)
        state = self._narrowed(self._joint, weights, self._vectors(self._joint, weights), size)
        fields = {**self._method(keep, size, {}), "bytes": self.stored_bytes(size), **method}
        tune = self.settings.prune_form_tune
        return Plan(
            number,
            None,
            rewind="none",
            weights=state,
            train=tune,
            changes=self._changes(size),
            parts=(StartCounts(self.experiment.workshop.select_data),) if tune else (),
            kept=self.live_entries(size),
            method=fields,
        )

    def _vectors(self, dot: DotProduct, weights: Weights) -> tuple[Table, Table]:
        """Vectors of users and items of the dense ticket, without padding rows."""
        if dot.stored:
            return _pair(dot, weights)
        workshop = self.experiment.workshop
        model = workshop.build_model()
        model.load_trained(weights, None)
        Probe(model, workshop.config, workshop.dataset).scores(model)  # it caches what it propagates
        return _pair(dot, vars(model))

    def _items_never_trained(self) -> float | None:
        """Share of items without a training interaction, whose rows are noise that takes rank."""
        training = self.experiment.workshop.train_data._dataset
        if training.iid_field is None:
            return None
        known = ascending(training.inter_feat[training.iid_field].numpy())
        return float(round(1 - np.count_nonzero(known) / max(1, training.item_num - 1), 6))


def _pair(dot: DotProduct, tables: Mapping[str, object]) -> tuple[Table, Table]:
    """Vectors of users and of items without RecBole's padding row 0."""
    users, items = (tables[name] for name in (dot.user, dot.item))
    return _array(users)[1:], _array(items)[1:]


def _array(table: object) -> Table:
    return to_numpy(table) if isinstance(table, torch.Tensor) else np.asarray(table)


def joint_factors(users: Table, items: Table, rank: int) -> tuple[Table, Table]:
    """Narrow tables whose products are the best score matrix of a rank, in the Frobenius norm (Eckart and Young).

    With U = Q1 R1, V = Q2 R2 and the singular value decomposition R1 R2^T = P S W^T they are Q1 P_r S_r^{1/2} and
    Q2 W_r S_r^{1/2}; the squared error is the sum of the squares of the other singular values.

    Args:
        users: U, ``[users, d]``.
        items: V, ``[items, d]``.
        rank: from 1 to d.

    Returns:
        ``[users, rank]`` and ``[items, rank]``, float64; signs of columns are arbitrary.
    """
    (left, upper), (right, lower) = (np.linalg.qr(_tall(table)) for table in (users, items))
    p, values, w = np.linalg.svd(upper @ lower.T)
    roots = np.sqrt(values[:rank])
    return (left @ p[:, :rank] * roots)[: len(users)], (right @ w[:rank].T * roots)[: len(items)]


def _tall(table: Table) -> Table:
    """In float64, with rows of zeros where there are fewer than columns, so that every width has its directions."""
    missing = max(0, table.shape[1] - len(table))
    return np.vstack([table.astype(np.float64), np.zeros((missing, table.shape[1]))])


def common_directions(users: Table, items: Table, rank: int) -> Table:
    """The first right singular vectors of both tables stacked, ``[d, rank]``, float64.

    Propagation adds rows of users to rows of items, so what a narrower model takes from them must be the same.
    """
    stacked = _tall(np.vstack([users, items]))
    directions: Table = np.linalg.svd(stacked, full_matrices=False)[2][:rank].T
    return directions


def projected(users: Table, items: Table, rank: int) -> tuple[Table, Table]:
    """Both tables in the :func:`common_directions`, ``[users, rank]`` and ``[items, rank]``."""
    shared = common_directions(users, items, rank)
    return users.astype(np.float64) @ shared, items.astype(np.float64) @ shared


def table_factors(table: Table, rank: int) -> tuple[Table, Table]:
    """The best product of two tables of a rank: left singular vectors times singular values, and right ones.

    Returns:
        ``[n, rank]`` and ``[rank, d]`` in the table's dtype.
    """
    left, values, right = np.linalg.svd(table.astype(np.float64), full_matrices=False)
    return (left[:, :rank] * values[:rank]).astype(table.dtype), right[:rank].astype(table.dtype)
