"""The checked settings of a run: values in force, what the user said, and which combinations are impossible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from recbole_prune.config import schema
from recbole_prune.config.near import did_you_mean
from recbole_prune.config.teachers import check_teachers
from recbole_prune.config.usage import COUNTS_WITH, idle_with, is_used
from recbole_prune.errors import ConfigError

# methods that have other values of distill_parity than most
_PARITIES = {"dcd": ("corrected", "kds")}
# a key that must not be above another one, where both are used
_NOT_ABOVE = (
    ("distill_drawn", "distill_student_length"),
    ("distill_interesting", "distill_student_length"),
    ("distill_interesting", "distill_list_length"),
    ("distill_item_interesting", "distill_list_length"),
)
# methods that draw with replacement, so as many as they like of any list
_WITH_REPLACEMENT = ("cd", "unkd")
_SCHEDULE = ("prune_target_sparsity", "prune_rate", "prune_rounds")


class Settings(Mapping[str, Any]):
    """Read-only settings of this package, by attribute or by name.

    Attributes:
        explicit: names that the user set, not counting what a recipe sets.
    """

    __slots__ = ("_values", "explicit")
    _values: dict[str, Any]
    explicit: frozenset[str]

    def __init__(self, values: Mapping[str, Any], explicit: frozenset[str] = frozenset()) -> None:
        object.__setattr__(self, "_values", dict(values))
        object.__setattr__(self, "explicit", explicit)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self._values:
            raise AttributeError(f"no setting {name!r}{did_you_mean(schema.suggest(name))}")
        return self._values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"settings are read-only, {name} cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"settings are read-only, {name} cannot be removed")

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Settings({self._values!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Settings, (self._values, self.explicit))


@dataclass(frozen=True)
class HostFacts:
    """What the combination rules must know of RecBole's side.

    Attributes:
        epochs: RecBole's ``epochs``.
        model: name of the model.
        own_l2: whether the model has an L2 weight of its own.
    """

    epochs: Any
    model: str
    own_l2: bool


def settle(user: Mapping[str, Any], recipe: Mapping[str, Any], host: HostFacts) -> tuple[Settings, list[str]]:
    """Check and complete the settings of this package.

    Args:
        user: raw values by key, from the user's files, dict and command line.
        recipe: raw values by key, from the recipe.
        host: facts of RecBole's side.

    Returns:
        The settings in force, and warnings about settings without effect.

    Raises:
        ConfigError: a value is not allowed, or two values cannot go together.
    """
    said = {name: schema.check(name, value) for name, value in user.items()}
    advised = {name: schema.check(name, value) for name, value in recipe.items() if name not in said}
    values = defaults({**advised, **said}.get("pruner"), {**advised, **said}.get("distiller"))
    base = dict(values)
    values.update(advised)
    values.update(said)
    if "prune_select" in said and "recipe_notice" not in said:
        # a recipe's notice speaks of the recipe's own selection
        values["recipe_notice"] = None
    warnings = _settle_unused(values, base, said) + _settle_idle(values, base, said)
    _settle_schedule(values, base, said, advised)
    _settle_rewind(values, said, host)
    warnings += _settle_training(values, said, host)
    if is_used("distill_teacher", values):
        check_teachers(values)
    else:
        _check_no_teacher(values, {**advised, **said})
    _check_states(values)
    _check_not_above(values)
    _check_parity(values)
    _check_equal_rows(values, {**advised, **said})
    _check_export(values)
    return Settings(values, frozenset(said)), warnings


def defaults(pruner: str | None = None, distiller: str | None = None) -> dict[str, Any]:
    """Defaults of every key, below them those of the pruner and the distiller (None: the default ones)."""
    keys = schema.known_keys()
    names = {"pruner": pruner or keys["pruner"].default, "distiller": distiller or keys["distiller"].default}
    found = {name: key.default for name, key in keys.items()}
    for method in names.items():
        found.update({name: key.methods[method] for name, key in keys.items() if method in key.methods})
    return {**found, **names}


def rounds_planned(values: Mapping[str, Any]) -> int | None:
    """Tickets beside the dense one; None where that follows from the model (a target reached in steps of a rate)."""
    if is_used("prune_rounds", values):
        once_more = is_used("prune_teach_last", values) and values.get("prune_teach_last", True)
        return values["prune_rounds"] + int(once_more) if values["prune_rounds"] else None
    return 1 if is_used("prune_target_sparsity", values) else 0


def _settle_unused(values: dict[str, Any], base: Mapping[str, Any], said: Mapping[str, Any]) -> list[str]:
    """Set what the pruner does not use to its default, so that it is neither checked nor hashed."""
    unused = [name for name in values if not is_used(name, values)]
    values.update({name: base[name] for name in unused})
    return [f"{name} has no effect {_with_methods(name, values)}" for name in unused if name in said]


def _settle_idle(values: dict[str, Any], base: Mapping[str, Any], said: Mapping[str, Any]) -> list[str]:
    """The same of keys that the method uses with another value of a second key only."""
    warnings = []
    for name in COUNTS_WITH:
        other = idle_with(name, values)
        if other is not None:
            values[name] = base[name]
            warnings += [f"{name} has no effect with {other}={values[other]}"] if name in said else []
    return warnings


def _with_methods(name: str, values: Mapping[str, Any]) -> str:
    """With which methods a key has no effect: those of the kinds that have a use for it."""
    kinds = schema.known_keys()[name].kinds
    shown = [f"with --{kind}={values[kind]}" if values[kind] else f"without --{kind}" for kind in kinds]
    return " and ".join(shown)


def _settle_schedule(
    values: dict[str, Any], base: Mapping[str, Any], said: Mapping[str, Any], advised: Mapping[str, Any]
) -> None:
    """Two of target, rate and rounds fix a schedule; what the user says goes before what the recipe says."""
    if not is_used("prune_rate", values):
        return
    kept = [name for name in _SCHEDULE if said.get(name) is not None]
    if len(kept) == 3:
        shown = ", ".join(f"{name}={values[name]}" for name in _SCHEDULE)
        raise ConfigError(
            f"{shown} say too much, two of them fix the schedule: keep prune_target_sparsity and prune_rounds (equal "
            "ratios that end at the target), prune_target_sparsity and prune_rate (steps of that rate, the last one "
            "shortened), or prune_rate and prune_rounds"
        )
    for name in _SCHEDULE:
        if len(kept) < 2 and advised.get(name) is not None:
            kept.append(name)
    for name in _SCHEDULE:
        if name not in kept:
            values[name] = base[name]
    if values["prune_target_sparsity"] is not None and "prune_rounds" not in kept:
        values["prune_rounds"] = None
    if values["prune_parity"] == "official":
        _check_official(values)


def _check_official(values: Mapping[str, Any]) -> None:
    if values["prune_allocation"] == "row":
        raise ConfigError(
            "prune_parity=official and prune_allocation=row cannot go together: the official rule has one threshold "
            "for many rows; set prune_parity=exact, or prune_allocation=global or tensor"
        )
    for name in ("prune_target_sparsity", "prune_min_per_row"):
        if values[name]:
            raise ConfigError(
                f"prune_parity=official and {name}={values[name]} cannot go together: the official rule removes "
                f"floor(rate * live) + 1 entries and all ties, so it meets neither a target nor a minimum per row "
                f"exactly; set prune_parity=exact or leave {name} out"
            )


def _settle_rewind(values: dict[str, Any], said: Mapping[str, Any], host: HostFacts) -> None:
    if not is_used("prune_rewind", values):
        return
    rewind, epoch = values["prune_rewind"], values["prune_rewind_epoch"]
    if rewind != "late":
        if said.get("prune_rewind_epoch") is not None:
            raise ConfigError(
                f"prune_rewind_epoch={epoch} goes only with prune_rewind=late, but prune_rewind={rewind}: "
                "add --prune_rewind=late or leave prune_rewind_epoch out"
            )
        values["prune_rewind_epoch"] = None
    elif epoch is None:
        raise ConfigError(
            "prune_rewind=late needs prune_rewind_epoch, the epoch of the dense training to rewind to: "
            f"an int with 1 <= prune_rewind_epoch < epochs={host.epochs}"
        )
    else:
        _check_below_epochs("prune_rewind_epoch", epoch, host)
        _check_below_round("prune_rewind_epoch", values)


def _check_below_epochs(name: str, value: int, host: HostFacts) -> None:
    # RecBole itself answers for an epochs that is no number
    if isinstance(host.epochs, int) and value >= host.epochs:
        raise ConfigError(f"{name}={value} is not allowed: it must be below epochs={host.epochs}")


def _check_below_round(name: str, values: Mapping[str, Any]) -> None:
    """A ticket of its own number of epochs counts them from the start of the dense training."""
    most = values["prune_round_epochs"] if is_used("prune_round_epochs", values) else None
    if most is not None and values[name] >= most:
        raise ConfigError(f"{name}={values[name]} is not allowed: it must be below prune_round_epochs={most}")


def _settle_training(values: dict[str, Any], said: Mapping[str, Any], host: HostFacts) -> list[str]:
    warnings = []
    if values["prune_lr_warmup"]:
        _check_below_epochs("prune_lr_warmup", values["prune_lr_warmup"], host)
        _check_below_round("prune_lr_warmup", values)
    elif values["prune_rewind"] == "lr" and values["prune_lr_schedule"] == "constant":
        warnings.append(
            "prune_rewind=lr equals prune_rewind=none while the learning rate is constant: "
            "set prune_lr_schedule or prune_lr_warmup"
        )
    if values["prune_l2_weight"] and host.own_l2:
        values["prune_l2_weight"] = 0.0
        if "prune_l2_weight" in said:
            warnings.append(f"prune_l2_weight has no effect: {host.model} has an L2 weight of its own, set reg_weight")
    if values["prune_select"] == "test" and values["recipe_notice"] is None:
        warnings.append("prune_select=test: epochs and tickets are picked on the test data, so its figures leak")
    return warnings


def _check_no_teacher(values: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """A distiller that has no teacher is given none."""
    named = [name for name in said if name.startswith("distill_teacher") and said[name]]
    if values["distiller"] and named:
        shown = " and ".join(f"{name}={said[name]}" for name in named)
        raise ConfigError(
            f"{shown} cannot go with --distiller={values['distiller']}, which has no teacher: leave it out, or take a "
            "method that has one"
        )


def _check_states(values: Mapping[str, Any]) -> None:
    if values["distill_record_states"] == 1:
        raise ConfigError(
            "distill_record_states=1 is not allowed: the last state is the checkpoint of the best epoch, which every "
            "run keeps; it must be 0, or 2 or more (4 is usual)"
        )


def _check_not_above(values: Mapping[str, Any]) -> None:
    if values["distiller"] in _WITH_REPLACEMENT:
        return
    for name, other in _NOT_ABOVE:
        counts = is_used(name, values) and is_used(other, values) and idle_with(name, values) is None
        if counts and values[name] > values[other]:
            raise ConfigError(
                f"{name}={values[name]} is not allowed: it must be at most {other}={values[other]} with "
                f"--distiller={values['distiller']}"
            )


def _check_parity(values: Mapping[str, Any]) -> None:
    """Whose code there is to be equal to depends on the method."""
    allowed, parity = _PARITIES.get(values["distiller"], ("corrected", "official")), values["distill_parity"]
    if is_used("distill_parity", values) and parity not in allowed:
        raise ConfigError(
            f"distill_parity={parity} is not allowed with --distiller={values['distiller']}: it must be "
            f"{' or '.join(allowed)}"
        )


def _check_equal_rows(values: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """What leaves rows with different numbers of entries cannot go with prune_allocation=row."""
    if said.get("prune_allocation") != "row":
        return
    if is_used("prune_growth", values):
        raise ConfigError(
            f"prune_allocation=row cannot go with --pruner={values['pruner']}, whose masks move entries from one row "
            "to another: take imp, omp, magprune, random or static"
        )
    if not is_used("prune_allocation", values):
        return  # that it has no effect was said
    minimum = values["prune_min_per_row"] if is_used("prune_min_per_row", values) else None
    if minimum is not None:
        raise ConfigError(
            f"prune_allocation=row and prune_min_per_row={minimum} cannot go together: every row keeps equally many "
            "entries, at least one; leave prune_min_per_row out"
        )
    if is_used("prune_init", values) and values["prune_init"] != "exact":
        raise ConfigError(
            f"prune_allocation=row and prune_init={values['prune_init']} cannot go together: every row has equally "
            "many entries in columns of its own; set prune_init=exact"
        )


def _check_export(values: Mapping[str, Any]) -> None:
    ticket, rounds = values["export_ticket"], rounds_planned(values)
    if ticket is not None and rounds is not None and ticket > rounds:
        raise ConfigError(
            f"export_ticket={ticket} is not allowed: --pruner={values['pruner']} has tickets 0 to {rounds} here"
        )
