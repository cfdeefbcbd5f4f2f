"""No search for cyclic garbage while much is made that stays."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from recbole_prune import garbage


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("forever", [False, True])
def test_searches_go_on_afterwards_also_after_an_error(
    forever: bool, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "_process_is_ours", ours)

    def fail() -> None:
        with garbage.not_searched(forever):
            assert not gc.isenabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert gc.isenabled() and bool(gc.get_freeze_count()) == (forever and ours)


def test_what_was_off_stays_off() -> None:
    gc.disable()
    with garbage.not_searched():
        pass
    assert not gc.isenabled()


@pytest.mark.parametrize(("words", "frozen"), [("", True), ("sys.argv[1:]", False)])
def test_a_run_searches_while_it_trains(words: str, frozen: bool) -> None:
    """In a process of its own all that was imported is left out; a program that calls us loses nothing."""
    code = (
        f"import gc, sys; from recbole_prune import cli; assert cli.main({words}) == 0; "
        f"assert gc.isenabled() and (gc.get_freeze_count() > 100_000) == {frozen}"
    )
    asked = ["run", "--dry_run=True", "--model=BPR", "--dataset=ml-100k"]
    subprocess.run([sys.executable, "-c", code, *asked], check=True, capture_output=True)
