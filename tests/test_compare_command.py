"""``recbole-prune compare``: means over seeds as computed by hand from the run folders, resumed, and clear refusals."""

from __future__ import annotations

import json
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from recbole.trainer import Trainer
from zoo import DATASET

from recbole_prune.cli import main
from recbole_prune.training.trainer import MaskAwareTrainer

PRUNERS, SPARSITIES, SEEDS = ("static", "dsl"), (0.5, 0.9), (3, 4)
EPOCHS = 2
WORDS = [
    "--pruners=" + ",".join(PRUNERS),
    "--sparsities=" + ",".join(map(str, SPARSITIES)),
    "--seeds=" + ",".join(map(str, SEEDS)),
    "--to=records.json",
]


@pytest.fixture
def words(tiny_data: Path, tmp_path: Path) -> list[str]:
    """RecBole's words, ours before them."""
    (tmp_path / "more.yaml").write_text("metrics: [Recall, NDCG]\ntopk: [10]\nvalid_metric: NDCG@10\ngpu_id: ''\n")
    settings = {
        "model": "BPR",
        "dataset": DATASET,
        "config_files": "more.yaml",
        "data_path": tiny_data,
        "epochs": EPOCHS,
        "embedding_size": 8,
        "train_batch_size": 512,
        "show_progress": False,
        "output_dir": tmp_path / "pruned",
    }
    return ["compare", *WORDS, *[f"--{name}={value}" for name, value in settings.items()]]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """(seed, pruner, sparsity, ticket, epoch) of every finished epoch."""
    done: list[tuple[Any, ...]] = []
    train_epoch = MaskAwareTrainer._train_epoch

    def counted(self: Any, data: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
        result = train_epoch(self, data, epoch, *args, **kwargs)
        of_run = [self.config[name] for name in ("seed", "pruner", "prune_target_sparsity")]
        done.append((*of_run, self.session.name, epoch))
        return result

    monkeypatch.setattr(MaskAwareTrainer, "_train_epoch", counted)
    return done


def cells(table: str) -> list[list[str]]:
    """Rows below the rule; a mean and its spread are one cell."""
    lines = table.splitlines()
    rule = next(number for number, line in enumerate(lines) if set(line) == {"-", " "})
    return [line.replace(" ± ", "±").replace(" %", "%").split() for line in lines[rule + 1 :] if line.strip()]


def by_hand(values: list[float]) -> str:
    """Mean and the spread of a sample."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.4f}"
    return f"{mean:.4f}±{sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)):.4f}"


def test_table_is_that_of_the_run_folders(
    words: list[str], trained: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    found = cells(capsys.readouterr().out.strip().rpartition("\n\n")[2])
    summaries = [json.loads(file.read_bytes()) for file in tmp_path.glob("pruned/*/*/*/summary.json")]
    records = json.loads(Path("records.json").read_text())
    assert len(summaries) == len({record["folder"] for record in records}) == 8

    runs: dict[tuple[str, float, int], Any] = {}
    for record in records:
        summary = json.loads((Path(record["folder"]) / "summary.json").read_bytes())
        number = 0 if record["pruner"] == "dense" else 1
        ticket = next(ticket for ticket in summary["tickets"] if ticket["ticket"] == number)
        assert record["test"] == ticket["test"] and record["valid_score"] == ticket["valid"]["ndcg@10"]
        sparsity = record["prune_target_sparsity"] if number else 0.0
        assert ticket["sparsity"] == record["sparsity"] == pytest.approx(sparsity, abs=1e-3)
        runs[(record["pruner"], sparsity, record["seed"])] = ticket
    assert set(runs) == {("dense", 0.0, seed) for seed in SEEDS} | set(product(PRUNERS, SPARSITIES, SEEDS))

    expected = []
    for pruner, sparsity in [("dense", 0.0), *[(p, s) for s in SPARSITIES for p in PRUNERS]]:
        of_seeds = [runs[(pruner, sparsity, seed)] for seed in SEEDS]
        valid, test = [t["valid"]["ndcg@10"] for t in of_seeds], [t["test"]["recall@10"] for t in of_seeds]
        expected.append([f"{100 * sparsity:g}%", pruner, str(len(SEEDS)), by_hand(valid), by_hand(test)])
    assert found == expected
    assert len({row[4] for row in found}) > 1
    # the dense model is trained once per seed
    assert sum(ticket == "ticket 0" for *_, ticket, _ in trained) == len(SEEDS) * EPOCHS


@pytest.mark.slow
def test_interrupted_and_repeated_trains_nothing_twice(
    words: list[str],
    trained: list[tuple[Any, ...]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train_epoch = Trainer._train_epoch
    stops = [3, 10, 17]  # in a second epoch, before the second seed, in its second epoch of a pruned ticket

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        if stops and len(trained) == stops[0]:
            stops.pop(0)
            raise KeyboardInterrupt
        return train_epoch(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "_train_epoch", stop)
    for _ in range(3):
        assert main(words) == 130
        assert "a run continues from there" in capsys.readouterr().err
    assert main(words) == 0
    table, records = capsys.readouterr().out.strip().rpartition("\n\n")[2], Path("records.json").read_bytes()
    assert not stops and len(trained) == len(set(trained)) == EPOCHS * len(SEEDS) * (1 + 4)

    finished = len(trained)
    assert main(words) == 0
    assert len(trained) == finished
    assert cells(capsys.readouterr().out.strip().rpartition("\n\n")[2]) == cells(table)
    assert Path("records.json").read_bytes() == records


def test_one_seed_has_no_spread(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    one = ["--pruners=random", "--sparsities=0.5", "--seeds=3", "--to=new/records.json"]
    assert main([*words[:1], *one, *words[5:]]) == 0
    assert len(json.loads(Path("new/records.json").read_text())) == 2
    rows = cells(capsys.readouterr().out.strip().rpartition("\n\n")[2])
    assert [row[:3] for row in rows] == [["0%", "dense", "1"], ["50%", "random", "1"]]
    assert all("±" not in cell for row in rows for cell in row)


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
        ("--prune_init=erdos", ["prune_init", "erdos", "erk"]),
        ("--to=pruned", ["--to", "pruned", "folder"]),
    ],
)
def test_bad_input_is_one_message_before_any_training(
    word: str, named: list[str], words: list[str], trained: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("pruned").mkdir()
    given = [other for other in words if other.partition("=")[0] != word.partition("=")[0]]
    assert main([*given, word]) == 2
    [message] = capsys.readouterr().err.splitlines()
    assert message.startswith("recbole-prune: ")
    assert [part for part in named if part not in message] == []
    assert not trained and not Path("records.json").exists()
