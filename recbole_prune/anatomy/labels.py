"""Which models learn labels of rows, and whether their scores estimate these."""

from __future__ import annotations

from recbole_prune.anatomy.context_scorers import CONTEXT
from recbole_prune.anatomy.losses import LOSSES, owner

# the loss is a cross entropy with the labels, and scores are probabilities
_ESTIMATES = {*CONTEXT, "DIEN", "DIN", "DMF", "NAIS", "NNCF", "NeuMF"}
# the same loss, but scores are logits, or a second sigmoid of the probabilities
_OTHER_SCALE = {"FISM", "MKR", "RippleNet"}


def learns_probabilities(model_class: type) -> bool:
    """Whether training is a cross entropy with the labels of the data, which then must lie in 0 to 1.

    What a class of a user's own learns is not known, unless it inherits its loss.
    """
    return owner(model_class, LOSSES) in _ESTIMATES | _OTHER_SCALE


def scores_estimate_labels(model_class: type) -> bool:
    """Whether errors between scores and labels say how well a model has learnt; so for a class of a user's own."""
    scorer = owner(model_class, ("predict",))
    return scorer is None or scorer in _ESTIMATES
