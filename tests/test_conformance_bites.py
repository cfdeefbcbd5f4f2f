"""The conformance tests themselves: a new method is in them unasked, and every broken promise fails the right check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import conformance
import pytest
import toys
from conformance import CHECKS, QUICK_MODEL, Subject, check_above_random, check_refusal

from recbole_prune.cli import main

Registered = Callable[[type], Subject]


@pytest.fixture
def registered(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registered]:
    """Registers a toy and gives it as the tests over the table would."""

    def subject(toy: type) -> Subject:
        method = toys.register(toy, monkeypatch, tmp_path / "package")
        return Subject(method, QUICK_MODEL, tiny_data, tmp_path, epochs=2)

    yield subject
    monkeypatch.undo()
    toys.forget_properties()


def test_a_method_is_added_by_a_class_a_property_file_and_a_line(
    registered: Registered, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = registered(toys.Honest)
    assert ("toy", QUICK_MODEL, "compact") in [case.values[:3] for case in conformance.cases() if not case.marks]
    assert main(["run", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--pruner=toy\n    A toy: random entries in a seeded order.\n    prune_rate=0.2" in shown
    assert "toy" in shown.partition("--pruner=none")[2].partition("--distiller")[0]
    for check in CHECKS:
        check(subject)
    assert f"{subject.whole.result['chosen']['sparsity']:.3f}" == "0.600"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("toy", "check"),
    [
        (toys.Miscounting, conformance.check_counts),
        (toys.Masked, conformance.check_kind_of_tickets),
        (toys.Unnested, conformance.check_nested),
        (toys.Leaky, conformance.check_pruned_entries_are_zero),
        (toys.Idle, conformance.check_training),
        (toys.Busy, conformance.check_training),
        (toys.Understating, conformance.check_forms),
        (toys.Dispensing, conformance.check_dense_model),
        (toys.Flattering, conformance.check_checkpoint),
        (toys.Unseeded, conformance.check_same_twice),
        (toys.DeafToTheSeed, conformance.check_another_seed),
        (toys.Forgetful, conformance.check_killed_and_resumed),
    ],
)
def test_a_broken_promise_fails_its_check(toy: type, check: Callable[[Subject], None], registered: Registered) -> None:
    subject = registered(toy)
    assert subject.refusal is None
    with pytest.raises(AssertionError):
        check(subject)


@pytest.mark.slow
def test_bad_choices_are_not_above_random(registered: Registered, tiny_data: Path, tmp_path: Path) -> None:
    registered(toys.Boastful)
    with pytest.raises(AssertionError):
        check_above_random("toy", tiny_data, tmp_path)


@pytest.mark.parametrize("toy", [toys.Choosy, toys.Late])
def test_a_refusal_is_listed_and_comes_before_any_training(toy: type, registered: Registered) -> None:
    subject = registered(toy)
    assert subject.refusal == "not today"
    with pytest.raises(AssertionError):
        check_refusal(subject)


def test_a_listed_refusal_is_no_failure(registered: Registered) -> None:
    check_refusal(registered(toys.Frank))
