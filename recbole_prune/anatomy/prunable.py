"""What is pruned by default in each of RecBole's models, and what can teach it: ``prunable.tsv``.

It is read without torch and RecBole.

``tests/model_table.py --write`` makes the file from the models; a test compares the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_suffix(".tsv")
HEADER = (
    "model",
    "kind",
    "pruned by default",
    "notes",
    "taught by",
    "why not by others",
    "units",
    "units that are only masked",
    "smaller class",
)
ALL = "all"
_NOTHING = "-"


class PrunableModel(NamedTuple):
    """One line of the file.

    Attributes:
        name: as in ``--model=``.
        kind: general, sequential, context, knowledge, traditional or tree.
        targets: names of the tensors, with ``*`` for numbers and how many there are; "" where nothing is pruned.
        notes: what a reader may not expect; "" where there is nothing.
        taught_by: distillers, :data:`ALL`, or all but some; "" where no distiller can teach it.
        reasons: why the others cannot, a sentence each; "" where all can.
        units: kinds of units that can be taken out, and how many groups of each there are; "" where there are none.
        masked_units: those whose removal would change scores, so that they are set to 0 and stay.
        smaller_class: the settings with which plain RecBole builds what is left; "" where it cannot.
    """

    name: str
    kind: str
    targets: str
    notes: str
    taught_by: str
    reasons: str
    units: str = ""
    masked_units: str = ""
    smaller_class: str = ""


def read_models(file: Path = FILE) -> list[PrunableModel]:
    """All models, sorted by name."""
    _, *lines = file.read_text(encoding="utf-8").splitlines()
    cells = ([cell if cell != _NOTHING else "" for cell in line.split("\t")] for line in lines)
    return [PrunableModel(*row) for row in cells]


def as_text(models: list[PrunableModel]) -> str:
    """The contents of the file for these models."""
    lines = ["\t".join(cell or _NOTHING for cell in row) for row in (HEADER, *models)]
    return "\n".join(lines) + "\n"
