"""Recommendations from synthetic artifacts, against a plain ranking of all scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_prune import cli
from recbole_prune.artifact import write_artifact
from recbole_prune.artifact.encoding import encode
from recbole_prune.artifact.files import Seen
from recbole_prune.commands import recommend as command
from recbole_prune.errors import ArtifactError, ConfigError
from recbole_prune.serving import Recommender, ranking, recommend
from recbole_prune.sparse import dense_top_k
from recbole_prune.sparse.compiling import available

USERS, ITEMS, WIDTH = 30, 100, 8


def make_artifact(
    folder: Path,
    seed: int = 0,
    sparsity: float = 0.8,
    users: list[str] | None = None,
    scale: float = 1.0,
    item_rows: int = ITEMS,
    values: str = "fp32",
    serving: bool = True,
    each: int | None = None,
) -> Path:
    """An artifact of random pruned tables with small whole values, so that many scores tie."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, rows in (("user", USERS), ("item", item_rows)):
        live = random.random((rows, WIDTH)) >= sparsity
        if each is not None:  # equally many live entries in every row but the padding
            live = random.permuted(np.broadcast_to(np.arange(WIDTH) < each, live.shape), axis=1)
            live[0] = True
        table = np.where(live, random.integers(-2, 3, (rows, WIDTH)), 0).astype(np.float32)
        tensors[f"{name}_embedding.weight"] = encode(table, live, values)
    pairs = random.integers(0, [[USERS], [ITEMS]], (2, 200))
    write_artifact(
        folder,
        tensors=tensors,
        users=users or ["[PAD]", *(f"u{number}" for number in range(1, USERS))],
        items=["[PAD]", *(f"i{number}" for number in range(1, ITEMS))],
        seen=Seen.from_pairs(pairs[0], pairs[1], USERS),
        tables=list(tensors),
        document={
            "model": "BPR",
            "serving": {"user": "user_embedding.weight", "item": "item_embedding.weight", "scale": scale}
            if serving
            else None,
            "serving_reason": None if serving else "the scores are not dot products",
        },
    )
    return folder


def plain_ranking(recommender: Recommender, user: int, k: int, exclude_seen: bool, scale: float = 1.0) -> list:
    """The same lists by sorting everything."""
    artifact = recommender._artifact
    tables = [artifact.tensor(f"{name}_embedding.weight").astype(np.float64) for name in ("user", "item")]
    scores = np.zeros(ITEMS)
    for column in range(tables[0].shape[1]):  # products are added in the order of the coordinates
        scores += scale * tables[0][user, column] * tables[1][:ITEMS, column]
    scores = scores.astype(np.float32)
    excluded = set(artifact.seen.of(user).tolist()) if exclude_seen else set()
    order = sorted((-float(score), item) for item, score in enumerate(scores) if item and item not in excluded)
    return [(artifact.items[item], -score) for score, item in order[:k]]


@pytest.fixture(scope="module")
def recommender(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    return Recommender.from_artifact(make_artifact(tmp_path_factory.mktemp("served") / "artifact"))


@settings(max_examples=60, deadline=None)
@given(
    users=st.lists(st.integers(1, USERS - 1), max_size=12),
    k=st.integers(1, ITEMS - 1),
    exclude_seen=st.booleans(),
    with_numba=st.booleans(),
)
def test_lists_equal_a_full_sort_with_and_without_numba(
    recommender: Recommender, users: list[int], k: int, exclude_seen: bool, with_numba: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in (ranking, dense_top_k):
            patch.setattr(module, "pays", lambda seconds: with_numba)
        patch.setattr(dense_top_k, "_USERS_TO_SEARCH", 0)
        found = recommender.recommend([f"u{user}" for user in users], k, exclude_seen)
    assert found == [plain_ranking(recommender, user, k, exclude_seen) for user in users]


VARIANTS = (
    {"scale": -2.5}, {"item_rows": ITEMS + 7}, {"sparsity": 1.0}, {"values": "int8"}, {"values": "int4"},
    {"values": "int4", "sparsity": 0.0}, {"each": 1}, {"each": 1, "values": "int4"}, {"each": 0},
)  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pays", [True, False])
def test_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: dict, pays: bool) -> None:
    for module in (ranking, dense_top_k):
        monkeypatch.setattr(module, "pays", lambda seconds: pays)
    monkeypatch.setattr(dense_top_k, "_USERS_TO_SEARCH", 0)
    recommender = Recommender.from_artifact(make_artifact(tmp_path / "artifact", **variant))
    if "each" in variant:
        assert {tensor.encoding for tensor in recommender._artifact.tensors.values()} == {"fixed"}
    found = recommender.recommend([f"u{user}" for user in range(1, USERS)], 20)
    scale = variant.get("scale", 1.0)
    assert found == [plain_ranking(recommender, user, 20, True, scale) for user in range(1, USERS)]


def test_ties_go_to_the_smaller_id_also_for_equal_rows_far_apart(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    users = random.standard_normal((4, 64)).astype(np.float32)
    items = np.repeat(random.standard_normal((1, 64)), 1001, axis=0).astype(np.float32)
    write_artifact(
        tmp_path / "artifact",
        tensors={"u": encode(users), "i": encode(items)},
        users=["[PAD]", "a", "b", "c"],
        items=["[PAD]", *map(str, range(1, 1001))],
        seen=Seen.from_pairs(np.array([1]), np.array([2]), 4),
        document={"serving": {"user": "u", "item": "i", "scale": 1.0}, "serving_reason": None},
    )
    lists = Recommender.from_artifact(tmp_path / "artifact").recommend(["a", "b", "c"], 5)
    assert [[item for item, _ in items] for items in lists] == [list("13456"), list("12345"), list("12345")]


def test_padding_and_seen_items_never_appear(recommender: Recommender) -> None:
    every = [f"u{user}" for user in range(1, USERS)]
    for user, items in zip(every, recommender.recommend(every, ITEMS - 1)):
        consumed = {f"i{item}" for item in recommender._artifact.seen.of(int(user[1:]))}
        listed = [item for item, _ in items]
        assert "[PAD]" not in listed and not consumed & set(listed)
        assert len(listed) == ITEMS - 1 - len(consumed)


def test_unknown_users_are_named_with_near_matches(recommender: Recommender) -> None:
    with pytest.raises(ArtifactError, match=r"unknown user 'u1O' \(did you mean 'u1', '\w+', '\w+'\?\)$"):
        recommender.recommend(["u3", "u1O"])
    with pytest.raises(ArtifactError, match=r"unknown users 'xyz'; 'abc'$"):
        recommender.recommend(["xyz", "abc", "xyz"])
    with pytest.raises(ArtifactError, match="and 2 more"):
        recommender.recommend([f"?{number}" for number in range(7)])
    with pytest.raises(ArtifactError, match="PAD"):
        recommender.recommend(["[PAD]"])
    with pytest.raises(ArtifactError, match="must be a list of tokens"):
        recommender.recommend("u1")  # type: ignore[arg-type]
    assert recommender.recommend([]) == []


def test_near_matches_among_many_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recommender = Recommender.from_artifact(make_artifact(tmp_path / "artifact"))
    monkeypatch.setattr(recommend, "_MANY_TOKENS", 5)
    with pytest.raises(ArtifactError, match="did you mean .*'u12'"):
        recommender.recommend(["u12x"])


@pytest.mark.parametrize("k", [0, -1, ITEMS, 2.5, True, "3"])
def test_k_out_of_range(recommender: Recommender, k: object) -> None:
    with pytest.raises(ArtifactError, match=f"k={k} is not allowed: it must be a whole number from 1 to {ITEMS - 1}"):
        recommender.recommend(["u1"], k)  # type: ignore[arg-type]


def test_a_model_without_dot_product_says_why(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact", serving=False)
    with pytest.raises(ArtifactError, match="cannot recommend without RecBole: the scores are not dot products"):
        Recommender.from_artifact(folder)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_artifact(tmp_path / "artifact", users=["[PAD]", "é 1", "196", *(f"u{n}" for n in range(3, USERS))])
    assert command.main([f"--artifact={folder}", "--users=196,é 1", "--k=3"]) == 0
    table = capsys.readouterr().out.splitlines()
    expected = Recommender.from_artifact(folder).recommend(["196", "é 1"], 3)
    assert table[0].split() == ["user", "rank", "item", "score"] and len(table) == 7
    assert [line.split()[-2] for line in table[1:]] == [item for items in expected for item, _ in items]
    assert command.main([f"--artifact={folder}", "--users=196", "--k=2", "--format=json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document[0]["user"] == "196"
    assert [(entry["item"], entry["score"]) for entry in document[0]["items"]] == expected[0][:2]
    command.main([f"--artifact={folder}", "--users=196", f"--k={ITEMS - 1}", "--exclude_seen=False"])
    assert len(capsys.readouterr().out.splitlines()) == ITEMS
    with pytest.raises(ConfigError, match="one of --users=196,186 and --users_file=FILE is needed"):
        command.main([f"--artifact={folder}"])


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (None, ["matrix products", "slower"]),
        ("Numba needs NumPy 2.4 or less", ["matrix products", "slower", "numba is installed", "NumPy 2.4 or less"]),
    ],
)
def test_without_a_working_numba_lists_are_the_same_and_the_user_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reason: str | None, words: list[str]
) -> None:
    """Numba is missing, or cannot be imported; nothing is configured to show a log."""
    command = ["recommend", f"--artifact={make_artifact(tmp_path / 'artifact')}", "--users=u1,u2", "--k=5"]
    assert cli.main(command) == 0
    expected = capsys.readouterr().out
    if reason:
        (tmp_path / "stub" / "numba").mkdir(parents=True)
        (tmp_path / "stub" / "numba" / "__init__.py").write_text(f"raise ImportError({reason!r})\n")
    hidden = "" if reason else "sys.modules['numba'] = None; "
    program = (
        f"import sys; {hidden}from recbole_prune import cli; from recbole_prune.sparse import compiling; "
        f"compiling._LOADING_SECONDS = 0; sys.exit(cli.main({command!r}))"
    )
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'stub'}{os.pathsep}{root}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
    assert [done.stderr.count(word) for word in words] == [1] * len(words), done.stderr


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_few_users_are_not_worth_loading_numba(tmp_path: Path) -> None:
    """Loading it takes longer than all of their lists; a second process in a row gives the same ones."""
    words = ["recommend", f"--artifact={make_artifact(tmp_path / 'artifact')}", "--users=u1,u2", "--k=5"]
    program = f"import sys; from recbole_prune import cli; cli.main({words!r}); print('numba' in sys.modules)"
    root = Path(__file__).resolve().parents[1]
    results = [
        subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert results[0].stdout == results[1].stdout and not results[0].stderr
    lines = results[0].stdout.splitlines()
    assert lines[-1] == "False" and len(lines) == 12


def test_many_users_or_a_few_again_and_again_are_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work: list[float] = []
    monkeypatch.setattr(ranking, "pays", lambda seconds: bool(work.append(seconds)))
    recommender = Recommender.from_artifact(make_artifact(tmp_path / "artifact"))
    for users in (["u1"], ["u1"], [f"u{number}" for number in range(1, USERS)]):
        recommender.recommend(users, 3)
    assert work[0] > work[1] and work[2] == pytest.approx(work[1] * (USERS - 1))  # the table is decoded only once
    monkeypatch.setattr(ranking, "pays", lambda seconds: True)
    recommender.recommend(["u1"], 3)
    made = vars(recommender._ranking)
    assert ("_lists" in made) == ("_item_table" not in made) == available()


@pytest.mark.slow
def test_serving_needs_neither_torch_nor_recbole_nor_pandas(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact")
    program = (
        "import sys\n"
        "for name in ('torch', 'recbole', 'pandas', 'scipy', 'yaml'): sys.modules[name] = None\n"
        "from recbole_prune.serving import Recommender\n"
        f"print(len(Recommender.from_artifact({str(folder)!r}).recommend(['u1'], 4)[0]))\n"
        "from recbole_prune import cli\n"
        f"sys.exit(cli.main(['recommend', '--artifact={folder}', '--users=u1', '--k=2']))\n"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "4" and len(done.stdout.splitlines()) == 4
