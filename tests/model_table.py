"""The table behind ``recbole-prune models``, generated from the models: ``python tests/model_table.py --write``."""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

from zoo import DATASET, all_models, config_for, gradient_models, kind_of, missing_package
from zoo_data import make_dataset

from recbole_prune.anatomy.prunable import FILE, PrunableModel, as_text, read_models
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.errors import NothingToPrune
from recbole_prune.masking.scope import Scope
from recbole_prune.run.workshop import Workshop


def can_be_looked_at(model: str) -> bool:
    """Whether the row follows from what is installed."""
    return model not in gradient_models() or missing_package(model) is None


def row_of(model: str, data: Path) -> PrunableModel:
    """One line of the table."""
    kind = kind_of(model)
    if model not in gradient_models():
        return PrunableModel(model, kind, "", "not trained by gradient: refused with one sentence")
    settings = {**config_for(model, data), "pruner": "imp"}
    config = PruneConfig(model=model, dataset=DATASET, config_dict=settings)
    try:
        scope = Workshop(config).find_scope()
    except NothingToPrune as refusal:
        return PrunableModel(model, kind, "", str(refusal))
    return PrunableModel(model, kind, listed([target.name for target in scope]), notes(scope))


def listed(names: list[str]) -> str:
    """Names that differ by numbers only are one, with how many there are."""
    counts = Counter(re.sub(r"\.\d+(?=[. ]|$)", ".*", name) for name in names)
    return ", ".join(name + (f" ({count})" if count > 1 else "") for name, count in counts.items())


def notes(scope: Scope) -> str:
    """What a reader may not expect."""
    found = []
    if not any(target.kind == "embedding" for target in scope):
        found.append("no tables: its weight matrices")
    tied = [f"{target.name} = {name}" for target in scope for name in target.tied_to]
    if tied:
        found.append("tied: " + listed(tied))
    stacked = max((len(target.padding_rows) for target in scope), default=0)
    if stacked > 1:
        found.append("one padding row per stacked field")
    if any(exclusion.reason.startswith("frozen") for exclusion in scope.exclusions):
        found.append("frozen weights stay")
    return "; ".join(found)


def main() -> int:
    """Print the table, or write it into the package; rows that cannot be made here stay as they are."""
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder))
        rows = {model: row_of(model, Path(folder)) for model in all_models() if can_be_looked_at(model)}
    rows = {**{row.name: row for row in read_models()}, **rows}
    text = as_text([rows[model] for model in all_models() if model in rows])
    if "--write" in sys.argv:
        FILE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
