"""``recbole-prune compare``: means over seeds as computed by hand from the run folders, resumed, and clear refusals."""

from __future__ import annotations

import json
import shlex
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cell_records import cell_record
from safetensors.numpy import load_file
from scipy import stats
from zoo import DATASET

from recbole_prune.cli import main
from recbole_prune.compare import process
from recbole_prune.masking.bound import information_bound_bits, sparsity_of_budget
from recbole_prune.report.compare import compare_table

pytestmark = pytest.mark.multiprocess
PRUNERS, SPARSITIES, SEEDS = ("static",), (0.5, 0.9), (3, 4)
CELLS = len(SEEDS) * (1 + len(PRUNERS) * len(SPARSITIES))
EPOCHS = 2
TARGET = "prune_target_sparsity"
WORDS = [
    "--pruners=" + ",".join(PRUNERS),
    "--sparsities=" + ",".join(map(str, SPARSITIES)),
    "--seeds=" + ",".join(map(str, SEEDS)),
    "--workers=2",
    "--to=records.json",
]


def words_for(data: Path, folder: Path) -> list[str]:
    """RecBole's words, ours before them; the run folders go to ``folder``."""
    (folder / "more.yaml").write_text("metrics: [Recall, NDCG]\ntopk: [10]\nvalid_metric: NDCG@10\ngpu_id: ''\n")
    settings = {
        "model": "BPR",
        "dataset": DATASET,
        "config_files": folder / "more.yaml",
        "data_path": data,
        "epochs": EPOCHS,
        "embedding_size": 8,
        "train_batch_size": 512,
        "show_progress": False,
        "output_dir": folder / "pruned",
    }
    return ["compare", *WORDS, *[f"--{name}={value}" for name, value in settings.items()]]


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The words of a comparison that has ended, and its folder."""
    folder = tmp_path_factory.mktemp("compared")
    words = words_for(tiny_data, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(words) == 0
    return words, folder


@pytest.fixture
def words(finished: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The same words where that comparison has ended already."""
    monkeypatch.chdir(finished[1])
    return finished[0]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The jobs that are begun, which then fail at once."""
    begun: list[Any] = []

    def start(self: Any) -> None:
        begun.append(self._job)
        raise AssertionError("nothing is to be run")

    monkeypatch.setattr(process.JobProcess, "_start", start)
    return begun


def cells(table: str) -> list[list[str]]:
    """Rows below the rule; a mean and its spread are one cell."""
    lines = table.partition("validation:")[0].splitlines()
    rule = next(number for number, line in enumerate(lines) if set(line) == {"-", " "})
    return [line.replace(" ± ", "±").replace(" %", "%").split() for line in lines[rule + 1 :] if line.strip()]


def by_hand(values: list[float]) -> str:
    """Mean and the spread of a sample."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.4f}"
    return f"{mean:.4f}±{sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)):.4f}"


def test_table_is_that_of_the_run_folders(
    words: list[str], trained: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0 and not trained
    found = cells(capsys.readouterr().out.strip().rpartition("\n\n")[2])
    folders = {file.parent for file in Path("pruned").absolute().glob("*/*/*/summary.json")}
    records = json.loads(Path("records.json").read_text())
    assert {Path(record["folder"]) for record in records} == folders and len(records) == len(folders) == CELLS

    runs: dict[tuple[str, float, int], Any] = {}
    for record in records:
        summary = json.loads((Path(record["folder"]) / "summary.json").read_bytes())
        number = 0 if record["pruner"] == "dense" else 1
        ticket = next(ticket for ticket in summary["tickets"] if ticket["ticket"] == number)
        assert record["test"] == ticket["test"] and record["valid_score"] == ticket["valid"]["ndcg@10"]
        assert record["bytes"] == ticket["bytes"] and record["failure"] is None
        sparsity = record["prune_target_sparsity"] or 0.0
        assert ticket["sparsity"] == record["sparsity"] == pytest.approx(sparsity, abs=1e-3)
        runs[(record["pruner"], sparsity, record["seed"])] = ticket
    assert set(runs) == {("dense", 0.0, seed) for seed in SEEDS} | set(product(PRUNERS, SPARSITIES, SEEDS))

    expected = []
    for pruner, sparsity in [("dense", 0.0), *[(p, s) for s in SPARSITIES for p in PRUNERS]]:
        of_seeds = [runs[(pruner, sparsity, seed)] for seed in SEEDS]
        valid, test = [t["valid"]["ndcg@10"] for t in of_seeds], [t["test"]["ndcg@10"] for t in of_seeds]
        size = sum(t["bytes"] for t in of_seeds) / len(SEEDS)
        share = sum(runs[(pruner, sparsity, s)]["bytes"] / runs[("dense", 0.0, s)]["bytes"] for s in SEEDS) / len(SEEDS)
        shown = [f"{100 * sparsity:g}%", pruner, str(len(SEEDS)), by_hand(valid), by_hand(test)]
        expected.append([*shown, f"{size:.0f}", f"{100 * share:.1f}%"])
    assert found == expected
    assert len({row[4] for row in found}) > 1


def test_the_dense_model_is_trained_once_per_seed(words: list[str]) -> None:
    lines = [json.loads(file.read_bytes().splitlines()[0]) for file in Path("pruned").glob("*/*/*/tickets.jsonl")]
    assert len(lines) == CELLS and all(line["ticket"] == 0 for line in lines)
    for seed in SEEDS:
        of_seed = [line for line in lines if line["seed"] == seed]
        assert sorted("adopted_from" in line for line in of_seed) == [False, True, True]
        assert len({line["checkpoint_sha256"] for line in of_seed}) == 1


def test_what_is_missing_is_said_and_what_is_there_is_shown(
    words: list[str], trained: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word for word in words if not word.startswith(("--seeds", "--workers", "--to"))]
    assert main([*given, "--seeds=3,5", "--workers=0", "--to=partly.json"]) == 1 and not trained
    shown = capsys.readouterr().out
    assert [row[2] for row in cells(shown)] == ["1"] * 3
    assert "±" not in shown.partition("mean ±")[0]
    text = " ".join(shown.split())
    missing = "dense, seed 5; static 50 %, seed 5; static 90 %, seed 5"
    assert f"not in the table: {missing}: not run yet" in text
    failures = [record["failure"] for record in json.loads(Path("partly.json").read_text())]
    assert failures.count(None) == 3 and failures.count("not run yet") == 3


def test_commands_for_other_machines(words: list[str], trained: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """One a line, phase by phase; run, they are the cells: here each finds its finished folder."""
    given = [word for word in words if not word.startswith(("--workers", "--to"))]
    assert main([*given, "--list_cells=True"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [number for number, line in enumerate(lines) if line.startswith("# phase")]
    assert [lines[number].split(" (")[0] for number in heads] == [
        "# phase 1 of 2: 2 dense models",
        "# phase 2 of 2: 4 pruned models, after all of phase 1",
    ]
    assert heads == [0, 3] and len(lines) == 8
    phases = []
    for number in (1, 2):
        assert main([*given, f"--list_cells={number}"]) == 0
        phases.append(capsys.readouterr().out.splitlines())
    assert phases == [lines[1:3], lines[4:]]
    before = {file: file.read_bytes() for file in Path("pruned").rglob("tickets.jsonl")}
    program, *command = shlex.split(phases[1][-1])
    assert program == "recbole-prune" and main(command) == 0
    assert {file: file.read_bytes() for file in Path("pruned").rglob("tickets.jsonl")} == before


@pytest.mark.slow
def test_number_formats_are_exported_from_the_same_runs(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [word for word in words if not word.startswith(("--seeds", "--sparsities", "--to"))]
    given += ["--seeds=3", "--sparsities=0.5", "--values=fp32,int8", "--to=formats.json"]
    before = {file: file.read_bytes() for file in Path("pruned").rglob("tickets.jsonl")}
    assert main(given) == 0
    assert {file: file.read_bytes() for file in Path("pruned").rglob("tickets.jsonl")} == before
    records = json.loads(Path("formats.json").read_text())
    assert [(record["pruner"], record["values"]) for record in records] == list(
        product(("dense", "static"), ("fp32", "int8"))
    )
    for whole, small in zip(records[::2], records[1::2]):
        folder = Path(whole["folder"])
        info = json.loads((folder.with_name(f"{folder.name}.int8") / "ticket.json").read_bytes())
        assert small["valid_score"] == info["stored_valid"]["ndcg@10"] and small["test"] == info["stored_test"]
        assert small["bytes"] == info["bytes"]["tables"] < whole["bytes"]
        assert info["values"] == "int8" and info["valid"]["ndcg@10"] == whole["valid_score"]
    capsys.readouterr()
    monkeypatch.setattr(process.JobProcess, "_start", lambda self: pytest.fail("it is there already"))
    assert main(given) == 0
    assert "int8" in capsys.readouterr().out


@pytest.mark.slow
def test_a_form_has_the_bytes_of_its_weights_in_every_number_format(words: list[str], monkeypatch: Any) -> None:
    own = ("--seeds", "--sparsities", "--to", "--pruners")
    given = [word for word in words if not word.startswith(own)]
    given += ["--pruners=lowrank", "--seeds=3", "--sparsities=0.5", "--values=fp32,int4", "--to=formats.json"]
    assert main(given) == 0
    whole, small = json.loads(Path("formats.json").read_text())[2:]
    folder = Path(small["folder"])
    info = json.loads((folder.with_name(f"{folder.name}.int4") / "ticket.json").read_bytes())
    assert small["bytes"] == sum(tensor["bytes"] for tensor in info["tensors"].values())
    assert 0 < small["bytes"] < whole["bytes"] / 2
    # another way to find the range is another form
    assert main([*given, "--export_int4_clip=none"]) == 0
    other = json.loads((folder.with_name(f"{folder.name}.int4") / "ticket.json").read_bytes())
    assert (info["source"]["int4_clip"], other["source"]["int4_clip"]) == ("search", "none")
    monkeypatch.setattr(process.JobProcess, "_start", lambda self: pytest.fail("it is there already"))
    assert main([*given, "--export_int4_clip=none"]) == 0


def test_a_dry_run_trains_nothing(words: list[str], trained: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--dry_run=True"]) == 0 and not trained
    assert capsys.readouterr().out.count("nothing was trained") == len(PRUNERS) * len(SPARSITIES)


@pytest.mark.parametrize(
    ("options", "cores", "expected"),
    [
        ({}, 8, (1, None)),
        ({"workers": 1}, 8, (1, None)),
        ({"workers": 3}, 8, (3, 2)),
        ({"workers": 16}, 8, (16, 1)),
        ({"workers": 0}, 8, (0, None)),
        ({"engine": "dask"}, 8, (8, 1)),
        ({"engine": "ray", "workers": 2}, 8, (2, 4)),
        ({"engine": "ray", "engine_address": "a:1", "workers": 2}, 8, (2, 1)),
        ({"engine": "ray", "engine_address": "a:1"}, 8, (1 << 30, 1)),
    ],
)
def test_processors_are_shared_out(
    options: dict[str, Any], cores: int, expected: tuple[int, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from recbole_prune.commands import compare

    monkeypatch.setattr(compare, "_cores", lambda: cores)
    assert compare._shares({"workers": None, "engine": "local", "engine_address": None, **options}) == expected


@pytest.mark.parametrize("budget", [0.9, 0.5, 0.2, 0.1, 0.01])
def test_a_budget_is_the_sparsity_of_that_bound(budget: float) -> None:
    entries, sparsity = 10**9, sparsity_of_budget(budget)
    bound = information_bound_bits(entries, round(entries * (1 - sparsity)), 32) / 8
    assert bound == pytest.approx(budget * 4 * entries, rel=1e-4)


def test_budgets_of_the_method_file() -> None:
    """Gowalla, both tables, d 64: sparsity 0.9 has the bound 2,079,264 bytes of 18,134,784 (more_methods.md, B0)."""
    assert sparsity_of_budget(2_079_264 / 18_134_784) == pytest.approx(0.9, abs=2e-6)
    assert sparsity_of_budget(4_036_082 / 18_134_784) == pytest.approx(0.8, abs=2e-6)


def test_number_formats_budgets_and_places_have_rows_of_their_own() -> None:
    dense = cell_record(pruner="dense", prune_target_sparsity=None, bytes=1000)
    records = [
        dense,
        {**dense, "values": "int8", "bytes": 260},
        cell_record(budget=0.1),
        cell_record(budget=0.1, values="int8", bytes=30),
        cell_record(budget=0.5, distiller="rrd"),
        cell_record(model="LightGCN", failure="killed by SIGKILL"),
    ]
    first, second = compare_table(records).split("\n\n")
    assert first.startswith("BPR on d\n") and second.startswith("LightGCN on d\n")
    rows = cells("\n".join(first.splitlines()[:-1]))
    assert [row[:4] for row in rows] == [
        ["100%", "dense", "fp32", "1"],
        ["100%", "dense", "int8", "1"],
        ["50%", "omp+rrd", "fp32", "1"],
        ["10%", "omp", "fp32", "1"],
        ["10%", "omp", "int8", "1"],
    ]
    sizes = [["1000", "100.0%"], ["260", "26.0%"], ["100", "10.0%"], ["100", "10.0%"], ["30", "3.0%"]]
    assert [row[-2:] for row in rows] == sizes
    assert "not in the table: omp 90 %, seed 1 fp32: killed by SIGKILL" in second


def test_a_table_fits_eighty_columns() -> None:
    records = [cell_record(seed=seed, budget=0.1, bytes=72_567_120, valid_score=0.1 * seed) for seed in (1, 2, 3)]
    records += [cell_record(pruner="dense", prune_target_sparsity=None, bytes=672_567_120)]
    assert max(map(len, compare_table(records).splitlines()[:4])) <= 80


def test_a_method_without_a_target_has_one_cell(
    words: list[str], trained: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from recbole_prune.compare import cells as module

    used = module.is_used
    monkeypatch.setattr(
        module, "is_used", lambda key, values: used(key, values) and (key, values["pruner"]) != (TARGET, "static")
    )
    monkeypatch.setattr(module, "run_path", lambda config: Path(f"{config['pruner']}-{config['seed']}"))
    given = [word for word in words if not word.startswith(("--pruners", "--workers", "--to"))]
    assert main([*given, "--pruners=static", "--list_cells=2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(SEEDS)


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("--pruners=dsl,ipm", ["--pruners", "ipm", "imp", "static", "dsl"]),
        ("--pruners=none", ["--pruners", "none", "imp", "static"]),
        ("--pruners=", ["--pruners", "imp", "static"]),
        ("--sparsities=0.5,half", ["--sparsities", "half", "float"]),
        ("--sparsities=0.5,1.0", ["--sparsities", "1.0", "between 0 and 1"]),
        ("--sparsities=0", ["--sparsities", "0", "between 0 and 1"]),
        ("--sparsities=nan", ["--sparsities", "nan", "between 0 and 1"]),
        ("--seeds=1,2.5", ["--seeds", "2.5", "int"]),
        ("--seeds=", ["--seeds", "int"]),
        ("--pruner=dsl", ["--pruner", "--pruners=A,B"]),
        ("--prune_target_sparsity=0.5", ["--prune_target_sparsity", "--sparsities=A,B"]),
        ("--seed=1", ["--seed", "--seeds=A,B"]),
        ("--distiller=rrd", ["--distiller", "--distillers=A,B"]),
        ("--distillers=rdd", ["--distillers", "rdd", "rrd"]),
        ("--budgets=0.5", ["--sparsities", "--budgets", "keep one"]),
        ("--budgets=2", ["--budgets", "2", "between 0 and 1"]),
        ("--values=int3", ["--values", "int3", "int8"]),
        ("--models=BPR,LightGCN", ["--model ", "--models=A,B"]),
        ("--workers=-1", ["--workers", "-1", "from 0"]),
        ("--workers=two", ["--workers", "two", "from 0"]),
        ("--engine=spark", ["--engine", "spark", "ray", "dask"]),
        ("--engine_address=localhost:1", ["--engine_address", "--engine=ray"]),
        ("--list_cells=9", ["--list_cells=9", "1 to 2"]),
        ("--prune_init=erdos", ["prune_init", "erdos", "erk"]),
        ("--to=pruned", ["--to", "pruned", "folder"]),
    ],
)
def test_bad_input_is_one_message_before_any_training(
    word: str,
    named: list[str],
    tiny_data: Path,
    tmp_path: Path,
    trained: list[Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = words_for(tiny_data, tmp_path)
    Path("pruned").mkdir()
    given = [other for other in words if other.partition("=")[0] != word.partition("=")[0]]
    assert main([*given, word]) == 2
    [message] = capsys.readouterr().err.splitlines()
    assert message.startswith("recbole-prune: ")
    assert [part for part in named if part not in message] == []
    assert not trained and not Path("records.json").exists()


def test_the_best_of_a_size_is_said_with_what_it_loses() -> None:
    dense = cell_record(pruner="dense", prune_target_sparsity=None, bytes=1000)
    change = {"change_percent": -2.04, "interval_percent": [-3.0, -1.0], "change_seeds": 1}
    records = [
        dense,
        cell_record(budget=0.1, valid_score=0.3, **change),
        cell_record(budget=0.1, valid_score=0.4, pruner="lowrank", **change),
        cell_record(budget=0.1, valid_score=0.5, pruner="qr", bytes=400, **change),
        cell_record(budget=0.5, valid_score=0.5, bytes=400, **change),
    ]
    said = " ".join(compare_table(records).split())
    lost = "test ndcg@10 changes by -2.0 % of dense (95 % interval over users -3.0 to -1.0 %)"
    assert said.endswith(f"best on validation at 10 %: lowrank: {lost}"), "qr has more than 10 %, 50 % has one method"


def test_changes_are_those_of_users_averaged_over_seeds(words: list[str], trained: list[Any]) -> None:
    assert main(words) == 0 and not trained
    records = json.loads(Path("records.json").read_text())
    for pruner, sparsity in product(PRUNERS, SPARSITIES):
        cell = [r for r in records if (r["pruner"], r["prune_target_sparsity"]) == (pruner, sparsity)]
        dense, ticket = (
            np.mean(
                [load_file(Path(record["folder"]) / "users.safetensors")[name].astype(np.float64) for record in cell],
                axis=0,
            )
            for name in ("test/000/ndcg@10", "test/001/ndcg@10")
        )
        differences = 100 * (ticket - dense) / dense.mean()
        half = stats.t.ppf(0.975, len(dense) - 1) * differences.std(ddof=1) / sqrt(len(dense))
        expected = [differences.mean(), differences.mean() - half, differences.mean() + half]
        for record in cell:
            assert record["change_seeds"] == len(SEEDS)
            assert [record["change_percent"], *record["interval_percent"]] == pytest.approx(expected, rel=1e-4)
