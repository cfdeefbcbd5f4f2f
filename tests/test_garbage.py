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
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("forever", [False, True])
def test_searches_go_on_afterwards_also_after_an_error(forever: bool) -> None:
    def fail() -> None:
        with garbage.not_searched(forever):
            assert not gc.isenabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert gc.isenabled() and bool(gc.get_freeze_count()) == forever


def test_what_was_off_stays_off() -> None:
    gc.disable()
    with garbage.not_searched():
        pass
    assert not gc.isenabled()


def test_a_run_searches_while_it_trains() -> None:
    code = (
        "import gc; from recbole_prune import cli; assert cli.main(['run', '--dry_run=True', '--model=BPR', "
        "'--dataset=ml-100k']) == 0; assert gc.isenabled() and gc.get_freeze_count() > 100_000"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
