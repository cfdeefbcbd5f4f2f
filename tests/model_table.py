"""The table behind ``recbole-prune models``, generated from the models: ``python tests/model_table.py --write``."""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from zoo import DATASET, all_models, config_for, gradient_models, kind_of, missing_package
from zoo_data import make_dataset

from recbole_prune.anatomy.prunable import ALL, FILE, PrunableModel, as_text, read_models
from recbole_prune.anatomy.units.table import anatomy_of
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.distillers import DISTILLERS, get_distiller
from recbole_prune.distillers.teaching import require_student
from recbole_prune.errors import ConfigError, NothingToPrune
from recbole_prune.masking.scope import Scope
from recbole_prune.run.workshop import Workshop

UNTRAINED = "without a gradient it cannot learn from a teacher, but it can teach methods that learn from rankings"


def can_be_looked_at(model: str) -> bool:
    """Whether the row follows from what is installed."""
    return model not in gradient_models() or missing_package(model) is None


def row_of(model: str, data: Path) -> PrunableModel:
    """One line of the table."""
    kind = kind_of(model)
    if model not in gradient_models():
        return PrunableModel(model, kind, "", "not trained by gradient: refused with one sentence", "", UNTRAINED)
    settings = {**config_for(model, data), "pruner": "imp"}
    config = PruneConfig(model=model, dataset=DATASET, config_dict=settings)
    workshop = Workshop(config)
    built = workshop.build_model()
    taught, units = taught_by(built), units_of(built)
    try:
        scope = workshop.find_scope()
    except NothingToPrune as refusal:
        return PrunableModel(model, kind, "", str(refusal), *taught, *units)
    return PrunableModel(model, kind, listed([target.name for target in scope]), notes(scope), *taught, *units)


def units_of(model: Any) -> tuple[str, str, str]:
    """Kinds of units with how many groups there are: that can be taken out, that are only masked; settings."""
    anatomy = anatomy_of(model)
    exact, inexact = ([g.kind for g in anatomy if bool(g.inexact) is masked] for masked in (False, True))
    settings = anatomy.smaller({}) or {}
    return _counted(exact), _counted(inexact), ", ".join(settings)


def _counted(kinds: list[str]) -> str:
    return ", ".join(kind + (f" ({count})" if count > 1 else "") for kind, count in Counter(kinds).items())


def taught_by(student: Any) -> tuple[str, str]:
    """Which distillers can teach a model, in as few words as there are, and why the others cannot."""
    reasons = {name: _reason(name, student) for name in DISTILLERS}
    able, unable = ([name for name in reasons if bool(reasons[name]) is refused] for refused in (False, True))
    rest = f"{ALL} but {', '.join(unable)}" if unable else ALL
    few = rest if len(able) > len(unable) else ", ".join(able)
    return few, "; ".join(dict.fromkeys(filter(None, reasons.values())))


def _reason(name: str, student: Any) -> str:
    """What a run with this distiller says before any training, without its first words; "" where it would begin."""

    class Stub(dict[str, Any]):
        settings = SimpleNamespace(distiller=name)

    try:
        require_student(get_distiller(name), cast(Any, Stub(model="it")), student)
    except ConfigError as refusal:
        return str(refusal).partition(": ")[2]
    return ""


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
