"""Whether a model scores as ``anatomy/`` says of its class: a user's subclass may have changed it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from recbole_prune.anatomy.caches import forget_caches
from recbole_prune.anatomy.logits import batch_logits, pair_logits, score_rows
from recbole_prune.anatomy.scorers import Scorer
from recbole_prune.anatomy.shared_calls import evaluating
from recbole_prune.anatomy.vectors import known_class, reason_unknown, reason_without_lists, scorer_of
from recbole_prune.data.random_streams import preserved_random_streams, random_state, set_random_state

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender

_ROWS = 16
# of a row's largest score; vectors and whole rows may be summed in another order
_TOLERANCE = 1e-4


@torch.no_grad()
def contradiction(model: AbstractRecommender, rows: Interaction, model_class: type | None = None) -> str:
    """Why the logits that ``anatomy/`` finds in a model are not its scores, one sentence; "" where they are.

    A few rows are scored both ways; the model's mode and the random streams are as before afterwards.

    Args:
        model: a RecBole model.
        rows: RecBole's rows of its data, on the model's device.
        model_class: to name in the sentence, where the model is mask-aware.
    """
    model_class = model_class or type(model)
    known = known_class(type(model))
    scorer = scorer_of(model)
    if known is None or scorer is None:
        return reason_unknown(type(model))
    rows = rows[np.arange(min(_ROWS, len(rows)))]
    with evaluating(model), preserved_random_streams():
        found, own = _both(model, scorer, rows)
        forget_caches(model)
    scale = own.abs().amax(dim=-1, keepdim=True)
    if own.shape == found.shape and bool(((found - own).abs() <= _TOLERANCE * scale).all()):
        return ""
    return (
        f"the scores of {model_class.__module__}.{model_class.__name__} are not those of RecBole's {known.__name__}, "
        "which it inherits from, so where its vectors and logits are is not known"
    )


def contradiction_of_subclass(model: AbstractRecommender, model_class: type, rows: Interaction) -> str:
    """As :func:`contradiction`; "" for a class that ``anatomy/`` has itself, or that it knows nothing of.

    Args:
        model: a RecBole model, or a mask-aware one.
        model_class: of the model, not mask-aware.
        rows: as there.
    """
    return "" if known_class(model_class) in (None, model_class) else contradiction(model, rows, model_class)


def _both(model: AbstractRecommender, scorer: Scorer, rows: Interaction) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores that follow from the logits, and the model's own, drawn from the same random streams."""
    if reason_without_lists(type(model)):
        return scorer.predicted(model, batch_logits(model, rows)), model.predict(rows).reshape(-1)
    streams = random_state()
    try:
        forget_caches(model)
        own = model.full_sort_predict(rows).reshape(len(rows), -1)
    except NotImplementedError:
        return _of_pairs(model, scorer, rows)
    set_random_state(streams)
    return scorer.ranked(model, score_rows(model, rows)), own


def _of_pairs(model: AbstractRecommender, scorer: Scorer, rows: Interaction) -> tuple[torch.Tensor, torch.Tensor]:
    from recbole.data.interaction import Interaction

    count = scorer.item_count(model)
    chosen = torch.linspace(1, count - 1, min(_ROWS, count - 1), device=model.device).long()
    pairs = rows.repeat_interleave(len(chosen))
    pairs.update(Interaction({model.ITEM_ID: chosen.repeat(len(rows))}))
    streams = random_state()
    own = model.predict(pairs).reshape(len(rows), -1)
    set_random_state(streams)
    return scorer.predicted(model, pair_logits(model, rows, chosen.expand(len(rows), -1))), own
