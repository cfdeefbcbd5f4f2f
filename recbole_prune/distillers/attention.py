"""SAD: the student's layers learn from the teacher's, and a small network picks which from which."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from logging import getLogger
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from recbole_prune.anatomy.feature_points.table import drawn_by, feature_points, features_of
from recbole_prune.anatomy.logits import batch_logits, pair_logits, row_logits
from recbole_prune.anatomy.shared_parts import BCE, MSE, own_objective
from recbole_prune.distillers.base import Distiller, Promises
from recbole_prune.distillers.losses.attention import MOST_ROWS, VECTORS, AttentionLoss, Shape
from recbole_prune.distillers.losses.divergence import bernoulli_divergence, softmax_divergence, squared_difference
from recbole_prune.teachers.base import Teacher

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_prune.anatomy.feature_points.features import Feature
    from recbole_prune.masking.masks import MaskSet
    from recbole_prune.sparse.shrinking import Shrunk
    from recbole_prune.teachers.pupils import Pupils
    from recbole_prune.training.model import MaskAware
    from recbole_prune.training.parts import State, Training

# of queries and keys, where the setting is empty
_WIDTH, _SMALL_WIDTH, _SMALL = 128, 32, 1_000_000

Shapes = dict[str, Shape]


class AttentionDistillation(Distiller):
    """``sad``: Ji, Heo, Park, "Show, Attend and Distill", AAAI 2021, and their logits (A9, A10).

    Source: methods/attention_distillation_pruning.md. What layers say comes from the computation of the student's own
    loss, and from the same batch through the teacher in evaluation mode. The network that picks layers
    goes on from ticket to ticket (section 4, item 11), unless ``distill_network`` says otherwise.
    """

    share: float | None = None
    promises = Promises(
        features=True,
        batch_in_parts=True,
        refuses=(r"no hidden layer", r"a teacher of its own already", r"nothing to compare", r"is not known"),
    )

    @classmethod
    def ask(cls, student: AbstractRecommender, teacher: Teacher) -> None:
        """For what its layers say of a batch, and for logits of it.

        Raises:
            ConfigError: neither has what could be compared with the other's.
        """
        batch = teacher.pupils.example.to(student.device)
        theirs = shapes_of(teacher.features(batch))
        mine = shapes_of(features_of(copy.deepcopy(student), batch))
        if not comparable(theirs, mine):
            raise teacher.refuse(
                f"has nothing to compare with the student: its layers say {_groups(theirs)}, those of "
                f"{type(student).__name__} {_groups(mine)}"
            )
        teacher.require_logits()
        with torch.no_grad():
            _ = logits_of(teacher.pupils, teacher, batch)

    def helpers(self, model: MaskAware) -> nn.ModuleDict:
        """The network that picks layers, and what else learns to compare."""
        batch = self.pupils.example.to(model.device)
        mine = shapes_of(features_of(copy.deepcopy(model), batch))
        theirs = comparable(shapes_of(self.teacher.features(batch)), mine)
        groups = {shape.group for shape in theirs.values()}
        mine = {name: shape for name, shape in mine.items() if shape.group in groups}
        self._names = tuple(theirs), tuple(mine)
        self._points = feature_points(model)
        model.noted = self._points.noted
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        shrunk: Shrunk | None = getattr(model, "shrunk", None)
        if shrunk is not None:  # the width is that of the large model's network, which goes on
            shapes = {name: shrunk.shape_before(name, shape) for name, shape in shapes.items()}
        parameters = sum(shape.numel() for shape in shapes.values())
        width = self.settings.distill_attention_width or (_SMALL_WIDTH if parameters < _SMALL else _WIDTH)
        self._tell(theirs, mine)
        loss = AttentionLoss(
            list(theirs.values()), list(mine.values()), width,
            project=self.settings.distill_value == "project", official=self.settings.distill_parity == "official",
        )  # fmt: skip
        return nn.ModuleDict({"attention": loss})

    def legacy(self) -> Mapping[str, torch.Tensor]:
        """The network, where it is kept."""
        return self.parameters() if self.settings.distill_network == "keep" else {}

    def inherit(self, legacy: Mapping[str, torch.Tensor]) -> None:
        """The network as it was; what belongs to layers that lost units has another width and is drawn anew."""
        narrower = []
        for name, parameter in self.parameters().items() if legacy else ():
            if name in legacy and legacy[name].shape == parameter.shape:
                parameter.data.copy_(legacy[name])
            else:
                narrower.append(name)
        if narrower:
            getLogger("recbole_prune").info(
                f"{len(narrower)} of {len(self.parameters())} tensors of the network that picks layers are drawn anew: "
                "layers of the student have lost units"
            )

    def _tell(self, theirs: Shapes, mine: Shapes) -> None:
        logger = getLogger("recbole_prune")
        logger.info(f"the teacher's features: {', '.join(theirs)}; the student's: {', '.join(mine)}")
        for group in sorted({shape.group for shape in theirs.values()}):
            alone = [name for name, shape in mine.items() if shape.group == group]
            if len(alone) == 1:
                logger.info(
                    f"{alone[0]} is all that the student says in {group}: nothing is picked, it learns from all"
                )

    @property
    def _loss(self) -> AttentionLoss:
        found = self._helpers["attention"]
        assert isinstance(found, AttentionLoss)
        return found

    def begin_epoch(self) -> None:
        """Count anew how large the losses are."""
        self._sums = [torch.zeros(()), torch.zeros(())]

    def terms(self, model: MaskAware, interaction: Interaction) -> Mapping[str, tuple[float, torch.Tensor]]:
        """What layers say, and logits; the sums over the rows of the batch."""
        settings, size = self.settings, len(interaction)
        nothing = torch.zeros((), device=model.device)
        weight, logit_weight = settings.distill_weight, settings.distill_logit_weight
        features = self._feature_loss(model, interaction) if weight else None
        features = nothing if features is None else features
        logits = self._logit_loss(model, interaction) if logit_weight else nothing
        own = model.loss_in_work
        assert own is not None, "losses are added to one that is in work"
        self._sums[0] = self._sums[0] + weight * self.share_of_sum(interaction) * size * features.detach()
        for loss in own if isinstance(own, tuple) else (own,):
            self._sums[1] = self._sums[1] + loss.detach().sum()
        return {"sad": (weight, size * features), "sad_logits": (logit_weight, logits)}

    def _feature_loss(self, model: MaskAware, batch: Interaction) -> torch.Tensor | None:
        """The mean over the rows of a batch; None of a single one, of which batch norms can say nothing."""
        mine, theirs = self._points.read(model, batch), self.teacher.features(batch, drawn_by(model))
        teacher, student = (_named(found, names) for found, names in zip((theirs, mine), self._names))
        count = min(len(teacher[0].values), len(student[0].values))  # of as many calls as both have
        if count < 2:
            return None
        some: slice | torch.Tensor = slice(count)
        if self._loss.relates and count > MOST_ROWS:
            some = torch.randperm(count)[:MOST_ROWS].sort()[0].to(model.device)
        loss: torch.Tensor = self._loss(_rows(teacher, some), _rows(student, some))
        return loss

    def _logit_loss(self, model: MaskAware, batch: Interaction) -> torch.Tensor:
        """The sum over the rows, by what the student's loss compares (6.3)."""
        pupils, scale = self.pupils, self.settings.distill_label_scale
        student, teacher = logits_of(pupils, model, batch), logits_of(pupils, self.teacher, batch)
        objective = "" if pupils.of_rows else own_objective(model)
        if objective == MSE:
            return squared_difference(student, teacher).mean(1).sum()
        if student.shape[1] == 1 or objective == BCE:
            return bernoulli_divergence(student, teacher, scale).mean(1).sum()
        return softmax_divergence(student, teacher, scale).sum()

    def end_epoch(self, trainer: Training) -> None:
        """Say how large the feature loss was beside the student's own."""
        added, own = (float(total) for total in self._sums)
        self.share = float(f"{added / own:.4g}") if own else None
        getLogger("recbole_prune").info(f"epoch {self.epoch}: feature loss / own loss = {self.share}")
        super().end_epoch(trainer)

    def state(self) -> State:
        """With the share of the last epoch."""
        return {**super().state(), "share": self.share}

    def restore(self, state: State, device: torch.device) -> None:
        """Undo :meth:`state`."""
        super().restore(state, device)
        self.share = state["share"]

    def report(self, masks: MaskSet | None) -> dict[str, Any]:
        """With the feature loss over the student's own, both weighted, in the last epoch."""
        return {**super().report(masks), "distill_feature_share": self.share}


def shapes_of(features: Sequence[Feature]) -> Shapes:
    """The shapes of features by name."""
    return {feature.name: Shape.of(feature) for feature in features}


def comparable(teacher: Shapes, student: Shapes) -> Shapes:
    """The teacher's features from which one of the student's can learn.

    Over a single place energies of length 1 say nothing.
    """
    groups = {shape.group for shape in student.values()}
    return {
        name: shape
        for name, shape in teacher.items()
        if shape.group in groups and (shape.group == VECTORS or shape.places > 1)
    }


def _groups(shapes: Shapes) -> str:
    """What they are, in words."""
    found = {shape.group if shape.group == VECTORS or shape.places > 1 else "one place" for shape in shapes.values()}
    return " and ".join(sorted(found)) or "nothing of such a batch"


def _named(features: Sequence[Feature], names: Sequence[str]) -> list[Feature]:
    known = {feature.name: feature for feature in features}
    return [known[name] for name in names]


def _rows(features: Sequence[Feature], rows: slice | torch.Tensor) -> list[Feature]:
    return [
        each._replace(values=each.values[rows], valid=None if each.valid is None else each.valid[rows])
        for each in features
    ]


def logits_of(pupils: Pupils, source: MaskAware | Teacher, batch: Interaction) -> torch.Tensor:
    """The logits that the student's loss compares for each row of a batch, ``[b, k]``.

    Those of all items, of the positive and the negative item, or the only one.

    Args:
        pupils: the student's data.
        source: the student or its teacher, whose rows are NaN where it does not know them.
        batch: of training.
    """
    taught = not isinstance(source, Teacher)
    if pupils.whole_rows:
        return (row_logits(source, batch) if taught else source.row_logits(batch))[:, 1:]
    if pupils.negative_field not in batch:
        return (batch_logits(source, batch) if taught else source.batch_logits(batch))[:, None]
    rows = batch if pupils.of_rows else batch[pupils.user_field]
    items = torch.stack([batch[pupils.item_field], batch[pupils.negative_field]], dim=1)
    return pair_logits(source, rows, items) if taught else source.pair_logits(rows, items)
