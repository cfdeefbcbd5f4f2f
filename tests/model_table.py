"""The README's table of models, generated from the code: ``python tests/model_table.py --write``."""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

from zoo import DATASET, all_models, config_for, gradient_models, kind_of, missing_package
from zoo_data import make_dataset

from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.errors import NothingToPrune
from recbole_prune.masking.scope import Scope
from recbole_prune.run.workshop import Workshop

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- models: begin, written by tests/model_table.py -->", "<!-- models: end -->"
HEADER = ["| model | kind | pruned by default | notes |", "|---|---|---|---|"]


def can_be_looked_at(model: str) -> bool:
    """Whether the row follows from what is installed."""
    return model not in gradient_models() or missing_package(model) is None


def row_of(model: str, data: Path) -> str:
    """One line of the table."""
    kind = kind_of(model)
    if model not in gradient_models():
        return f"| {model} | {kind} | - | not trained by gradient: refused with one sentence |"
    settings = {**config_for(model, data), "pruner": "imp"}
    config = PruneConfig(model=model, dataset=DATASET, config_dict=settings)
    try:
        scope = Workshop(config).find_scope()
    except NothingToPrune as refusal:
        return f"| {model} | {kind} | - | {refusal} |"
    return f"| {model} | {kind} | {targets(scope)} | {notes(scope)} |"


def targets(scope: Scope) -> str:
    """Names of the targets, numbered ones as one."""
    return listed([f"`{target.name}`" for target in scope])


def listed(names: list[str]) -> str:
    """Names that differ by numbers only are one, with how many there are."""
    counts = Counter(re.sub(r"\.\d+(?=[.`])", ".*", name) for name in names)
    return ", ".join(name + (f" ({count})" if count > 1 else "") for name, count in counts.items())


def notes(scope: Scope) -> str:
    """What a reader may not expect."""
    found = []
    if not any(target.kind == "embedding" for target in scope):
        found.append("no tables: its weight matrices")
    tied = [f"`{target.name}` = `{name}`" for target in scope for name in target.tied_to]
    if tied:
        found.append("tied: " + listed(tied))
    stacked = max((len(target.padding_rows) for target in scope), default=0)
    if stacked > 1:
        found.append("one padding row per stacked field")
    if any(exclusion.reason.startswith("frozen") for exclusion in scope.exclusions):
        found.append("frozen weights stay")
    return "; ".join(found)


def present_table() -> list[str]:
    """Lines between the markers of the README."""
    text = README.read_text(encoding="utf-8")
    return text.split(BEGIN)[1].split(END)[0].strip().splitlines()


def main() -> int:
    """Print the table, or write it into the README."""
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder))
        rows = [row_of(model, Path(folder)) for model in all_models() if can_be_looked_at(model)]
    kept = {row.split("|")[1].strip(): row for row in present_table()[2:]}
    kept.update({row.split("|")[1].strip(): row for row in rows})
    table = "\n".join([*HEADER, *[kept[model] for model in all_models() if model in kept]])
    if "--write" not in sys.argv:
        print(table)
        return 0
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
