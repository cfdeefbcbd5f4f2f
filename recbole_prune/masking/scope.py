"""Which tensors and rows of a model may be pruned, and why the others may not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import torch
from torch import nn

from recbole_prune.errors import ConfigError, NothingToPrune
from recbole_prune.masking.padding import PaddingRule

KINDS = ("embedding", "linear", "conv", "recurrent")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


@dataclass(frozen=True)
class Target:
    """One tensor that may be pruned.

    Attributes:
        name: qualified parameter name, as in ``state_dict``.
        kind: ``embedding``, ``linear``, ``conv`` or ``recurrent``.
        shape: shape of the tensor; the first dimension is the row.
        padding_rows: rows that are never pruned and never counted (RecBole's [PAD] rows).
        tied_to: other names of the same tensor.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    padding_rows: tuple[int, ...] = ()
    tied_to: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Number of rows that count."""
        return self.shape[0] - len(self.padding_rows)

    @property
    def width(self) -> int:
        """Entries in a row."""
        return prod(self.shape[1:])

    @property
    def prunable(self) -> int:
        """Number of entries that count."""
        return self.rows * self.width

    def countable(self, device: torch.device | None = None) -> torch.Tensor:
        """A boolean column, shape ``[shape[0]]``, that is False on padding rows."""
        rows = torch.ones(self.shape[0], dtype=torch.bool, device=device)
        rows[list(self.padding_rows)] = False
        return rows


@dataclass(frozen=True)
class Exclusion:
    """A trainable or frozen tensor that is left alone, and the reason in a line."""

    name: str
    entries: int
    reason: str


@dataclass(frozen=True)
class Scope:
    """The ordered targets of a model.

    Attributes:
        targets: what may be pruned, in the order of the model's parameters.
        exclusions: every other parameter with the reason.
        parameters: all trainable entries of the dense model.
    """

    targets: tuple[Target, ...]
    exclusions: tuple[Exclusion, ...] = ()
    parameters: int = 0
    _by_name: dict[str, Target] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._by_name.update({target.name: target for target in self.targets})

    def __iter__(self) -> Iterator[Target]:
        return iter(self.targets)

    def __getitem__(self, name: str) -> Target:
        return self._by_name[name]

    @property
    def prunable(self) -> int:
        """Entries of all targets, padding rows not counted."""
        return sum(target.prunable for target in self.targets)

    def without(self, names: Iterable[str], reason: str) -> Scope:
        """The same scope with the named targets moved to the exclusions."""
        names = set(names)
        moved = tuple(Exclusion(t.name, prod(t.shape), reason) for t in self.targets if t.name in names)
        if not moved:
            return self
        return Scope(
            tuple(t for t in self.targets if t.name not in names), self.exclusions + moved, parameters=self.parameters
        )

    def require_targets(self, model_name: str) -> Scope:
        """Raise :class:`NothingToPrune` if no target is left."""
        if not self.targets:
            reasons = "; ".join(f"{e.name}: {e.reason}" for e in self.exclusions[:5]) or "it has no parameters"
            raise NothingToPrune(f"{model_name} has nothing to prune in this scope ({reasons})")
        return self

    def to_json(self) -> dict[str, Any]:
        """The scope in JSON's types, as ``scope.json`` holds it."""
        return {
            "targets": [{**vars(target), "prunable": target.prunable} for target in self.targets],
            "exclusions": [vars(exclusion) for exclusion in self.exclusions],
            "parameters": self.parameters,
            "prunable": self.prunable,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Scope:
        """Undo :meth:`to_json`.

        Raises:
            ValueError: the record is not of that form, or contradicts itself.
        """
        try:
            targets = tuple(_target_of(dict(each)) for each in record["targets"])
            exclusions = tuple(
                Exclusion(str(e["name"]), int(e["entries"]), str(e["reason"])) for e in record["exclusions"]
            )
            scope = cls(targets, exclusions, int(record["parameters"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no scope: {type(error).__name__} {error}") from error
        if scope.prunable != record.get("prunable") or len(scope._by_name) != len(targets):
            raise ValueError("its counts contradict its targets")
        return scope

    def describe(self) -> str:
        """One line per target and per exclusion."""
        lines = [
            f"  prune  {t.name}  {'x'.join(map(str, t.shape))}  {t.kind}  {t.prunable} entries"
            + (f", {len(t.padding_rows)} padding row(s) never pruned" if t.padding_rows else "")
            + (f", tied to {', '.join(t.tied_to)}" if t.tied_to else "")
            for t in self.targets
        ]
        lines += [f"  leave  {e.name}  {e.entries} entries: {e.reason}" for e in self.exclusions]
        return "\n".join(lines)


def _target_of(record: dict[str, Any]) -> Target:
    """A target from JSON, its numbers checked.

    Raises:
        ValueError: a number is not allowed.
    """
    shape, padding = tuple(map(int, record["shape"])), tuple(map(int, record["padding_rows"]))
    if record["kind"] not in KINDS or not shape or min(shape) < 1 or not set(padding) <= set(range(shape[0])):
        raise ValueError(f"{record['name']} is no target: kind {record['kind']}, shape {shape}, padding rows {padding}")
    target = Target(str(record["name"]), record["kind"], shape, padding, tuple(map(str, record["tied_to"])))
    if target.prunable != record["prunable"]:
        raise ValueError(f"{target.name} has {target.prunable} prunable entries, not {record['prunable']}")
    return target


def _owners(model: nn.Module) -> dict[str, tuple[nn.Module, str, nn.Module | None, nn.Parameter]]:
    """Qualified name -> (owning module, local name, parent of the owner, parameter), duplicates included."""
    modules = dict(model.named_modules(remove_duplicate=False))
    owners = {}
    for prefix, module in modules.items():
        parent = modules.get(prefix.rpartition(".")[0]) if prefix else None
        for local, parameter in module._parameters.items():
            if parameter is not None:
                owners[f"{prefix}.{local}" if prefix else local] = (module, local, parent, parameter)
    return owners


def _is_bias(name: str) -> bool:
    parts = name.split(".")
    return any(part == "bias" or part.startswith("bias_") or part.endswith("_bias") for part in parts)


def _classify(name: str, module: nn.Module, local: str, parameter: nn.Parameter) -> tuple[str | None, str]:
    """(kind, "") or (None, reason) for a parameter."""
    if not parameter.requires_grad:
        return None, "frozen (does not require a gradient)"
    if isinstance(module, _NORMS) or "norm" in type(module).__name__.lower():
        return None, "normalisation"
    if _is_bias(name):
        return None, "bias"
    if isinstance(module, nn.Embedding):
        return "embedding", ""
    if parameter.dim() < 2 or parameter.numel() == max(parameter.shape) and not isinstance(module, nn.Linear):
        return None, "vector or scalar"
    if isinstance(module, _CONVOLUTIONS):
        return "conv", ""
    return ("recurrent", "") if isinstance(module, _RECURRENT) else ("linear", "")


def find_scope(
    model: nn.Module,
    *,
    scope: str = "embedding",
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    padding: PaddingRule | None = None,
) -> Scope:
    """Find the targets of a model.

    Args:
        model: any module; RecBole's or not.
        scope: ``embedding`` (the embedding tables where the model has any, else its weight matrices),
            ``linear`` (every weight matrix, convolution and recurrent weight) or ``all``.
        include: shell patterns over names; if given, only matching tensors stay targets.
        exclude: shell patterns over names that are left out.
        padding: rule for rows that never count.

    Returns:
        the scope; it may be empty, see :meth:`Scope.require_targets`.

    Raises:
        ConfigError: a pattern matches no parameter of the model.
    """
    padding = padding or PaddingRule()
    include, exclude = list(include), list(exclude)
    owners = _owners(model)
    for key, patterns in (("prune_include", include), ("prune_exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in owners):
                raise ConfigError(f"{key}: the pattern {pattern!r} matches no parameter; there are {', '.join(owners)}")
    candidates: dict[int, Target] = {}
    exclusions: list[Exclusion] = []
    seen: set[int] = set()
    for name, (module, local, parent, parameter) in owners.items():
        if id(parameter) in seen:
            if id(parameter) in candidates:
                first = candidates[id(parameter)]
                if isinstance(module, nn.Embedding) and not first.padding_rows:  # a table is one under all its names
                    first = replace(first, kind="embedding", padding_rows=padding.rows(name, module, parent))
                candidates[id(parameter)] = replace(first, tied_to=(*first.tied_to, name))
            continue
        seen.add(id(parameter))
        kind, reason = _classify(name, module, local, parameter)
        if kind is None:
            exclusions.append(Exclusion(name, parameter.numel(), reason))
        else:
            rows = padding.rows(name, module, parent)
            candidates[id(parameter)] = Target(name, kind, tuple(parameter.shape), rows)
    has_tables = any(target.kind == "embedding" for target in candidates.values())
    targets = []
    for target in candidates.values():
        reason = _out_of_scope(target, scope, has_tables, include, exclude)
        if reason:
            exclusions.append(Exclusion(target.name, prod(target.shape), reason))
        else:
            targets.append(target)
    unique = {id(parameter): parameter for _, _, _, parameter in owners.values()}
    trainable = sum(parameter.numel() for parameter in unique.values() if parameter.requires_grad)
    return Scope(tuple(targets), tuple(exclusions), parameters=trainable)


def _out_of_scope(target: Target, scope: str, has_tables: bool, include: list[str], exclude: list[str]) -> str:
    """The reason why a candidate is no target, or an empty string."""
    names = (target.name, *target.tied_to)
    if include and not any(fnmatchcase(name, pattern) for name in names for pattern in include):
        return "not in prune_include"
    if any(fnmatchcase(name, pattern) for name in names for pattern in exclude):
        return "in prune_exclude"
    if scope == "embedding" and has_tables and target.kind != "embedding":
        return f"{target.kind} weight, prune_scope is embedding"
    if scope == "linear" and target.kind == "embedding":
        return "embedding table, prune_scope is linear"
    if target.prunable == 0:
        return "only padding"
    return ""
