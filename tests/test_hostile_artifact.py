"""Artifacts from somebody else: nothing but a success or one clear line comes out of any of them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
from hostile import arrays_of, clear_line, contents, forge, make, repair, use
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_prune import cli
from recbole_prune.artifact import encoding, files, read_artifact
from recbole_prune.artifact.files import Seen, ascending_in_rows, save_safetensors
from recbole_prune.artifact.tokens import Tokens, tokens_to_bytes
from recbole_prune.errors import ArtifactError, PruneError, printable
from recbole_prune.serving import Recommender, ranking, recommend
from recbole_prune.sparse import bipartite, dense_top_k

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return contents(make(tmp_path_factory.mktemp("hostile") / "artifact"))


@pytest.fixture
def folder(tmp_path: Path, intact: dict[str, bytes]) -> Path:
    (tmp_path / "artifact").mkdir()
    return repair(tmp_path / "artifact", intact)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled here."""
    for module in (ranking, dense_top_k, bipartite):
        monkeypatch.setattr(module, "pays", lambda seconds: False)
    monkeypatch.setattr(dense_top_k, "_USERS_TO_SEARCH", 0)


@pytest.fixture(params=[False, True])
def numba(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether sparse tables are scanned or multiplied; nothing may get as far as being scanned."""
    monkeypatch.setattr(ranking, "pays", lambda seconds: True)
    monkeypatch.setattr(ranking, "available", lambda: request.param)
    monkeypatch.setattr(ranking.InvertedLists, "top_k", lambda *args, **kwargs: pytest.fail("a kernel was reached"))


def refusal(folder: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        use(folder)
    assert clear_line(caught.value)
    return str(caught.value)


# ---- arrays ----------------------------------------------------------------------------------------------------------


def seen_bytes(indptr: Any, indices: Any) -> bytes:
    return save_safetensors({"indptr": np.asarray(indptr), "indices": np.asarray(indices)})


EMPTY = np.zeros(hostile.USERS + 1, np.uint8)
ONE = np.array([0, *[2] * hostile.USERS], np.uint8)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (seen_bytes(ONE, np.array([1, hostile.ITEMS], np.uint8)), "indices must be items from 1 to 19"),
        (seen_bytes(ONE, np.array([1, 2**62])), "indices must be items from 1 to 19"),
        (seen_bytes(ONE, np.array([-5, 1])), "indices must be items from 1 to 19, but go from -5"),
        (seen_bytes(ONE, np.array([0, 1], np.uint8)), "indices must be items from 1"),
        (seen_bytes(ONE, np.array([2, 1], np.uint8)), "must ascend"),
        (seen_bytes(ONE, np.array([2, 2], np.uint8)), "must ascend"),
        (seen_bytes(ONE, np.array([1.0, 2.0])), "indices must be a list of integers"),
        (seen_bytes(ONE, np.array([[1, 2]])), "indices must be a list of integers"),
        (seen_bytes(ONE, np.zeros(0, np.uint8)), "indptr must rise from 0 to 0"),
        (seen_bytes(EMPTY[1:], np.zeros(0, np.uint8)), "indptr has 12 entries where 13 are needed"),
        (seen_bytes([0, 9, 1, *[2] * 10], np.array([1, 2])), "indptr must rise"),
        (seen_bytes([-9, 1, 1, *[2] * 10], np.array([1, 2])), "indptr must rise"),
        (seen_bytes(EMPTY.astype(np.float32), np.zeros(0, np.uint8)), "indptr must be a list of integers"),
        (save_safetensors({"indptr": EMPTY}), "where indptr and indices are needed"),
    ],
)
def test_what_users_have_seen_is_checked_before_a_kernel_sees_it(
    folder: Path, numba: None, data: bytes, words: str
) -> None:
    message = refusal(forge(folder, seen=data))
    assert words in message and files.SEEN in message


def test_rows_that_ascend() -> None:
    pointers = np.array([0, 0, 2, 2, 5, 5], np.uint8)
    assert ascending_in_rows(np.array([3, 4, 0, 1, 2], np.uint8), pointers)
    assert not ascending_in_rows(np.array([3, 4, 0, 2, 2], np.uint8), pointers)
    assert not ascending_in_rows(np.array([4, 3, 5, 6, 7], np.uint8), pointers)
    assert ascending_in_rows(np.zeros(0), np.zeros(3, np.int64)) and ascending_in_rows(np.zeros(1), np.array([0, 1]))


def retable(folder: Path, name: str, table: np.ndarray, values: str = "fp32") -> Path:
    """Put another table in the place of a weight."""
    encoded = encoding.encode(table, table != 0, values)
    arrays = {key: array for key, array in arrays_of(folder).items() if not key.startswith(f"weights/{name}/")}
    arrays.update({f"weights/{name}/{part}": array for part, array in encoded.parts.items()})
    return forge(
        folder,
        lambda document: document["tensors"].update({name: encoded.describe()}),
        tensors=save_safetensors(arrays),
    )


@pytest.mark.parametrize(
    ("name", "table", "words"),
    [
        ("user", np.ones((hostile.USERS, 17), np.float32), "tensors.user has 17 columns"),
        ("user", np.eye(hostile.USERS, 9999, dtype=np.float32), "tensors.user has 9999 columns"),
        ("user", np.ones((hostile.USERS + 1, 16), np.float32), "tensors.user has 13 rows for 12 users"),
        ("item", np.ones((hostile.ITEMS - 1, 16), np.float32), "tensors.item has 19 rows for 20 items"),
        ("item", np.ones((hostile.ITEMS, 4, 4), np.float32), "tensors.item is no table of items"),
        ("item", np.ones((hostile.ITEMS, 16), np.int64), "tensors.item is no table of items"),
        ("user", np.full((hostile.USERS, 16), np.inf, np.float32), "leave the range of float32"),
        ("user", np.eye(hostile.USERS, 16, dtype=np.float32) * 3e38, "leave the range of float32"),
        ("item", np.eye(hostile.ITEMS, 16, dtype=np.float64) * 1e300, "leave the range of float32"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_tables_that_do_not_belong_together_are_refused(
    folder: Path, numba: None, name: str, table: np.ndarray, words: str
) -> None:
    assert words in refusal(retable(folder, name, table))


def positions(folder: Path, **changes: Any) -> Path:
    """Another number in the description of the user table, or other bytes for its parts."""
    arrays = arrays_of(folder)
    arrays.update({f"weights/user/{part}": changes.pop(part) for part in ("counts", "columns") if part in changes})
    return forge(folder, lambda document: document["tensors"]["user"].update(changes), tensors=save_safetensors(arrays))


def test_positions_of_live_entries_are_checked(folder: Path, numba: None, intact: dict[str, bytes]) -> None:
    arrays = arrays_of(folder)
    counts, columns = arrays["weights/user/counts"], arrays["weights/user/columns"]
    assert "positions do not describe" in refusal(positions(folder, counts=counts[::-1] | 3))
    repair(folder, intact)
    assert "must ascend" in refusal(positions(folder, columns=np.zeros_like(columns)))
    repair(folder, intact)
    assert "cannot have 17 and" in refusal(positions(folder, count_base=17))
    repair(folder, intact)
    assert "63 bits" in refusal(positions(folder, count_bits=63))
    repair(folder, intact)
    assert "columns must be uint8, but is int16" in refusal(positions(folder, columns=columns.astype(np.int16)))
    # 17 columns need five bits a number, of which half would be out of range
    wide = encoding.encode(np.eye(12, 17, dtype=np.float32), np.eye(12, 17) > 0)
    wide.parts["columns"][:] = 255
    with pytest.raises(ArtifactError, match="from 0 to at most 16"):
        wide.csr()


BILLION = 10**9


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [BILLION, 16], "kept": 0, "encoding": "rows", "count_base": 0, "count_bits": 0},
        {"shape": [BILLION, 0], "kept": 0, "encoding": "dense"},
        {"shape": [0, BILLION], "kept": 0, "encoding": "dense"},
        {"shape": [16, BILLION], "kept": 0, "encoding": "rows", "count_base": 0, "count_bits": 0},
        {"shape": [2**40] * 32, "kept": 0, "encoding": "rows", "count_base": 0, "count_bits": 0},
    ],
)
def test_a_billion_rows_in_no_bytes_are_refused_before_anything_is_allocated(folder: Path, changes: dict) -> None:
    empty = np.zeros(0, np.float32), np.zeros(0, np.uint8)
    arrays = {key: array for key, array in arrays_of(folder).items() if not key.startswith("weights/user/")}
    arrays["weights/user/values"] = empty[0]
    if changes["encoding"] == "rows":
        arrays.update({f"weights/user/{part}": empty[1] for part in ("counts", "columns")})
    description = {"dtype": "float32", **changes}
    forge(folder, lambda document: document["tensors"].update(user=description), tensors=save_safetensors(arrays))
    assert "tensors.user.shape" in refusal(folder) and "too large" in refusal(folder)


@pytest.mark.parametrize(
    ("part", "dtype", "words"),
    [
        ("weights/bits/bitmap", np.int8, "tensors.bits: bitmap must be uint8, but is int8"),
        ("weights/bits/values", np.float64, "tensors.bits: values must be float32, but is float64"),
        ("weights/full/scales", np.float32, "tensors.full: scales must be float16, but is float32"),
        ("weights/full/values", np.int16, "tensors.full: values must be int8, but is int16"),
        ("vectors/cache/values", np.int32, "vectors.cache: values must be float32, but is int32"),
    ],
)
def test_parts_of_another_type_are_refused(folder: Path, part: str, dtype: type, words: str) -> None:
    arrays = arrays_of(folder)
    with np.errstate(all="ignore"):
        forge(folder, tensors=save_safetensors({**arrays, part: arrays[part].astype(dtype)}))
    assert words in refusal(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda bits: bits[:-1], "graph: edges must be 5 uint8, a bit for each of 36 pairs"),
        (lambda bits: np.concatenate([bits, bits]), "edges must be 5 uint8"),
        (lambda bits: bits[None], "but are uint8 of shape [1, 5]"),
        (lambda bits: bits.astype(np.int8), "but are int8 of shape [5]"),
        (lambda bits: ~bits, "graph.edges must be the "),
        (lambda bits: bits[:0], "but are uint8 of shape [0]"),
    ],
)
def test_bits_of_edges_are_checked(folder: Path, change: Any, words: str) -> None:
    arrays = arrays_of(folder)
    bits = arrays["graph/edges"]
    assert words in refusal(forge(folder, tensors=save_safetensors({**arrays, "graph/edges": change(bits)})))


def test_bits_behind_the_last_pair_are_refused(folder: Path) -> None:
    arrays = arrays_of(folder)
    arrays["graph/edges"][-1] |= 0x80
    assert "graph: edges has bits behind" in refusal(forge(folder, tensors=save_safetensors(arrays)))


def test_more_products_than_an_artifact_of_its_bytes_asks_for_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recbole_prune.artifact._MOST_PRODUCTS", 0)
    use(folder)  # few are no harm
    monkeypatch.setattr("recbole_prune.artifact._SMALL", 0)
    assert "graph asks for " in refusal(folder)


def test_arrays_of_another_graph_are_refused(folder: Path, intact: dict[str, bytes]) -> None:
    arrays = arrays_of(folder)
    bits = arrays.pop("graph/edges")
    assert "graph needs edges, found nothing" in refusal(forge(folder, tensors=save_safetensors(arrays)))
    repair(folder, intact)
    arrays = {**arrays, "graph/edges": bits, "graph/more": bits}
    assert "graph needs edges, found edges, more" in refusal(forge(folder, tensors=save_safetensors(arrays)))


@pytest.mark.filterwarnings("error")
def test_vectors_that_grow_beyond_all_numbers_are_refused(folder: Path) -> None:
    retable(folder, "near_users", np.full((hostile.USERS, 5), 3e38, np.float32))
    forge(folder, lambda d: d["serving"].update(user="far_users", item="far_items"))
    assert "ticket.json: graph: a propagated value of the" in refusal(folder)
    with pytest.raises(ArtifactError, match="those of user 'u1' leave the range of float32"):
        Recommender.from_artifact(folder).recommend(["u1"])


def test_propagating_is_refused_before_anything_out_of_proportion_is_allocated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = read_artifact(folder)
    others = [*artifact.tensors.values(), artifact.vectors["cache"]]
    stored = sum(file["bytes"] for file in artifact.info["files"].values())
    monkeypatch.setattr("recbole_prune.artifact._SMALL", 0)
    for more, refused in ((20_000, False), (1_000, True)):
        most = sum(tensor.working_nbytes for tensor in others) + more
        monkeypatch.setattr("recbole_prune.artifact._MOST_GROWTH", most / stored)
        if refused:
            assert "graph.shape [12, 5] is too large" in refusal(folder)
        else:
            use(folder)


def test_arrays_that_nobody_speaks_of_are_refused(folder: Path) -> None:
    arrays = {**arrays_of(folder), "weights/\x1b[31mnew/values": np.zeros(3)}
    assert r"holds weights/\x1b[31mnew/values, of which" in refusal(forge(folder, tensors=save_safetensors(arrays)))


def test_a_header_that_claims_to_be_endless_is_refused(folder: Path) -> None:
    data = (folder / files.TENSORS).read_bytes()
    refusal(forge(folder, tensors=(2**62).to_bytes(8, "little") + data[8:]))
    refusal(forge(folder, tensors=b""))


# ---- fields ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["tensors"]["user"].update(kept="@digits"), "tensors.user.kept is a number of 5000 digits"),
        (lambda d: d["serving"].update(scale="@nan"), "serving.scale is NaN: it must be a finite number"),
        (lambda d: d["serving"].update(scale="@overflow"), "serving.scale is inf: it must be a finite number"),
        (lambda d: d["settings"].update(a=[1, {"b": "@infinity"}]), "settings.a[1].b is -Infinity"),
        (lambda d: d.update(extra="@deep"), "is nested more than 32 times"),
        (lambda d: d.update(extra="@deeper"), ""),
        (lambda d: d["tensors"]["user"].update(kept=True), "tensors.user.kept must be a whole number"),
        (lambda d: d["tensors"]["user"].update(kept=1.0), "tensors.user.kept must be a whole number"),
        (lambda d: d["tensors"]["user"].pop("kept"), "tensors.user.kept must be a whole number from 0"),
        (lambda d: d["tensors"]["user"].update(shape=5), "tensors.user.shape must be a list"),
        (lambda d: d["tensors"]["user"].update(shape=[-1, 16]), "tensors.user.shape must be a list"),
        (lambda d: d["tensors"]["user"].update(dtype="object"), "tensors.user.dtype must be one of float64"),
        (lambda d: d["tensors"]["user"].update(encoding=[]), "tensors.user.encoding must be one of dense"),
        (lambda d: d["tensors"].update(user=None), "tensors.user must be an object, but is None"),
        (lambda d: d["tensors"].update({"\x1b[2Jx\ny": 1}), r"tensors.\x1b[2Jx\ny must be an object"),
        (lambda d: d["tensors"].update({"x" * 10**6: 1}), "x... must be an object"),
        (lambda d: d["tensors"]["tied"].update(same_as="nobody"), "tensors.tied.same_as must be one of"),
        (lambda d: d["tensors"]["tied"].update(same_as=["full"]), "tensors.tied.same_as must be text"),
        (lambda d: d.update(vectors=[]), "vectors must be an object, but is []"),
        (lambda d: d.update(graph=[]), "graph must be an object, but is []"),
        (lambda d: d.pop("graph"), "holds graph/edges, of which"),
        (lambda d: d.update(tensors={}), "graph.users.table must be one of nothing, but is 'near_users'"),
        (lambda d: d.update(tensors={"tied": {"same_as": "tied"}}), "tensors.tied.same_as must be one of nothing"),
        (lambda d: d["graph"].update(layers=0), "graph.layers must be a whole number from 1 to 64, but is 0"),
        (
            lambda d: d["graph"].update(layers=10**9),
            "graph.layers must be a whole number from 0 to 64, but is 10000000",
        ),
        (lambda d: d["graph"].update(layers="3"), "graph.layers must be a whole number from 0 to 64, but is '3'"),
        (lambda d: d["graph"].update(layers=True), "graph.layers must be a whole number"),
        (lambda d: d["graph"].pop("layers"), "graph.layers must be a whole number from 0 to 64, but is missing"),
        (lambda d: d["graph"].update(edges=5), "graph.edges must be the "),
        (lambda d: d["graph"].update(edges=10**9), "graph.edges must be a whole number from 0 to "),
        (lambda d: d["graph"].update(edges="all"), "graph.edges must be a whole number from 0 to "),
        (lambda d: d["graph"].update(users="near_users"), "graph.users must be an object, but is 'near_users'"),
        (lambda d: d["graph"]["users"].update(table="nobody"), "graph.users.table must be one of user, item"),
        (lambda d: d["graph"]["users"].update(table=["user"]), "graph.users.table must be one of user, item"),
        (lambda d: d["graph"]["users"].update(table="bits"), "graph.users.table: bits is no table of 12 users"),
        (lambda d: d["graph"]["users"].update(table="steps"), "graph.users.table: steps is no table of 12 users"),
        (lambda d: d["graph"]["items"].update(table="user"), "graph.items.table: user is no table of 20 items"),
        (lambda d: d["graph"]["items"].update(table="item"), "graph: near_users has 5 columns, item 16"),
        (lambda d: d["graph"]["items"].update(vectors=1), "graph.items.vectors must be text, but is 1"),
        (lambda d: d["graph"]["items"].update(vectors="cache"), "graph.items.vectors must be a name that nothing else"),
        (lambda d: d["graph"]["items"].update(vectors="tied"), "graph.items.vectors must be a name that nothing else"),
        (lambda d: d["graph"]["items"].update(vectors="far_users"), "vectors must be a name that nothing else has"),
        (lambda d: d["files"][files.SEEN].update(bytes="9"), f"files.{files.SEEN}.bytes must be a whole number"),
        (lambda d: d["files"][files.SEEN].update(sha256=None), f"files.{files.SEEN}.sha256 must be text"),
        (lambda d: d.update(files={"../x": {}}), "files must be an object of ticket.safetensors"),
        (lambda d: d.update(serving=[1]), "serving must be an object, but is [1]"),
        (lambda d: d["serving"].update(user=7), "serving.user must be one of user, item"),
        (lambda d: d["serving"].update(item="nobody"), "serving.item must be one of user, item"),
        (lambda d: d["serving"].update(scale="1"), "serving.scale must be a number, but is '1'"),
        (lambda d: d["serving"].pop("scale"), "serving.scale must be a number, but is missing"),
        (lambda d: d["serving"].update(scale=1e308), "serving.scale 1e+308 scores leave the range"),
        (
            lambda d: d.update(serving=None, serving_reason="\x1b]0;x\x07no\nrecbole-prune: ok"),
            r"no\nrecbole-prune: ok",
        ),
    ],
)
def test_a_malformed_field_is_named_with_its_file(folder: Path, change: Change, words: str) -> None:
    message = refusal(forge(folder, change))
    assert words in message and str(folder) in message


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_in_any_field_is_a_success_or_one_clear_line(
    folder: Path, intact: dict[str, bytes], data: st.DataObject
) -> None:
    repair(folder, intact)
    plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    odd = st.sampled_from(hostile.ODD_VALUES)
    nested = st.recursive(plain | odd, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
    way = data.draw(st.sampled_from(hostile.fields_of(folder)))
    value = data.draw(nested)
    forge(folder, lambda document: hostile.change_field(document, way, value))
    try:
        use(folder)
    except PruneError as error:
        if not clear_line(error):
            pytest.fail(str(error))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_thousand_mutations_neither_crash_nor_hang_nor_take_a_gigabyte() -> None:
    """In a process of its own, where a kernel that writes outside of its arrays would be a signal."""
    done = subprocess.run(
        [sys.executable, hostile.__file__, "1000", "0"],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["faults"] == []
    assert result["success"] + result["refused"] == 1000 and min(result["success"], result["refused"]) > 50
    assert result["peak_bytes"] < 2**30


def test_the_search_for_faults_finds_them(
    folder: Path, intact: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutations reach what is checked: without the checks of a field or an array, something else comes out."""
    monkeypatch.setattr(Seen, "from_bytes", lambda data, path, users, items: Seen(**files.load_arrays(data, path)))
    monkeypatch.setattr(encoding.EncodedTensor, "_check", lambda self: None)
    found = set()
    for number in range(40):
        repair(folder, intact)
        hostile.mutate(folder, random.Random(number))
        try:
            use(folder)
        except PruneError:
            continue
        except Exception as error:
            found.add(type(error).__name__)
    assert found


# ---- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "at least one token"),
        (b"[PAD]\na", "a line end after each"),
        (b"[PAD]\n\xff\n", "token 1 is not valid UTF-8"),
        (b"[PAD]\na\\b\n", "token 1 has a backslash that escapes nothing"),
        (b"[PAD]\n\\\\\\\n", "token 1 has a backslash"),
        (b"[PAD]\n" * 3, "indptr has 13 entries where 4 are needed"),
    ],
)
def test_damaged_tokens_are_named(folder: Path, data: bytes, words: str) -> None:
    message = refusal(forge(folder, users=data))
    assert words in message


def test_tokens_of_many_users_are_found_alike(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(tokens_to_bytes(["[PAD]", "a", "", "\\n", "日本", "b\nc", "[PAD]", "a"]), Path("tokens"))
    assert [tokens.id_of(token) for token in ("a", "", "\\n", "日本", "b\nc", "[PAD]", "n")] == [1, 2, 3, 4, 5, 6, None]
    assert tokens.alike("[P", "c", 9) == ["[PAD]", "b\nc"] and tokens.alike("", "", 3) == ["a", "", "\\n"]
    assert tokens[-2:] == ["[PAD]", "a"] and tokens[-1] == "a"
    with pytest.raises(IndexError):
        tokens[8]
    recommender = Recommender.from_artifact(folder)
    users = ["u3", "u1"]
    one_by_one = recommender._internal_ids(users)
    monkeypatch.setattr(recommend, "_FEW_USERS", 0)
    assert recommender._internal_ids(users) == one_by_one == [3, 1]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_fifty_million_tokens_end_soon(folder: Path) -> None:
    """Empty ones that nobody has, and then a consistent artifact of so many users; an alarm ends what takes minutes."""
    forge(folder, users=b"\n" * 50_000_000)
    program = (
        "import signal, sys, hostile; signal.alarm(120)\n"
        "from pathlib import Path; from recbole_prune.errors import PruneError\n"
        "try: hostile.use(Path(sys.argv[1]))\n"
        "except PruneError as error: print(error)\n"
        "assert hostile.peak_bytes() < 2**30"
    )
    command = [sys.executable, "-c", program, str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(hostile.__file__).parent), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, "where 50000001 are needed" in done.stdout) == (0, True), done.stderr
    tensors = save_safetensors({key: array for key, array in arrays_of(folder).items() if key != "graph/edges"})
    nothing = seen_bytes(np.zeros(50_000_001, np.uint8), np.zeros(0, np.uint8))
    forge(folder, lambda document: document.pop("graph"), seen=nothing, tensors=tensors)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, "has 12 rows for 50000000 users" in done.stdout) == (0, True), done.stderr


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [files.TICKET, *files.CONTENT])
def test_links_pipes_folders_and_devices_are_not_opened(folder: Path, tmp_path: Path, name: str) -> None:
    inside = (folder / name).read_bytes()
    (tmp_path / "outside").write_bytes(inside)
    put: list[Callable[[Path], object]] = [
        lambda path: path.symlink_to(tmp_path / "outside"),
        lambda path: path.symlink_to("/dev/zero"),
        os.mkfifo,
        Path.mkdir,
    ]
    for place in put:
        (folder / name).unlink()
        place(folder / name)
        message = refusal(folder)
        assert str(folder / name) in message and ("is a symbolic link" in message or "is no regular file" in message)
        (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()
        (folder / name).write_bytes(inside)
    use(folder)


def test_an_endless_ticket_is_not_read(folder: Path, intact: dict[str, bytes]) -> None:
    os.truncate(folder / files.TICKET, 1 << 40)  # a file with a hole takes no disk
    assert f"has {1 << 40} bytes where at most" in refusal(folder)
    repair(folder, intact)
    os.truncate(folder / files.TENSORS, 1 << 40)
    assert f"is too long: {1 << 40} bytes" in refusal(folder)


# ---- the terminal ----------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_printable_is_one_line_without_control_characters(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1 and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    shown.encode("utf-8")
    assert printable(shown) == shown


def test_printable_by_hand() -> None:
    assert printable("a\x1b[31m\n\r\t\x7f\x9b\u2028\u202e\ud800") == r"a\x1b[31m\n\r\t\x7f\x9b\u2028\u202e\ud800"
    assert printable("日本 é 🎬 a\\b") == "日本 é 🎬 a\\b"
    assert str(PruneError("x\x1b\n" * 5000)).startswith(r"x\x1b\nx\x1b\n") and len(str(PruneError("x" * 10**7))) < 5000


@pytest.mark.parametrize("format_name", ["table", "json"])
def test_tokens_reach_the_terminal_escaped(folder: Path, capsys: pytest.CaptureFixture[str], format_name: str) -> None:
    items = ["[PAD]", *(f"\x1b]0;{number}\x07\nu1  1  free\r\x9b2J\x7f\u202e" for number in range(1, hostile.ITEMS))]
    users = ["[PAD]", "\x1b[31mu", *(f"u{number}" for number in range(2, hostile.USERS))]
    forge(folder, items=tokens_to_bytes(items), users=tokens_to_bytes(users))
    command = ["recommend", f"--artifact={folder}", "--users=\x1b[31mu", "--k=2", f"--format={format_name}"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.split("\n"))
    assert format_name == "json" or len(printed.splitlines()) == 3
    if format_name == "json":
        assert {entry["item"] for entry in json.loads(printed)[0]["items"]} <= set(items)
    assert cli.main(["recommend", f"--artifact={folder}", "--users=\x1b[31mv"]) == 2
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1 and shown[:-1].isprintable() and "did you mean" in shown


def test_measured_files_reach_the_terminal_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = (Path(__file__).parent / "figures" / "train-bpr.json").read_text(encoding="utf-8")
    (tmp_path / "forged.json").write_text(measured.replace('"plain"', '"plain\\u001b[2J\\u009b"'), encoding="utf-8")
    assert cli.main(["bench", "table", str(tmp_path / "forged.json")]) == 0
    printed = capsys.readouterr().out
    assert r"plain\x1b[2J\x9b" in printed and all(line.isprintable() for line in printed.split("\n"))


def test_reading_leaves_the_folder_alone(folder: Path) -> None:
    before = contents(folder)
    read_artifact(folder)
    assert contents(folder) == before
