"""Which models learn labels of rows, and whether their scores estimate these."""

from __future__ import annotations

from recbole_prune.anatomy.context_scorers import CONTEXT

# the loss is a cross entropy with the labels, and scores are probabilities
_ESTIMATES = {*CONTEXT, "DIEN", "DIN", "DMF", "NAIS", "NNCF", "NeuMF"}
# the same loss, but scores are logits, or a second sigmoid of the probabilities
_OTHER_SCALE = {"FISM", "MKR", "RippleNet"}
_LOSSES = ("calculate_loss", "calculate_rs_loss")
_MODULES = ("recbole.", "recbole_prune.")


def learns_probabilities(model_class: type) -> bool:
    """Whether training is a cross entropy with the labels of the data, which then must lie in 0 to 1.

    What a class of a user's own learns is not known, unless it inherits its loss.
    """
    return _owner(model_class, _LOSSES) in _ESTIMATES | _OTHER_SCALE


def scores_estimate_labels(model_class: type) -> bool:
    """Whether errors between scores and labels say how well a model has learnt; so for a class of a user's own."""
    owner = _owner(model_class, ("predict",))
    return owner is None or owner in _ESTIMATES


def _owner(model_class: type, methods: tuple[str, ...]) -> str | None:
    """Name of the class that defines the first of the methods that there is; None where that is a user's own."""
    for ancestor in model_class.__mro__:
        if vars(ancestor).keys() & set(methods):
            return ancestor.__name__ if ancestor.__module__.startswith(_MODULES) else None
    return None
