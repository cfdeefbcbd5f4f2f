"""Which keys count: those that the selected methods have a use for, some only with certain values of a second key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from recbole_prune.config import schema


class _Condition(NamedTuple):
    """With which values of a second key a key of a method counts.

    Attributes:
        key: the second one.
        allowed: values; empty for all but 0.
        method: the only distiller that this is said of; empty for all methods that use both keys.
    """

    key: str
    allowed: tuple[Any, ...] = ()
    method: str = ""

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether nothing is against the key; so it is where the method does not use the second one."""
        if self.method not in ("", values["distiller"]) or not is_used(self.key, values):
            return True
        return values[self.key] in self.allowed if self.allowed else values[self.key] != 0


_NOT_KDS = _Condition("distill_parity", ("corrected", "official"))
_CONSENSUS = _Condition("distill_weight", method="concf")
_BALANCE = _Condition("distill_head_weight", method="concf")
COUNTS_WITH: Mapping[str, tuple[_Condition, ...]] = {
    "distill_sharpness": (
        _Condition("distill_sample_interesting", (True,)),
        _Condition("distill_rule", ("exponential",)),
        _CONSENSUS,
    ),
    "export_int4_clip": (_Condition("export_values", ("int4",)),),
    "distill_record_states": (_Condition("prune_dense", (True,)),),
    "distill_refresh": (_NOT_KDS, _CONSENSUS),
    "distill_item_weight": (_NOT_KDS,),
    "distill_item_interesting": (_NOT_KDS,),
    **dict.fromkeys(("distill_balance_power", "distill_reference_epoch"), (_BALANCE,)),
    **dict.fromkeys(
        ("distill_window", "distill_steadiness", "distill_interesting", "distill_list_length", "distill_parity"),
        (_CONSENSUS,),
    ),
}


def is_used(name: str, values: Mapping[str, Any]) -> bool:
    """Whether the selected pruner or distiller has a use for the key."""
    key = schema.known_keys()[name]
    return any(key.used_by(kind, values[kind]) for kind in schema.METHOD_KINDS)


def idle_with(name: str, values: Mapping[str, Any]) -> str | None:
    """The second key with whose value the method has no use for a key of its own; None where it has one."""
    if not is_used(name, values):
        return None
    return next((needed.key for needed in COUNTS_WITH.get(name, ()) if not needed.holds(values)), None)
