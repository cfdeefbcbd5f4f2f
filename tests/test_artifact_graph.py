"""Artifacts that hold the graph of a model in place of its vectors, whichever is smaller."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow_but
from recbole.utils import get_model
from test_artifact import snapshot
from test_export import Built, interactions_of, tiny
from zoo import DATASET, config_for

from recbole_prune import cli, run_recbole_prune
from recbole_prune.anatomy.propagation import GRAPHS, fixed_graph_of
from recbole_prune.artifact import Artifact, forms, read_artifact, vectors
from recbole_prune.artifact.encoding import EncodedTensor
from recbole_prune.artifact.files import Seen
from recbole_prune.artifact.graph import PropagatedTable, StoredGraph, store_graph
from recbole_prune.config import schema
from recbole_prune.errors import ArtifactError, ConfigError
from recbole_prune.run.rebuild import load_ticket
from recbole_prune.scoring.probe import disagreement
from recbole_prune.serving import Recommender, ranking
from recbole_prune.sparse.bipartite import mean_of_layers

K = 10


def lists_of(folder: Path) -> tuple[list[list[int]], np.ndarray]:
    """Items and scores of every user."""
    recommender = Recommender.from_artifact(folder)
    found = recommender.top_k(np.arange(1, len(recommender._artifact.users)), K)
    return found.items.tolist(), found.scores


@torch.no_grad()
def model_lists(built: Built, model: Any = None) -> tuple[list[list[int]], np.ndarray]:
    """The same by RecBole's ``full_sort_predict`` and the interactions in the data's file."""
    model = (model or built.model).eval()
    users, items = (list(built.dataset.field2id_token[f"{kind}_id"]) for kind in ("user", "item"))
    numbers = {token: number for number, token in enumerate(items)}
    consumed = interactions_of(built.config)
    rows = torch.arange(1, len(users))
    scores = model.full_sort_predict({model.USER_ID: rows}).view(len(rows), -1).numpy()
    scores[:, 0] = -np.inf
    for row, user in enumerate(users[1:]):
        scores[row, [numbers[item] for item in consumed[user]]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return order.tolist(), np.take_along_axis(scores, order, axis=1)


def assert_same(found: tuple[list[list[int]], np.ndarray], expected: tuple[list[list[int]], np.ndarray]) -> None:
    """The same items at every place, but among scores that rounding may order otherwise."""
    scores, wanted = found[1], expected[1]
    assert np.allclose(scores, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
    close = 4e-6 * np.abs(wanted).max()
    for mine, other, row in zip(found[0], expected[0], wanted):
        for place in range(K):
            assert mine[place] == other[place] or np.abs(np.delete(row, place) - row[place]).min() < close


def own_model(tiny_data: Path) -> dict[str, Any]:
    """Settings of a subclass of LightGCN, for which RecBole reads those of no model."""
    return {**config_for("LightGCN", tiny_data), "n_layers": 2, "reg_weight": 1e-5, "require_pow": False}


def graph_of(artifact: Artifact) -> dict[str, Any]:
    return dict(artifact.info["graph"])


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "layers"), [("LightGCN", 1), ("LightGCN", 3), ("SGL", 3), ("NCL", 2)])
def test_the_graph_recommends_as_vectors_and_as_recbole_do(
    model: str, layers: int, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built = tiny(model, tiny_data, n_layers=layers)
    with caplog.at_level(logging.INFO, "recbole_prune"):
        info = built.export(tmp_path / "graph")
    built.export(tmp_path / "vectors", vectors=True)
    expected = model_lists(built)
    assert_same(lists_of(tmp_path / "graph"), expected)
    assert_same(lists_of(tmp_path / "graph"), lists_of(tmp_path / "vectors"))
    artifact = read_artifact(tmp_path / "graph")
    pairs = len(artifact.seen.indices)
    assert graph_of(artifact) == {
        "layers": layers,
        "users": {"table": "user_embedding.weight", "vectors": "restore_user_e"},
        "items": {"table": "item_embedding.weight", "vectors": "restore_item_e"},
        "edges": 3999,
        "bytes": -(-pairs // 8),
    }
    assert pairs == len(built.dataset.inter_feat) == 4855, "some are left for validation and test"
    width, choice = built.config["embedding_size"], info["propagation"]
    sizes = {"graph_bytes": -(-pairs // 8), "vectors_bytes": 4 * width * (len(artifact.users) + len(artifact.items))}
    assert choice == {"stored": "graph", **sizes, "reason": None}
    assert f"take {sizes['vectors_bytes']} bytes; the graph takes {sizes['graph_bytes']} bytes" in caplog.text
    assert info["format_version"] == 3 and info["serving_reason"] is None and not info["vectors"]
    assert read_artifact(tmp_path / "vectors").info["format_version"] == 1
    assert not {"graph", "propagation"} & set(read_artifact(tmp_path / "vectors").info)
    assert disagreement(built.scores(load_ticket(tmp_path / "graph")), built.scores()) == 0


@pytest.mark.parametrize("values", ["fp16", "int8", "int4"])
def test_rounded_tables_are_propagated_as_the_model_under_them(values: str, tiny_data: Path, tmp_path: Path) -> None:
    built = tiny("LightGCN", tiny_data)
    info = built.export(tmp_path / "artifact", values=values)
    assert info["propagation"]["stored"] == "graph" and info["effect"]["max_score_difference"] > 0
    expected = model_lists(built, load_ticket(tmp_path / "artifact"))
    assert_same(lists_of(tmp_path / "artifact"), expected)
    assert not np.allclose(expected[1], model_lists(built)[1], atol=1e-6), "nothing was rounded"


@pytest.mark.parametrize("values", ["fp32", "int8"])
@pytest.mark.parametrize("form", ["factors", "codes", "hashed"])
def test_a_table_in_a_small_form_is_propagated(form: str, values: str, tiny_data: Path, tmp_path: Path) -> None:
    built, random = tiny("LightGCN", tiny_data), np.random.default_rng(1)
    rows, width = built.model.item_embedding.weight.shape
    small = [random.standard_normal(shape).astype(np.float32) for shape in ((rows, 2), (2, width), (9, width))]
    make: dict[str, Callable[[], forms.TableForm]] = {
        "factors": lambda: forms.factors(small[0], small[1]),
        "codes": lambda: forms.codes(random.integers(0, 9, (rows, 2)).astype(np.uint8), small[2]),
        "hashed": lambda: forms.hashed(small[2], random.standard_normal((-(-rows // 9), width)).astype("f4"), rows, 5),
    }
    table = make[form]()
    built.model.item_embedding.weight.data = torch.from_numpy(table.decode())
    masks = {"user_embedding.weight": built.masks["user_embedding.weight"]}
    info = built.export(tmp_path / "artifact", values=values, masks=masks, forms={"item_embedding.weight": table})
    assert info["tensors"]["item_embedding.weight"]["encoding"] == form
    assert info["propagation"]["stored"] == "graph" and info["format_version"] == 3
    assert_same(lists_of(tmp_path / "artifact"), model_lists(built, load_ticket(tmp_path / "artifact")))


def test_a_table_under_two_names_is_propagated(tiny_data: Path, tmp_path: Path) -> None:
    class Tied(get_model("LightGCN")):  # type: ignore[misc]
        def __init__(self, config: Any, dataset: Any) -> None:
            super().__init__(config, dataset)
            self.output = self.item_embedding

    built = Built(Tied, DATASET, 0.5, **own_model(tiny_data))
    built.masks["output.weight"] = built.masks.pop("item_embedding.weight")
    info = built.export(tmp_path / "artifact")
    assert info["tensors"]["item_embedding.weight"] == {"same_as": "output.weight"}
    assert info["propagation"]["stored"] == "graph"
    assert_same(lists_of(tmp_path / "artifact"), model_lists(built))


def test_every_model_with_a_fixed_graph_is_in_the_table(tiny_data: Path) -> None:
    for model in GRAPHS:
        fixed = fixed_graph_of(tiny(model, tiny_data).model)
        assert fixed is not None and fixed.matrix.shape[0] == 121 + 241
    assert (
        fixed_graph_of(tiny("NGCF", tiny_data).model) is None and fixed_graph_of(tiny("BPR", tiny_data).model) is None
    )


# ---- what is chosen --------------------------------------------------------------------------------------------------


@pytest.fixture
def dense_data(tmp_path: Path) -> Path:
    """60 users who lack one of 60 items: 443 bytes of bits, and 122 numbers for each column of the vectors."""
    folder = tmp_path / "data" / "full"
    folder.mkdir(parents=True)
    lines = [f"u{user}\ti{item}\t1" for user in range(60) for item in range(60) if user != item]
    head = "user_id:token\titem_id:token\ttimestamp:float"
    (folder / "full.inter").write_text("\n".join([head, *lines]) + "\n")
    return folder.parent


@pytest.mark.parametrize(
    ("values", "width", "stored", "size"),
    [("fp32", 1, "graph", 488), ("fp16", 1, "vectors", 244), ("fp16", 2, "graph", 488), ("int8", 1, "vectors", 366)],
)
def test_the_smaller_one_is_stored(
    dense_data: Path, tmp_path: Path, values: str, width: int, stored: str, size: int
) -> None:
    built = Built("LightGCN", "full", 0.0, data_path=str(dense_data), embedding_size=width)
    info = built.export(tmp_path / "artifact", values=values)
    choice = {"stored": stored, "graph_bytes": 443, "vectors_bytes": size, "reason": None}
    assert info["propagation"] == choice
    assert ("graph" in info) == (stored == "graph") and bool(info["vectors"]) == (stored == "vectors")
    assert info["serving"]["user"] == "restore_user_e"
    found = Recommender.from_artifact(tmp_path / "artifact").recommend(["u3"], 5, exclude_seen=False)
    assert len(found[0]) == 5


class Weighted(get_model("LightGCN")):  # type: ignore[misc]
    """Layers have weights of their own."""

    def forward(self) -> Any:
        users, items = super().forward()
        return users + self.user_embedding.weight, items + self.item_embedding.weight


class Doubled(get_model("LightGCN")):  # type: ignore[misc]
    """Edges weigh twice as much."""

    def get_norm_adj_mat(self) -> Any:
        return (super().get_norm_adj_mat() * 2).coalesce()


class SideBySide(get_model("LightGCN")):  # type: ignore[misc]
    """Vectors are wider than the tables."""

    def forward(self) -> Any:
        return tuple(torch.cat([table, table], dim=1) for table in super().forward())


class Bent(get_model("LightGCN")):  # type: ignore[misc]
    """An edge between two users."""

    def get_norm_adj_mat(self) -> Any:
        matrix = super().get_norm_adj_mat().coalesce()
        more = torch.sparse_coo_tensor(torch.tensor([[1, 2], [2, 1]]), torch.tensor([0.5, 0.5]), matrix.shape)
        return (matrix + more).coalesce()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Weighted, "the vectors of Weighted are not means of its layers"),
        (Doubled, "the weights in that of Doubled do not follow from degrees"),
        (SideBySide, "the vectors of SideBySide are not means of its layers"),
        (Bent, "an edge in that of Bent is no pair"),
    ],
)
def test_other_graphs_are_told_apart_and_vectors_stored(
    model: type, words: str, tiny_data: Path, tmp_path: Path
) -> None:
    built = Built(model, DATASET, 0.5, **own_model(tiny_data))
    info = built.export(tmp_path / "artifact")
    assert info["propagation"]["stored"] == "vectors" and words in info["propagation"]["reason"]
    assert "graph" not in info and info["propagation"]["graph_bytes"] is None
    assert_same(lists_of(tmp_path / "artifact"), model_lists(built))


def test_an_edge_outside_of_what_was_seen(tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    built = tiny("LightGCN", tiny_data)
    user, item = (int(built.dataset.inter_feat[f"{kind}_id"][0]) for kind in ("user", "item"))
    owner = np.repeat(np.arange(len(built.seen.indptr) - 1), np.diff(built.seen.indptr.astype(np.int64)))
    rest = ~((owner == user) & (built.seen.indices == item))
    seen = Seen.from_pairs(owner[rest], built.seen.indices[rest], len(built.seen.indptr) - 1)
    with caplog.at_level(logging.INFO, "recbole_prune"):
        info = built.export(tmp_path / "artifact", seen=seen)
    assert info["propagation"]["stored"] == "vectors" and "graph" not in info
    assert "an edge in that of LightGCN is no pair of a user and an item that the user has seen" in caplog.text
    assert (item in Recommender.from_artifact(tmp_path / "artifact").top_k(np.array([user]), 240).items) is True


def test_more_layers_than_are_read_are_not_stored(tiny_data: Path, tmp_path: Path) -> None:
    info = tiny("LightGCN", tiny_data, n_layers=65).export(tmp_path / "artifact")
    assert (
        info["propagation"]["stored"] == "vectors" and "LightGCN propagates 65 times" in info["propagation"]["reason"]
    )
    assert tiny("LightGCN", tiny_data, n_layers=0).export(tmp_path / "none")["serving"]["user"].endswith(".weight")


@pytest.mark.parametrize(("model", "word"), [("LightGCN", "auto"), ("NGCF", "True")])
def test_without_vectors_it_is_said_how_to_get_them(model: str, word: str, tiny_data: Path, tmp_path: Path) -> None:
    info = tiny(model, tiny_data).export(tmp_path / "artifact", vectors=False)
    assert "graph" not in info and not info["vectors"] and info["format_version"] == 1
    with pytest.raises(ArtifactError, match=rf"cannot recommend without RecBole: .*--export_vectors={word}, or"):
        Recommender.from_artifact(tmp_path / "artifact")
    auto = tiny(model, tiny_data).export(tmp_path / "auto")
    assert (auto["serving"] is None) == (model == "NGCF") and "propagation" not in info


def test_a_graph_that_was_written_otherwise_never_appears(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = tiny("LightGCN", tiny_data)
    built.export(tmp_path / "artifact")
    before = snapshot(tmp_path / "artifact")
    monkeypatch.setattr(StoredGraph, "parts", property(lambda self: {"edges": np.roll(self.edges[:-1], 1)}))
    with pytest.raises(ArtifactError, match="graph: edges must be 607 uint8, a bit for each of 4855 pairs .*606"):
        built.export(tmp_path / "artifact")
    backwards = property(lambda self: {"edges": np.concatenate([self.edges[-2::-1], self.edges[-1:]])})
    monkeypatch.setattr(StoredGraph, "parts", backwards)
    with pytest.raises(ArtifactError, match="refused to write the artifact: scores from the stored graph differ"):
        built.export(tmp_path / "artifact")
    assert snapshot(tmp_path / "artifact") == before
    monkeypatch.setattr(vectors, "disagreement", lambda *args: 0.0)
    monkeypatch.setattr("recbole_prune.artifact.export.disagreement", lambda *args: 0.0)
    with pytest.raises(ArtifactError, match="restore_user_e is read back beyond its rounding"):
        built.export(tmp_path / "artifact")


# ---- runs and commands -----------------------------------------------------------------------------------------------


def test_a_run_of_lightgcn_recommends_by_default_and_without_torch(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"pruner": "imp", "prune_target_sparsity": 0.7, "prune_rounds": 1, "epochs": 1}
    result = run_recbole_prune("LightGCN", DATASET, config_dict={**config_for("LightGCN", tiny_data), **changes})
    artifact = read_artifact(result["artifact"])
    assert artifact.info["source"]["vectors"] == "auto" and "graph" in artifact.info
    user = artifact.users[1]
    words = ["recommend", f"--artifact={result['artifact']}", f"--users={user}", "--k=3", "--format=json"]
    code = (
        f"import sys; from recbole_prune.cli import main; main({words!r}); "
        "print([m for m in ('torch', 'recbole', 'pandas', 'scipy', 'numba') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert [len(row["items"]) for row in json.loads(done.stdout)] == [3]

    assert cli.main(["bench", "recommend", f"--artifact={result['artifact']}", "--repeats=1", "--k=3"]) == 0
    assert "100.00 % of ours's lists are torch's" in capsys.readouterr().out
    export = ["export", f"--run={result['folder']}", f"--to={tmp_path / 'none'}"]
    assert cli.main([*export, "--export_vectors=False"]) == 0
    assert cli.main([words[0], f"--artifact={tmp_path / 'none'}", f"--users={user}"]) == 2
    assert "export again with --export_vectors=auto" in capsys.readouterr().err
    assert cli.main([*export, "--export_vectors=auto"]) == 0
    assert snapshot(tmp_path / "none") == snapshot(Path(result["artifact"]))
    assert cli.main([*export, "--export_vectors=True"]) == 0
    assert_same(lists_of(tmp_path / "none"), lists_of(Path(result["artifact"])))


RUNS: list[tuple[str, dict[str, Any]]] = [
    ("LightGCN", {"pruner": "qr", "export_values": "int8"}),
    ("LightGCN", {"pruner": "lowrank", "prune_lowrank_form": "table"}),
    ("LightGCN", {"pruner": "pq", "prune_pq_centroids": 4, "export_values": "fp16"}),
    ("LightGCN", {"pruner": "imp", "prune_rounds": 1, "prune_storage": "compact", "export_values": "int4"}),
    ("LightGCN", {"pruner": "none", "export_evaluate": True}),
    ("SGL", {"pruner": "imp", "prune_rounds": 1}),
    ("NCL", {"pruner": "imp", "prune_rounds": 1}),
]


@pytest.mark.parametrize(("model", "changes"), slow_but([RUNS[0], RUNS[5]], RUNS))
def test_what_runs_of_every_kind_export_recommends(model: str, changes: dict[str, Any], tiny_data: Path) -> None:
    sparsity = {} if changes["pruner"] == "none" else {"prune_target_sparsity": 0.8}
    trained = {**config_for(model, tiny_data), "epochs": 1, **sparsity, **changes}
    result = run_recbole_prune(model, DATASET, config_dict=trained)
    assert read_artifact(result["artifact"]).info["propagation"]["stored"] == "graph"
    built = tiny(model, tiny_data)
    assert_same(lists_of(Path(result["artifact"])), model_lists(built, load_ticket(result["artifact"])))


def test_the_setting() -> None:
    for said, meant in (("auto", "auto"), ("Auto", "auto"), ("True", True), ("false", False), (True, True)):
        assert schema.check("export_vectors", said) is meant or said == meant or meant == "auto"
        assert schema.check("export_vectors", said) == meant
    for wrong in ("yes", 1, 2.0, ["auto"], "", None):
        with pytest.raises(ConfigError, match=r"export_vectors=.* is not allowed: it must be auto, True or False"):
            schema.check("export_vectors", wrong)


# ---- bits ------------------------------------------------------------------------------------------------------------


PAIRS = st.sets(st.tuples(st.integers(0, 6), st.integers(1, 9)), max_size=40)


@settings(max_examples=100, deadline=None)
@given(PAIRS, st.data())
def test_edges_come_back(pairs: set[tuple[int, int]], data: st.DataObject) -> None:
    edges = data.draw(st.lists(st.sampled_from(sorted(pairs)), unique=True)) if pairs else []
    seen = Seen.from_pairs(*columns(sorted(pairs)), 7)
    graph = store_graph(2, ("u", "i"), ("a", "b"), columns(edges), seen)
    assert graph is not None and graph.nbytes == -(-len(pairs) // 8)
    found = graph.neighbours(seen)
    owner = np.repeat(np.arange(7), found.degrees)
    assert list(zip(owner.tolist(), found.columns.tolist())) == sorted(edges)
    assert graph.describe()["edges"] == len(edges)
    outside = sorted({(user, item) for user in range(-1, 8) for item in range(-4, 12)} - pairs)
    other = data.draw(st.sampled_from(outside))
    assert store_graph(2, ("u", "i"), ("a", "b"), columns([*edges, other]), seen) is None


def columns(pairs: Any) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(list(pairs), np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


# ---- the mean of layers ----------------------------------------------------------------------------------------------


def test_what_is_computed_once_cannot_be_changed(tiny_data: Path, tmp_path: Path) -> None:
    tiny("LightGCN", tiny_data).export(tmp_path / "artifact")
    vectors = read_artifact(tmp_path / "artifact").tensor("restore_user_e")
    with pytest.raises(ValueError, match="read-only"):
        vectors[:] = 7


def test_a_few_users_are_ranked_without_vectors_and_more_with_them(tiny_data: Path, tmp_path: Path) -> None:
    built = tiny("LightGCN", tiny_data)
    built.export(tmp_path / "artifact")
    artifact = read_artifact(tmp_path / "artifact")
    few, many = Recommender(artifact), Recommender(artifact)
    users = np.arange(1, len(artifact.users))
    assert len(users) > ranking._USERS_WITHOUT_VECTORS * built.config["embedding_size"] > 1
    expected = many.top_k(users, K)
    assert "_vectors" in vars(many._ranking)
    for exclude_seen in (True, False):
        recommenders = [Recommender(artifact) for _ in users]
        found = [each.top_k(users[row : row + 1], K, exclude_seen) for row, each in enumerate(recommenders)]
        assert not any("_vectors" in vars(each._ranking) for each in recommenders)
        scores = np.concatenate([each.scores for each in found])
        both = many.top_k(users, K, exclude_seen)
        assert_same(([each.items[0].tolist() for each in found], scores), (both.items.tolist(), both.scores))
    assert not np.array_equal(both.items, expected.items), "somebody's best were seen"
    while "_vectors" not in vars(few._ranking):  # one that is asked again and again computes them in the end
        assert few._ranking._ranked < len(users)
        few.top_k(users[:2], K)
    assert few._ranking._scores is None, "it would only take memory"


def test_propagated_tables_are_computed_once_and_only_when_asked_for(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny("LightGCN", tiny_data).export(tmp_path / "artifact")
    calls: list[int] = []
    monkeypatch.setattr(
        "recbole_prune.artifact.graph.mean_of_layers", lambda *args: calls.append(1) or mean_of_layers(*args)
    )
    artifact = read_artifact(tmp_path / "artifact")
    artifact.state()
    assert not calls and isinstance(artifact.vectors["restore_user_e"], PropagatedTable)
    Recommender(artifact).recommend([artifact.users[1]], 3)
    assert not calls, "one user's scores take no vectors"
    Recommender(artifact).recommend(artifact.users[1:], 3)
    Recommender(artifact).recommend(artifact.users[1:], 3)
    assert len(calls) == 1
    table = artifact.encoded("restore_item_e")
    pointers, _, values = table.csr()
    assert pointers[-1] == len(values) == table.kept == table.entries and not isinstance(table, EncodedTensor)
