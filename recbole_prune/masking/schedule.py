"""Sparsity schedules: how many entries stay live after each round."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, cos, floor, pi

from recbole_prune.errors import ConfigError

DEFAULT_ROUNDS = 10


def removed_exact(rate: float, live: int) -> int:
    """floor(rate * live), with the rate read as the decimal number the user wrote (0.29 of 100 is 29)."""
    return floor(Fraction(repr(float(rate))) * live)


def removed_official(rate: float, live: int) -> int:
    """floor(rate * live) + 1 with a truncated double product, as in the LTH-MRS code (ties come on top)."""
    return int(rate * live) + 1


def kept_counts(
    prunable: int,
    *,
    rate: float,
    rounds: int | None = None,
    target: float | None = None,
    current: int | None = None,
    official: bool = False,
    of_initial: bool = False,
) -> list[int]:
    """Live entries of ticket 0, 1, 2, ...

    Without a target every round removes ``rate`` of what is live. A target with ``rounds`` takes geometric
    steps that end exactly there, ``prunable - floor(target * prunable)``; a target without ``rounds`` takes
    steps of ``rate`` and shortens the last one. With ``of_initial`` rates are shares of all entries, so that rounds
    add up (``floor(k * rate * prunable)`` are gone after k) and steps to a target are equal.

    Args:
        prunable: entries that count.
        rate: fraction of the live entries removed per round, in (0, 1).
        rounds: number of prunes.
        target: sparsity in (0, 1) to end at.
        current: live entries before the first round, ``prunable`` by default.
        official: the count rule of the LTH-MRS code; without ties this is what its rule keeps.
        of_initial: rates are shares of ``prunable``, not of what is live.

    Raises:
        ConfigError: the target is not above the current sparsity, or nothing is left to remove.
    """
    counts = [prunable if current is None else current]
    if target is None and of_initial:
        counts += [counts[0] - removed_exact(rate, k * prunable) for k in range(1, (rounds or DEFAULT_ROUNDS) + 1)]
    elif target is None:
        for _ in range(rounds or DEFAULT_ROUNDS):
            live = counts[-1]
            counts.append(live - (removed_official(rate, live) if official else removed_exact(rate, live)))
    else:
        if official:
            raise ConfigError("prune_parity=official has no exact end: leave prune_target_sparsity out, set prune_rate")
        goal = prunable - removed_exact(target, prunable)
        if goal >= counts[0]:
            raise ConfigError(
                f"prune_target_sparsity={target} keeps {goal} entries, but only {counts[0]} are live now "
                f"(sparsity {1 - counts[0] / prunable:.4f}): choose a higher target"
            )
        if of_initial:
            counts += _linear(
                counts[0], goal, rounds or ceil((counts[0] - goal) / max(1, removed_exact(rate, prunable)))
            )
        else:
            counts += _geometric(counts[0], goal, rounds) if rounds else _stepwise(counts[0], goal, rate)
    if any(after >= before for before, after in zip(counts, counts[1:])) or counts[-1] < 1:
        raise ConfigError(
            f"the schedule {', '.join(map(str, counts))} does not remove at least one entry per round "
            f"or leaves none: change prune_rate, prune_rounds or prune_target_sparsity"
        )
    return counts


def _geometric(live: int, goal: int, rounds: int) -> list[int]:
    ratio = goal / live
    return [round(live * ratio ** (step / rounds)) for step in range(1, rounds)] + [goal]


def _linear(live: int, goal: int, rounds: int) -> list[int]:
    return [live - (live - goal) * step // rounds for step in range(1, rounds + 1)]


def _stepwise(live: int, goal: int, rate: float) -> list[int]:
    counts = []
    while live > goal:
        step = removed_exact(rate, live)
        live = max(goal, live - step) if step else goal
        counts.append(live)
    return counts


def update_ratio(initial: float, floor: float, step: int, total: int) -> float:
    """Fraction of the live entries that a prune-and-grow update at optimizer step ``step`` of ``total`` replaces.

    Cosine annealing from ``initial`` to ``floor`` (official DSL code with floor 0.005; RigL, arXiv 1911.11134, with 0).
    """
    return floor + (initial - floor) * (1 + cos(pi * min(1.0, step / total))) / 2
