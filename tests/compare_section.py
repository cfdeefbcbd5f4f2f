"""The README's comparison, made from ``figures/compare/families.json``: ``python tests/compare_section.py --write``.

The file is what this wrote::

    recbole-prune compare --model=BPR --dataset=ml-100k --pruners=imp,omp,small_dense,lowrank,pq,qr \\
      --budgets=0.5,0.2,0.1 --seeds=2020,2021 --workers=2 --prune_rounds=3 --epochs=100 --eval_step=2 \\
      --stopping_step=5 "--metrics=['Recall','NDCG']" "--topk=[10]" --valid_metric=NDCG@10 --to=families.json
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench_section import README, print_or_write

FILE = Path(__file__).resolve().parent / "figures" / "compare" / "families.json"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
METRIC = "ndcg@10"
_MOST_ABOVE = 1.15  # what takes more bytes than the budget times this is no competitor there


def section(records: list[dict[str, Any]]) -> str:
    """A row for each method, a column for each budget: the test metric as mean and standard deviation over seeds."""
    found = [record for record in records if record["failure"] is None]
    dense = [record for record in found if record["pruner"] == "dense"]
    budgets = sorted({record["budget"] for record in found if record["budget"] is not None}, reverse=True)
    lines = [
        f"| test NDCG@10 | {' | '.join(f'{100 * budget:g} %' for budget in budgets)} |",
        "|---|" + "---:|" * len(budgets),
    ]
    lines.append(f"| dense, 100 %: {_spread(dense)} |" + " |" * len(budgets))
    bytes_of = {record["seed"]: record["bytes"] for record in dense}
    for pruner in dict.fromkeys(record["pruner"] for record in found if record["pruner"] != "dense"):
        cells = []
        for budget in budgets:
            cell = [record for record in found if (record["pruner"], record["budget"]) == (pruner, budget)]
            fits = all(record["bytes"] <= _MOST_ABOVE * budget * bytes_of[record["seed"]] for record in cell)
            cells.append(_spread(cell) if cell and fits else "does not get there")
        lines.append(f"| `{pruner}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(records: list[dict[str, Any]]) -> str:
    values = [record["test"][METRIC] for record in records]
    return f"{mean(values):.4f} ± {stdev(values):.4f}"


def records() -> list[dict[str, Any]]:
    """What the file holds."""
    found: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def present_section() -> str:
    """What stands between the markers now."""
    return README.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()


if __name__ == "__main__":
    print_or_write(section(records()), BEGIN, END)
