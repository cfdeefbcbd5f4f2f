"""Export: a trained, masked RecBole model becomes an artifact that was proved to score like it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from recbole_prune.anatomy.caches import refresh
from recbole_prune.artifact import Artifact, PathLike, write_artifact
from recbole_prune.artifact.encoding import Array, encode
from recbole_prune.artifact.files import Seen
from recbole_prune.artifact.forms import StoredTensor, TableForm
from recbole_prune.artifact.value_types import VALUE_TYPES
from recbole_prune.artifact.vectors import (
    AUTO,
    Scored,
    ServingForm,
    Wanted,
    is_beyond_rounding,
    scores_of,
    serving_form,
)
from recbole_prune.errors import ArtifactError
from recbole_prune.scoring.dot_product import DotProduct, find_dot_product, to_numpy
from recbole_prune.scoring.probe import Probe, Scores, disagreement, effect, load_state, undisturbed

if TYPE_CHECKING:
    from pandas import DataFrame
    from recbole.config import Config
    from recbole.data.dataset import Dataset
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender


def export_ticket(
    folder: PathLike,
    *,
    model: AbstractRecommender,
    masks: Mapping[str, torch.Tensor],
    config: Config,
    dataset: Dataset,
    seen: Seen | None,
    info: Mapping[str, Any],
    values: str = "fp32",
    clip: str = "search",
    vectors: Wanted = AUTO,
    evaluate: Callable[[AbstractRecommender], Mapping[str, Any]] | None = None,
    forms: Mapping[str, TableForm] | None = None,
) -> dict[str, Any]:
    """Write the artifact of a trained ticket.

    Before the folder appears, the artifact as it stands on disk is decoded and scores a probe of users; it must agree
    with the model (``fp32``) or with the model under the rounded values (all others). The model, its caches
    and the random streams are left as they were.

    Args:
        folder: where to; an older artifact there is replaced.
        model: trained RecBole model with its masks applied.
        masks: name of a weight -> boolean mask of its shape, True is live; other weights are stored whole.
        config: the RecBole Config that built the model.
        dataset: the RecBole dataset with all interactions.
        seen: what each user has consumed (:func:`seen_by_users`); None where the data has no users and items.
        info: facts of the run, JSON only; must have ``model``, ``dataset`` and ``settings``, the latter as
            ``PruneConfig.plain_settings`` gives them.
        values: one of :data:`~recbole_prune.artifact.value_types.VALUE_TYPES`.
        clip: how ``int4`` finds the range of a row, one of :data:`~recbole_prune.artifact.int4.CLIPS`.
        vectors: whether the propagated user and item vectors are stored too, where the scores are their dot product;
            ``auto``: they or the graph of a model whose vectors are a mean of layers, whichever takes fewer bytes.
        evaluate: called with the model while it has the weights as they are stored; what it returns becomes part of
            ticket.json.
        forms: small forms of tables of the model, by name, which are stored in their place.

    Returns:
        the content of ticket.json.

    Raises:
        ArtifactError: the artifact would disagree with the model, or cannot be written.
        ValueError: ``info`` lacks a fact, or ``values`` is unknown.
    """
    missing = {"model", "dataset", "settings"} - set(info)
    if missing:
        raise ValueError(f"info lacks {sorted(missing)}")
    if values not in VALUE_TYPES:
        raise ValueError(f"values={values!r} is not one of {', '.join(VALUE_TYPES)}")
    with undisturbed(model):
        refresh(model)
        probe = Probe(model, config, dataset)
        reference = probe.scores(model)
        tensors, shared = _encode_weights(model, masks, values, clip, forms or {})
        decoded = {name: encoded.decode() for name, encoded in tensors.items()}
        load_state(model, {**decoded, **{name: decoded[owner] for name, owner in shared.items()}})
        rounded = probe.scores(model)
        found = evaluate(model) if evaluate else {}
        if values == "fp32":
            _require(disagreement(rounded, reference), "the decoded weights")
        dot, reason = find_dot_product(model, probe, rounded, decoded, dataset)
        weights = {**tensors, **{name: tensors[owner] for name, owner in shared.items()}}
        scored = Scored(model, weights, probe, rounded, seen)
        form = serving_form(scored, dot, reason, vectors, values, clip)
        dot = form.dot
        serving = None if dot is None else {"user": dot.user, "item": dot.item, "scale": dot.scale}
        tables = {**tensors, **form.vectors, **form.propagated}
        served = rounded if dot is None else scores_of(tables, dot, probe)
        return write_artifact(
            folder,
            tensors=tensors,
            shared=shared,
            vectors=form.vectors,
            graph=form.graph,
            users=_tokens(dataset, dataset.uid_field),
            items=_tokens(dataset, dataset.iid_field),
            seen=seen,
            tables=[name for name in tensors if name in {_owner(table, shared) for table in (*masks, *(forms or ()))}],
            document={
                **_plain({**info, **found}),
                "values": values,
                "effect": effect(served, reference),
                "serving": serving,
                "serving_reason": form.reason,
                **({} if form.choice is None else {"propagation": dict(form.choice)}),
            },
            check=lambda artifact: _check(artifact, decoded, form, probe, rounded),
        )


def explain_scoring(model: AbstractRecommender, config: Config, dataset: Dataset) -> str:
    """A sentence on whether pruned tables can make scoring faster for this model, and why.

    Args:
        model: RecBole model, trained or not; it is left as it was.
        config: the Config that built it.
        dataset: the RecBole dataset.
    """
    with undisturbed(model):
        refresh(model)
        probe = Probe(model, config, dataset)
        weights = {name: to_numpy(value) for name, value in model.state_dict().items()}
        dot, reason = find_dot_product(model, probe, probe.scores(model), weights, dataset)
    if dot is None:
        return f"not faster by masks alone: {reason}"
    if not dot.stored:
        return f"not faster: the propagated vectors {dot.user} and {dot.item} are dense whatever is pruned"
    return (
        f"can be faster at high sparsity: the scores are dot products of {dot.user} and {dot.item} as they are stored"
    )


def _plain(value: object) -> Any:
    """The value in JSON's types; a number that JSON does not know becomes null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


# ---- weights ---------------------------------------------------------------------------------------------------------


def _encode_weights(
    model: AbstractRecommender,
    masks: Mapping[str, torch.Tensor],
    values: str,
    clip: str,
    forms: Mapping[str, TableForm],
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Encode the ``state_dict``; a tensor with two names is stored under the first that has a mask, else the first."""
    state = model.state_dict()
    unknown = sorted({*masks, *forms} - set(state))
    if unknown:
        raise ArtifactError(f"mask {unknown[0]!r} fits no weight of {type(model).__name__}; it has {', '.join(state)}")
    if not state:
        raise ArtifactError(f"{type(model).__name__} has no weights to export")
    tensors: dict[str, StoredTensor] = {}
    owners = _owners(state, {*masks, *forms})
    for name in [name for name, owner in owners.items() if owner == name]:
        live = masks[name].cpu().numpy() if name in masks else None
        try:
            if name in forms:
                tensors[name] = forms[name].stored_by(partial(encode, values=values, clip=clip))
                continue
            tensors[name] = encode(to_numpy(state[name]), live, values, clip)
        except (ArtifactError, ValueError) as error:
            raise ArtifactError(f"{name} cannot be exported: {error}") from error
    return tensors, {name: owner for name, owner in owners.items() if owner != name}


def _owners(state: Mapping[str, torch.Tensor], masks: Collection[str]) -> dict[str, str]:
    """For each name the one under which its tensor is stored: the first that has a mask, else the first."""
    first: dict[object, str] = {}
    owners = {}
    for name in sorted(state, key=lambda name: name not in masks):
        tensor = state[name].detach()
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype) if tensor.numel() else name
        owners[name] = first.setdefault(place, name)
    return owners


def weight_bytes(
    model: AbstractRecommender,
    masks: Mapping[str, torch.Tensor],
    values: str,
    forms: Mapping[str, TableForm] | None = None,
) -> int:
    """Bytes of all weights in an artifact of the model under masks, as far as no live value is exactly 0.

    Args:
        model: trained or not, only shapes matter.
        masks, values, forms: as for :func:`export_ticket`.
    """
    state, forms = model.state_dict(), forms or {}
    total = 0
    for name in set(_owners(state, {*masks, *forms}).values()):
        if name in forms:
            total += forms[name].stored_by(partial(encode, values=values, clip="none")).nbytes
            continue
        tensor = to_numpy(state[name].detach())
        live = masks[name].cpu().numpy() if name in masks else np.ones(tensor.shape, dtype=bool)
        total += encode(live.astype(tensor.dtype), live, values, clip="none").nbytes
    return total


def _owner(name: str, shared: Mapping[str, str]) -> str:
    return shared.get(name, name)


# ---- checks ----------------------------------------------------------------------------------------------------------


def _check(artifact: Artifact, decoded: Mapping[str, Array], form: ServingForm, probe: Probe, expected: Scores) -> None:
    """Refuse an artifact that, read back from disk, is not the model that was scored."""
    for name, array in decoded.items():
        if artifact.tensor(name).tobytes() != array.tobytes():
            raise ArtifactError(f"refused to write the artifact: {name} is read back with other values")
    if form.dot is None:
        return
    tables = {**artifact.tensors, **artifact.vectors}
    rounding = _rounding(artifact, form.dot, probe) if form.vectors else 0.0
    _require(disagreement(scores_of(tables, form.dot, probe), expected, rounding), f"the stored {form.what}")
    for name, table in form.exact.items():
        if is_beyond_rounding(artifact.vectors[name], table):
            raise ArtifactError(f"refused to write the artifact: {name} is read back beyond its rounding")


def _rounding(artifact: Artifact, dot: DotProduct, probe: Probe) -> Array:
    """How far rounded propagated vectors may move each score; weights are compared under the same rounding."""
    user, item = artifact.vectors[dot.user], artifact.vectors[dot.item]
    users, items = np.abs(user.decode()[probe.users]), np.abs(item.decode()).T
    user_error, item_error = user.rounding_error()[probe.users], item.rounding_error().T
    return np.asarray(abs(dot.scale) * (user_error @ items + users @ item_error + user_error @ item_error))


def _require(difference: float, what: str) -> None:
    if difference:
        raise ArtifactError(
            f"refused to write the artifact: scores from {what} differ from the model's by up to {difference:.3g}"
        )


# ---- dataset ---------------------------------------------------------------------------------------------------------


def _tokens(dataset: Dataset, field: str | None) -> list[str] | None:
    return [str(token) for token in dataset.field2id_token[field]] if field else None


def seen_by_users(dataset: Dataset, config: Config) -> Seen | None:
    """What each user has consumed, of a dataset that RecBole has read but not built yet; None without users and items.

    Building turns the interactions of sequential models into sequences, in which users with only one are lost.
    RecBole has both fields or neither.
    """
    feature = dataset.inter_feat
    if not dataset.uid_field or not dataset.iid_field:
        return None
    users, items = (_column(feature, field) for field in (dataset.uid_field, dataset.iid_field))
    list_field = f"{dataset.iid_field}{config['LIST_SUFFIX']}"
    if list_field in feature:  # the files hold sequences already (benchmark_filename)
        lists = [np.asarray(sequence) for sequence in feature[list_field]]
        users = np.concatenate([users, np.repeat(users, [len(sequence) for sequence in lists])])
        items = np.concatenate([items, *lists])
    return Seen.from_pairs(users, items, dataset.user_num)


def _column(feature: Interaction | DataFrame, field: str) -> NDArray[np.int64]:
    return np.asarray(feature[field]).astype(np.int64)
