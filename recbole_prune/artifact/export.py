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
from recbole_prune.artifact.encoding import Array, EncodedTensor, encode
from recbole_prune.artifact.files import Seen
from recbole_prune.artifact.forms import StoredTensor, TableForm
from recbole_prune.artifact.value_types import VALUE_TYPES
from recbole_prune.errors import ArtifactError
from recbole_prune.scoring.dot_product import DotProduct, find_dot_product, to_numpy
from recbole_prune.scoring.probe import Probe, Scores, disagreement, effect, load_state, undisturbed
from recbole_prune.sparse.dense_top_k import score_users

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
    vectors: bool = False,
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
        vectors: also store the propagated user and item vectors, where the scores are their dot product.
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
        propagated: dict[str, Array] = {}
        if dot is not None and not dot.stored:
            if vectors:
                propagated = _propagated_vectors(model, dot, dataset.item_num)
            else:
                reason, dot = _say_not_stored(dot), None
        extra = _encode_vectors(propagated, values, clip)
        serving = None if dot is None else {"user": dot.user, "item": dot.item, "scale": dot.scale}
        served = rounded if dot is None else _serve({**tensors, **extra}, dot, probe)
        return write_artifact(
            folder,
            tensors=tensors,
            shared=shared,
            vectors=extra,
            users=_tokens(dataset, dataset.uid_field),
            items=_tokens(dataset, dataset.iid_field),
            seen=seen,
            tables=[name for name in tensors if name in {_owner(table, shared) for table in (*masks, *(forms or ()))}],
            document={
                **_plain({**info, **found}),
                "values": values,
                "effect": effect(served, reference),
                "serving": serving,
                "serving_reason": reason,
            },
            check=lambda artifact: _check(artifact, decoded, propagated, dot, probe, rounded),
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


# ---- what serves -----------------------------------------------------------------------------------------------------


def _say_not_stored(dot: DotProduct) -> str:
    return (
        f"the scores are dot products of propagated vectors ({dot.user}, {dot.item}) that are not stored: "
        "export again with --export_vectors=True, or use load_ticket()"
    )


def _propagated_vectors(model: AbstractRecommender, dot: DotProduct, items: int) -> dict[str, Array]:
    """Propagated vectors, which are dense, by name; an entity table is cut down to its items."""
    users_table, items_table = (to_numpy(getattr(model, name)) for name in (dot.user, dot.item))
    return {dot.user: users_table, dot.item: items_table[:items]}


def _encode_vectors(tables: Mapping[str, Array], values: str, clip: str) -> dict[str, EncodedTensor]:
    return {name: encode(table, values=values, clip=clip) for name, table in tables.items()}


def _serve(tables: Mapping[str, StoredTensor], dot: DotProduct, probe: Probe) -> Scores:
    """Scores of the probe from encoded tables, by the code that serves them."""
    vectors, table = tables[dot.user].decode()[probe.users], tables[dot.item].decode()
    return score_users(vectors, table, 0, len(probe.items), dot.scale).astype(np.float64)


# ---- checks ----------------------------------------------------------------------------------------------------------


def _check(
    artifact: Artifact,
    decoded: Mapping[str, Array],
    propagated: Mapping[str, Array],
    dot: DotProduct | None,
    probe: Probe,
    expected: Scores,
) -> None:
    """Refuse an artifact that, read back from disk, is not the model that was scored."""
    for name, array in decoded.items():
        if artifact.tensor(name).tobytes() != array.tobytes():
            raise ArtifactError(f"refused to write the artifact: {name} is read back with other values")
    if dot is None:
        return
    tables = {**artifact.tensors, **artifact.vectors}
    _require(disagreement(_serve(tables, dot, probe), expected, _rounding(artifact, dot, probe)), "the stored vectors")
    for name, table in propagated.items():
        stored = artifact.vectors[name]
        if (np.abs(stored.decode().astype(np.float64) - table) > stored.rounding_error()).any():
            raise ArtifactError(f"refused to write the artifact: {name} is read back beyond its rounding")


def _rounding(artifact: Artifact, dot: DotProduct, probe: Probe) -> Array | float:
    """How far rounded propagated vectors may move each score; weights are compared under the same rounding."""
    if dot.stored:
        return 0.0
    user, item = artifact.vectors[dot.user], artifact.vectors[dot.item]
    users, items = np.abs(user.decode()[probe.users]), np.abs(item.decode()).T
    user_error, item_error = user.rounding_error()[probe.users], item.rounding_error().T
    return abs(dot.scale) * np.asarray(user_error @ items + users @ item_error + user_error @ item_error)


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
