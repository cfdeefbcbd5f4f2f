"""Compiled loops: compiled once for a machine, whatever becomes of the files; loaded only where that pays."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_prune.sparse import compiling, loop_cache
from recbole_prune.sparse.compiling import available, compile_loop

needs_numba = pytest.mark.skipif(not available(), reason="numba is not installed: nothing is compiled")

# calls every compiled loop of the package; prints for each how often it was found on the disk and how often compiled
CALLS = """
import json, os, sys
import numpy as np, torch
from recbole_prune.distillers.losses import listwise, soft_labels
from recbole_prune.sparse import best_products, compiling, inverted_lists, pair_kernels, pair_scores, product_kernel
from recbole_prune.sparse import row_kernels, row_loops, scan_kernel, search_kernel
from recbole_prune.sparse.compact import compact
from recbole_prune.sparse.inverted_lists import InvertedLists, Rows
from recbole_prune.sparse.rows import CompressedRows
from recbole_prune.sparse import graph_kernels, graph_products
from recbole_prune.data import used_ids_kernel
from recbole_prune.data.used_ids import UsedIds

def call():
    pairs = np.arange(3), np.arange(3)
    UsedIds(*pairs, 4, 4).contains(*pairs)
    csr = torch.eye(40).to_sparse_csr()
    csr = torch.sparse_csr_tensor(csr.crow_indices().int(), csr.col_indices().int(), csr.values(), csr.shape)
    graph_products.multiply(csr, None, 0.0, torch.ones(40, 8))
    graph_products.spread(csr, torch.arange(5), torch.ones(5, 8))
    graph_products.multiply_live(csr, torch.ones(40, 8), CompressedRows.of(torch.ones(40, 8) > 0))
    table = np.eye(40, 8, dtype=np.float32)
    nothing = np.zeros(41, np.int64), np.zeros(0, np.int64)
    InvertedLists(Rows.of(table), 8).top_k(Rows.of(table), 3, *nothing)
    inverted_lists.largest(table, 3)
    best_products.ProductSearch(table).top_k(best_products.Wanted(table, nothing[0][1:], nothing[0][1:], nothing[1]), 3)
    best_products.ranks_of_products(table, np.arange(40), table, np.ones((40, 3), np.int32))
    rows = Rows.of(table)
    pointers, columns, values = (torch.from_numpy(part.copy()) for part in rows)
    live = CompressedRows((40, 8), pointers, columns)
    ids, batch, whole = torch.arange(5), torch.zeros(5, 8), torch.zeros(40, 8)
    for name, *rest in (("scatter_rows", ids, batch), ("add_rows", ids, batch), ("expand", whole), ("gather", whole)):
        row_kernels.kernel(name, live, values, *rest)()
    vectors = torch.ones(5, 8, requires_grad=True)
    pair_scores.pair_scores(vectors, torch.ones(9, 8), torch.zeros(5, 6, dtype=torch.int64)).sum().backward()
    lists = torch.zeros(5, 6, dtype=torch.int32)
    listwise.sum_of_lists(vectors, torch.arange(5), torch.ones(9, 8), lists, 3).backward()
    listwise.plackett_luce(torch.ones(5, 3), torch.ones(5, 3))
    both = soft_labels.TwoLists(lists, torch.ones(5, 6), torch.ones(5, 3, dtype=torch.int32), torch.ones(5))
    soft_labels.sum_of_two_lists(torch.ones(5, 8), torch.ones(9, 8), ids, ids, both, 1.0, None)
    soft_labels.soft_list_cross_entropy(torch.ones(5, 3), torch.ones(5, 3), 1.0)

def counts():
    loops = {"scan": scan_kernel.scan, "largest": scan_kernel.largest, "best_products": search_kernel.best_products}
    loops["ranks_of_products"] = product_kernel.ranks_of_products
    loops.update({name: getattr(row_loops, name) for name in ("scatter_rows", "add_rows", "expand", "gather")})
    names = ("score", "add_gradients", "plackett_luce_rows", "sum_of_lists", "sum_of_two_lists", "soft_list_rows")
    loops.update({name: getattr(pair_kernels, name) for name in names})
    names = ("multiply", "multiply_live", "some_rows", "transpose")
    loops.update({name: getattr(graph_kernels, name) for name in names})
    loops["contains"] = used_ids_kernel.contains
    stats = {name: loop.stats for name, loop in loops.items()}
    return {name: [sum(s.cache_hits.values()), sum(s.cache_misses.values())] for name, s in stats.items()}
"""
ROWS = {"scatter_rows", "add_rows", "expand", "gather"}
PAIRS = {"score", "add_gradients", "plackett_luce_rows", "sum_of_lists", "sum_of_two_lists", "soft_list_rows"}
GRAPHS = {"multiply", "multiply_live", "some_rows", "transpose"}
LOOPS = {"scan", "largest", "best_products", "ranks_of_products", "contains", *ROWS, *PAIRS, *GRAPHS}


def run_program(code: str, cache_folder: Path, **environment: str) -> str:
    root = Path(__file__).resolve().parents[1]
    variables = {**os.environ, "PYTHONPATH": str(root), "NUMBA_CACHE_DIR": str(cache_folder), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@needs_numba
@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_second_process_compiles_nothing(tmp_path: Path) -> None:
    program = CALLS + "call(); print(json.dumps(counts()))"
    assert json.loads(run_program(program, tmp_path)) == {name: [0, 1] for name in LOOPS}
    files = files_in(tmp_path)
    assert len(files) == len(LOOPS)
    assert json.loads(run_program(program, tmp_path)) == {name: [1, 0] for name in LOOPS}
    assert files_in(tmp_path) == files


UNCOMPILED = """
import warnings
import numpy as np, torch
from recbole_prune.data.used_ids import UsedIds
from recbole_prune.sparse import compiling, graph_products
assert compiling.available()
warnings.simplefilter("error")
users, items = np.random.default_rng(0).integers(0, 1 << 20, (2, 100))
assert UsedIds(users, items, 1 << 20, 1 << 20).contains(users, items).all()
warnings.simplefilter("ignore")
csr = torch.eye(4).to_sparse_csr()
csr = torch.sparse_csr_tensor(csr.crow_indices().int(), csr.col_indices().int(), csr.values(), csr.shape)
assert torch.equal(graph_products.multiply(csr, None, 0.0, torch.ones(4, 5)), torch.ones(4, 5))
"""


@needs_numba
@pytest.mark.multiprocess
def test_loops_that_are_not_compiled_give_the_same(tmp_path: Path) -> None:
    run_program(UNCOMPILED, tmp_path, NUMBA_DISABLE_JIT="1")


# each process is forked where numba has begun its work, but knows no loop of ours
MANY = """
import os, numba, numpy
numba.njit(lambda: 1)()
for number in range(200):
    child = os.fork()
    if not child:
        try:
            import numpy as np
            from recbole_prune.sparse import scan_kernel
            from recbole_prune.sparse.inverted_lists import InvertedLists, Rows
            table = np.eye(40, 8, dtype=np.float32)
            nothing = np.zeros(41, np.int64), np.zeros(0, np.int64)
            found = InvertedLists(Rows.of(table), 8).top_k(Rows.of(table), 1, *nothing)
            hits = sum(scan_kernel.scan.stats.cache_hits.values())
            os._exit(0 if hits == (number > 0) and found.items[3, 0] == 3 else 3)
        except BaseException as error:
            print(number, repr(error), flush=True)
            os._exit(4)
    assert os.waitpid(child, 0)[1] == 0, number
"""


@needs_numba
@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_hundred_processes_in_a_row(tmp_path: Path) -> None:
    """They leave one file; numba's own cache grew with every process and then ended all further ones."""
    run_program(MANY, tmp_path)
    assert len(files_in(tmp_path)) == 1


# ---- a damaged, full or read-only cache ------------------------------------------------------------------------------


def total(values: Any) -> float:
    found = 0.0
    for value in values:
        found += value
    return found


class Kept:
    """A compiled loop with its file, and what it was compiled for."""

    def __init__(self) -> None:
        self.loop: Any = compile_loop(total)
        self.values = np.arange(5.0)

    def again(self) -> Any:
        """As another process would have it."""
        loop: Any = compile_loop(total)
        assert loop(self.values) == 10.0
        return loop

    @property
    def counts(self) -> tuple[int, int]:
        stats = self.again().stats
        return sum(stats.cache_hits.values()), sum(stats.cache_misses.values())


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    config = pytest.importorskip("numba.core.config", reason="numba is not installed: nothing is compiled")
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    loop_cache._warn.cache_clear()
    yield Kept()
    loop_cache._warn.cache_clear()


def the_file(tmp_path: Path) -> Path:
    [file] = [path for path in (tmp_path / "cache").rglob("*") if path.suffix == ".loop"]
    return file


def test_a_damaged_file_is_never_believed(kept: Kept, tmp_path: Path) -> None:
    """Flipped bits, files cut or grown: nothing of them is loaded, be it a pickle or machine code."""
    loop = kept.again()
    [signature] = loop.signatures
    file, random = the_file(tmp_path), np.random.default_rng(1)
    whole = file.read_bytes()
    assert loop._cache.load_overload(signature, loop.targetctx) is not None
    damaged = [b"", whole[:32], whole + b"\0", whole + whole]
    for place in random.integers(0, len(whole), 60).tolist():
        flipped = bytes([whole[place] ^ (1 << random.integers(8))])
        damaged += [whole[:place] + flipped + whole[place + 1 :], whole[:place]]
    for content in damaged:
        file.write_bytes(content)
        assert loop._cache.load_overload(signature, loop.targetctx) is None


def test_a_damaged_file_is_replaced(kept: Kept, tmp_path: Path) -> None:
    assert kept.counts == (0, 1) and kept.counts == (1, 0)
    file = the_file(tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    assert kept.counts == (0, 1) and kept.counts == (1, 0)
    file.unlink()
    file.mkdir()
    assert kept.counts == (0, 1)


def test_what_was_made_from_another_module_beside_it_is_not_taken(kept: Kept, tmp_path: Path) -> None:
    assert kept.counts == (0, 1) and kept.counts == (1, 0)
    (tmp_path / "beside.py").write_text("")
    before = loop_cache._stamp_of(str(tmp_path))
    loop_cache._stamp_of.cache_clear()
    (tmp_path / "beside.py").write_text("changed")
    assert loop_cache._stamp_of(str(tmp_path)) != before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_cache, "_stamp_of", lambda folder: before)
        assert kept.counts == (0, 1)
    assert kept.counts == (0, 1)


def test_code_of_another_function_version_or_signature_is_not_taken(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kept.counts == (0, 1)
    file = the_file(tmp_path)
    kept.values = np.arange(5)
    assert kept.counts == (0, 1)  # another signature has a file of its own
    [other] = {path for path in file.parent.iterdir() if path.suffix == ".loop"} - {file}
    file.write_bytes(other.read_bytes())
    kept.values = np.arange(5.0)
    assert kept.counts == (0, 1)
    monkeypatch.setattr("numba.__version__", "0.0")
    assert kept.counts == (0, 1)


@pytest.mark.parametrize("way", ["full", "no folder", "changed inside"])
def test_loops_work_without_a_place_on_the_disk(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if way == "full":
        monkeypatch.setattr(Path, "write_bytes", full)
    elif way == "no folder":
        monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    else:
        monkeypatch.delattr("numba.core.caching.FunctionCache")
    with caplog.at_level(logging.WARNING):
        assert kept.counts == (0, 1)
    [message] = caplog.messages
    assert "compiled loops cannot be kept" in message and "NUMBA_CACHE_DIR" in message and "\n" not in message
    assert way != "full" or "No space left on device" in message
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


# ---- whether they pay ------------------------------------------------------------------------------------------------


def test_loops_are_loaded_when_they_would_have_saved_what_that_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_njit", cache(lambda: None))
    monkeypatch.setattr(compiling, "_forgone_seconds", 0.0)
    monkeypatch.setattr(compiling, "_LOADING_SECONDS", 1.0)
    assert [compiling.pays(0.4) for _ in range(4)] == [False, False, True, True]
    compiling._forgone_seconds = 0.0
    assert not compiling.pays(0.4) and compiling.pays(2.0)
    compiling._forgone_seconds = 0.0
    assert not compiling.pays(0.0)
    compiling.available()
    assert compiling.pays(0.0)
