"""The README's comparison, made from ``figures/compare/*.json``: ``python tests/compare_section.py --write``.

``recbole-prune compare --to=FILE`` wrote the files. With ``C`` for ``recbole-prune compare --budgets=0.5,0.2,0.1
--show_progress=False --valid_metric=NDCG@10``::

    C --model=BPR --dataset=ml-100k --pruners=imp,omp,small_dense,lowrank,pq,qr --seeds=2020,2021 --prune_rounds=3 \\
      --workers=2 --epochs=100 --eval_step=2 --stopping_step=5 "--metrics=['Recall','NDCG']" "--topk=[10]"

With ``D`` for ``C --data_path=DATA --config_files=DATA/DATASET/dataset.yaml --prune_rounds=2 --epochs=60
--train_batch_size=8192 "--metrics=['Recall','NDCG']" "--topk=[10,20]"``, after ``python shared/datasets/unpack.py ml-1m
gowalla --to DATA``, and seeds as the table says::

    D --model=BPR --dataset=ml-1m (or gowalla) --pruners=imp,omp,small_dense,lowrank,pq,qr,dsl,pep \\
      --learning_rate=0.004 --weight_decay=1e-7 --eval_step=5 --stopping_step=3 --prune_update_interval=80
    D --model=LightGCN --dataset=ml-1m (or gowalla) --pruners=imp,omp,small_dense,lowrank,pq,qr,dsl --n_layers=2 \\
      --learning_rate=0.01 --prune_lr_schedule=cosine --prune_lr_floor=0.01 --reg_weight=1e-4 --require_pow=True \\
      --eval_step=10 --stopping_step=10
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bench_section import README, print_or_write

from recbole_prune.report.compare import MOST_ABOVE_BUDGET

FOLDER = Path(__file__).resolve().parent / "figures" / "compare"
# in the README's order, as far as they exist
FILES = "bpr-ml-100k bpr-ml-1m bpr-gowalla lightgcn-ml-1m lightgcn-gowalla".split()
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
METRIC = "ndcg@10"

_LEFT_OUT = ("qr", "pep")  # never the best

Record = Mapping[str, Any]


def section(comparisons: Sequence[Sequence[Record]]) -> str:
    """A row for each comparison and budget, a column for each method.

    A cell is the change of the mean test metric over seeds beside the dense model, in percent of it; bold is the best
    on validation data, whose interval over users stands in the last column.
    """
    asked = dict.fromkeys(r["pruner"] for records in comparisons for r in records if r["pruner"] != "dense")
    methods = [method for method in asked if method not in _LEFT_OUT]
    lines = [
        f"| change, % | {' | '.join(f'`{method}`' for method in methods)} | 95 % |",
        "|---|" + "---:|" * (len(methods) + 1),
    ]
    for records in comparisons:
        lines += _rows(records, methods)
    return "\n".join(lines)


def _rows(records: Sequence[Record], methods: Sequence[str]) -> list[str]:
    found = [record for record in records if record["failure"] is None]
    dense = {record["seed"]: record for record in found if record["pruner"] == "dense"}
    lines = []
    for budget in sorted({record["budget"] for record in found if record["budget"]}, reverse=True):
        of_budget = [record for record in found if record["budget"] == budget]
        cells = {method: [record for record in of_budget if record["pruner"] == method] for method in methods}
        fitting = {method: cell for method, cell in cells.items() if cell and _fits(cell, budget, dense)}
        best = max(fitting, key=lambda method: mean(record["valid_score"] for record in fitting[method]))
        shown = {method: f"{_change(cell):+.1f}" for method, cell in fitting.items()}
        shown[best] = f"**{shown[best]}**"
        low, high = fitting[best][0]["interval_percent"]
        name = "" if lines else f"{_name(dense)}, "
        lines.append(
            f"| {name}{100 * budget:g} % | {' | '.join(shown.get(method, '-') for method in methods)} "
            f"| {low:+.1f} to {high:+.1f} |"
        )
    return lines


def _name(dense: Mapping[int, Record]) -> str:
    first = next(iter(dense.values()))
    score = mean(record["test"][METRIC] for record in dense.values())
    return f"{first['model']} {first['dataset']} ({score:.4f})"


def _fits(cell: Sequence[Record], budget: float, dense: Mapping[int, Record]) -> bool:
    return all(record["bytes"] <= MOST_ABOVE_BUDGET * budget * dense[record["seed"]]["bytes"] for record in cell)


def _change(cell: Sequence[Record]) -> float:
    """As the records have it: over users and seeds."""
    change: float = cell[0]["change_percent"]
    return change


def comparisons() -> list[list[Record]]:
    """What the files hold."""
    files = [FOLDER / f"{name}.json" for name in FILES]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]


def present_section() -> str:
    """What stands between the markers now."""
    return README.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()


if __name__ == "__main__":
    print_or_write(section(comparisons()), BEGIN, END)
