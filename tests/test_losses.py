"""Whether the loss of a batch is the sum or the mean over its rows, of every model of RecBole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from marks import slow_but
from recbole.data.interaction import Interaction
from recbole.utils import KGDataLoaderState, get_model
from teachers import Beginner, checkpoint, student_config
from training_bench import Bench
from zoo import gradient_models, missing_package

from recbole_prune.anatomy.losses import adds_rows_up, batch_losses
from recbole_prune.distillers.base import said_of_loss

TIMES = 3


def loss_of(model: object, batch: Interaction) -> float:
    """The one for recommending; the second one of KGAT, KTUP and MKR is of triples."""
    torch.manual_seed(0)
    with torch.no_grad():
        return float(next(batch_losses(model, batch)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", slow_but(["BPR", "ConvNCF", "ENMF"], gradient_models()))
def test_sums_and_means(name: str, tiny_data: Path) -> None:
    """The same rows three times: a sum becomes three times as large but for its penalties, a mean hardly changes."""
    if missing_package(name):
        pytest.skip(missing_package(name))
    bench = Bench(name, tiny_data, train_batch_size=64 if name != "SimpleX" else 1024)
    if hasattr(bench.train, "set_mode"):
        bench.train.set_mode(KGDataLoaderState.RSKG)
    model = bench.plain_model()
    if name == "SGL":  # its trainer draws the graphs of an epoch
        model.train()
    model.eval()
    batch = next(iter(bench.train))
    more = Interaction({field: torch.cat([values] * TIMES) for field, values in batch.interaction.items()})
    ratio = loss_of(model, more) / loss_of(model, batch)
    assert adds_rows_up(type(model), bench.config["train_stage"]) == (ratio > 2)
    assert 0.7 < ratio < 1.5 or 2.5 < ratio < 3.5  # in-batch negatives and noise move both


def test_stages_and_classes_of_a_users_own() -> None:
    known = get_model("ConvNCF")
    inherits = type("Mine", (known,), {})
    replaces = type("Mine", (known,), {"calculate_loss": lambda self, interaction: 0})
    assert adds_rows_up(inherits) and not adds_rows_up(replaces)
    assert adds_rows_up(get_model("S3Rec"), "pretrain") and not adds_rows_up(get_model("S3Rec"), "finetune")


def test_a_sum_is_taught_by_sums(tiny_data: Path, tmp_path: Path) -> None:
    """Beside a mean every term is divided by the rows of the batch, beside a sum by nothing."""
    lesson = Beginner("rrd", tiny_data, checkpoint(tiny_data, tmp_path, "BPR")[1], tmp_path, "ENMF")
    batch = lesson.batch()
    found = []
    for rows_add_up in (False, True):
        lesson.teacher.pupils.rows_add_up = rows_add_up
        lesson.part._batch = 0
        found.append(lesson.part.losses(lesson.student, batch)["rrd"].item())
    assert found[0] > 0 and found[1] == pytest.approx(len(batch) * found[0])
    settings = student_config(tiny_data, None, distiller="rrd", distill_teacher_model="BPR").settings
    [mean], [total] = (said_of_loss(settings, 64, rows_add_up) for rows_add_up in (False, True))
    assert "/64 = " in mean and total.endswith(
        "is for sums over a batch, as the model's own loss is one: it is taken as it is"
    )
