"""Embedding tables that are computed, while a model trains, from fewer parameters than they have entries."""

from __future__ import annotations

import copyreg
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from recbole_prune.artifact.encoding import encode
from recbole_prune.artifact.forms import FORMS, TableForm, column_groups, permutation
from recbole_prune.training.parts import Part, State, Training

if TYPE_CHECKING:
    from recbole.data.dataloader import AbstractDataLoader

    from recbole_prune.artifact.encoding import Array
    from recbole_prune.masking.masks import MaskSet
    from recbole_prune.training.model import MaskAware


def compute_tables(model: nn.Module, maps: Mapping[str, nn.Module]) -> None:
    """Turn tables of ``model`` into functions of other parameters.

    ``state_dict`` keeps giving dense tables under RecBole's keys; loading one makes the tables dense again.

    Args:
        model: any module.
        maps: by parameter name (``<module>.weight``) what computes the table, and by ``right_inverse`` says what from,
            as :func:`torch.nn.utils.parametrize.register_parametrization` needs it.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    groups: list[list[nn.Module]] = []  # of modules that share a table
    for name, computing in maps.items():
        first = modules[name.rpartition(".")[0]]
        table = first.weight
        group = [first, *(m for m in model.modules() if m is not first and m._parameters.get("weight") is table)]
        for module in group:
            parametrize.register_parametrization(module, "weight", computing.to(table.device))
            # torch makes a class for the module alone
            type(module).__reduce_ex__ = _as_plain_embedding  # type: ignore[assignment]
            module.parametrizations["weight"] = first.parametrizations["weight"]
        groups.append(group)
    computed = [module for group in groups for module in group]

    def densify(_: nn.Module, state: dict[str, Any], prefix: str, __: object) -> None:
        for place, module in model.named_modules(remove_duplicate=False):  # a table may have several names (FFM)
            if module in computed and parametrize.is_parametrized(module, "weight"):
                inner = f"{prefix}{place}.parametrizations."
                for key in [key for key in state if key.startswith(inner)]:
                    del state[key]
                state[f"{prefix}{place}.weight"] = dense_table(module)

    def make_dense(*_: object) -> None:
        for group in groups:
            if parametrize.is_parametrized(group[0], "weight"):
                dense = nn.Parameter(dense_table(group[0]))
                for module in group:
                    parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
                    module.weight = dense

    model._register_state_dict_hook(densify)
    model._register_load_state_dict_pre_hook(make_dense)


def dense_table(module: nn.Module) -> torch.Tensor:
    """The table of a module whose weight is computed; of forms to the bit what they decode to."""
    table: torch.Tensor = module.weight  # type: ignore[assignment]
    computing = module.parametrizations["weight"][0]  # type: ignore[index]
    if isinstance(computing, FormedTable):
        return torch.from_numpy(computing.form_of(computing.parts_of(module)).decode()).to(table.device)
    return table.detach().clone()


def _as_plain_embedding(module: nn.Embedding, _: SupportsIndex) -> tuple[Any, ...]:
    """Pickled as a plain table: some checkpoints hold whole modules (SASRecF), and plain RecBole reads them."""
    table, width = dense_table(module), module.embedding_dim
    plain = nn.Embedding(module.num_embeddings, width, padding_idx=module.padding_idx, _weight=table)
    return copyreg._reconstructor, (nn.Embedding, object, None), plain.__dict__  # type: ignore[attr-defined]


class FormedTable(nn.Module):
    """A table as its form says, from the form's smaller tables, which are the parameters; codes are fixed.

    Args:
        form: where training starts.
    """

    def __init__(self, form: TableForm) -> None:
        super().__init__()
        self._form = form
        padding = ("padding",) if form.padding_rows else ()
        self._names = (*FORMS[form.encoding], *padding)
        self._leading = list(form.padding_rows) == list(range(len(form.padding_rows)))
        self._groups: list[tuple[int, int]] = []
        if form.codes is not None:
            self._groups = column_groups(form.columns, form.subspaces)
            self._keep("_codes", form.codes.reshape(form.counted, form.subspaces))
        elif form.encoding == "hashed":
            places = permutation(form.counted, form.seed)
            self._keep("_remainders", places % form.divider)
            self._keep("_quotients", places // form.divider)
        counted = [row for row in range(form.rows) if row not in set(form.padding_rows)]
        order = torch.empty(form.rows, dtype=torch.long)
        order[[*form.padding_rows, *counted]] = torch.arange(form.rows)
        self.register_buffer("_order", order, persistent=False)

    def _keep(self, name: str, numbers: Array) -> None:
        self.register_buffer(name, torch.from_numpy(numbers.astype("int64")), persistent=False)

    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        """The table."""
        tables = dict(zip(self._names, parts))
        counted: torch.Tensor
        if self._form.encoding == "factors":
            counted = tables["left"] @ tables["right"]
        elif self._form.encoding == "codes":
            picked, values = self.get_buffer("_codes"), tables["values"]
            pieces = [functional.embedding(picked[:, g], values[:, a:b]) for g, (a, b) in enumerate(self._groups)]
            counted = torch.cat(pieces, dim=1)
        else:
            counted = functional.embedding(self.get_buffer("_remainders"), tables["remainder"])
            counted = counted * functional.embedding(self.get_buffer("_quotients"), tables["quotient"])
        if "padding" not in tables:
            return counted
        table = torch.cat([tables["padding"], counted])
        if self._leading:
            return table
        ordered: torch.Tensor = table[self.get_buffer("_order")]
        return ordered

    def right_inverse(self, table: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The form's smaller tables, whatever the table is."""
        decoded = (self._form.tables[name].decode() for name in self._names)
        return tuple(torch.from_numpy(each).to(table) for each in decoded)

    def form_of(self, parts: Mapping[str, Array]) -> TableForm:
        """The form with other smaller tables."""
        return replace(self._form, tables={name: encode(array) for name, array in parts.items()})

    def parts_of(self, module: nn.Module) -> dict[str, Array]:
        """The smaller tables now, by name.

        Args:
            module: whose weight this computes.
        """
        parameters = module.parametrizations.weight  # type: ignore[union-attr]
        now = [getattr(parameters, f"original{place}") for place in range(len(self._names))]
        return {name: part.detach().cpu().numpy().copy() for name, part in zip(self._names, now)}


class FixedForms(Part):
    """Forms of the tables of a ticket that is not trained.

    Args:
        forms: by the names of the tables.
    """

    name = "fixed_forms"

    def __init__(self, forms: Mapping[str, TableForm]) -> None:
        self._forms = forms

    def forms(self) -> Mapping[str, TableForm]:
        """As they were given."""
        return self._forms


class TrainedForms(Part):
    """Trains the smaller tables of forms in the place of dense tables.

    Args:
        forms: where training starts, by the names of the tables.
        weights: a state dict for the rest of the model; None: as it is built.
    """

    name = "table_forms"

    def __init__(self, forms: Mapping[str, TableForm], weights: Mapping[str, torch.Tensor] | None = None) -> None:
        self._forms = forms
        self._weights = weights
        self._maps: dict[str, FormedTable] = {}
        self._modules: dict[str, nn.Module] = {}
        self._best: dict[str, dict[str, Array]] = {}

    def attach(self, model: MaskAware) -> None:
        """Load weights and put the smaller tables into the place of dense ones."""
        if self._weights is not None:
            model.load_trained(self._weights, None)
        modules = dict(model.named_modules(remove_duplicate=False))
        self._modules = {name: modules[name.rpartition(".")[0]] for name in self._forms}
        self._maps = {name: FormedTable(form) for name, form in self._forms.items()}
        compute_tables(model, self._maps)

    def checkpoint_saved(self, trainer: Training, data: bytes) -> None:
        """Keep the smaller tables of the best epoch so far."""
        self._best = {name: each.parts_of(self._modules[name]) for name, each in self._maps.items()}

    def state(self) -> State:
        """The smaller tables of the best epoch."""
        return {"best": self._best}

    def restore(self, state: State, device: torch.device) -> None:
        """Undo :meth:`state`."""
        self._best = {
            name: {part: _numpy(value) for part, value in best.items()} for name, best in state["best"].items()
        }

    def forms(self) -> Mapping[str, TableForm]:
        """Those of the checkpoint."""
        return {name: self._maps[name].form_of(parts) for name, parts in self._best.items()}


def _numpy(value: torch.Tensor | Array) -> Array:
    return value.numpy() if isinstance(value, torch.Tensor) else value


class StartCounts(Part):
    """What a training starts from competes with what it finds: epoch 0 is validated and kept where none is better.

    Args:
        data: the dataloader that picks epochs.
    """

    name = "start_counts"

    def __init__(self, data: AbstractDataLoader) -> None:
        self._data = data
        self._trained = False

    def begin(self, trainer: Training) -> None:
        """Validate the start, unless an earlier process has."""
        if not trainer.epochs_done:
            trainer.count_start(self._data)

    def checkpoint_saved(self, trainer: Training, data: bytes) -> None:
        """Note whether the best is behind the start."""
        self._trained = bool(trainer.epochs_done)

    def state(self) -> State:
        """Whether the best is behind the start."""
        return {"trained": self._trained}

    def restore(self, state: State, device: torch.device) -> None:
        """Undo :meth:`state`."""
        self._trained = bool(state["trained"])

    def report(self, masks: MaskSet | None) -> dict[str, Any]:
        """``tuned``: whether training made it better on validation."""
        return {"tuned": self._trained}
