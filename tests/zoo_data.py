"""A small data set with every kind of atomic file: a cut of RecBole's bundled ml-100k and generated files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd

DATASET = "tiny"
ENTITY_WIDTH = 16

_SEED = 2020
_USERS = 120
_ITEMS = 240
_UNLINKED_ITEMS = 5
_ATTRIBUTES = 60
_RELATIONS = 6
_TRIPLES_PER_ITEM = 4


def make_dataset(folder: Path) -> None:
    """Write the data set ``tiny`` into ``folder / "tiny"``; the same bytes on every call.

    Users with 25 to 60 ratings of the 240 most rated films: 120 users and 4 855 interactions, with the features
    of ml-100k (one empty token cell in each feature file, one empty sequence cell). Knowledge graph, links and the
    vectors of entities and relations are generated; five items have no entity.

    Args:
        folder: what RecBole is given as ``data_path``; it is made if missing.
    """
    target = folder / DATASET
    target.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(_SEED)
    interactions = _cut_interactions(random)
    users, items = interactions["user_id:token"].unique(), interactions["item_id:token"].unique()
    _write(interactions, target, "inter")
    _write(_cut_features("user", users, blank=["age:token"]), target, "user")
    _write(_cut_features("item", items, blank=["release_year:token", "class:token_seq"]), target, "item")

    linked = list(items[_UNLINKED_ITEMS:])
    entities = [f"m.{item}" for item in linked]
    attributes = [f"m.x{number}" for number in range(_ATTRIBUTES)]
    relations = [f"film.relation.{number}" for number in range(_RELATIONS)]
    _write(pd.DataFrame({"item_id:token": linked, "entity_id:token": entities}), target, "link")
    _write(_generate_triples(random, entities, attributes, relations), target, "kg")
    _write(_generate_vectors(random, "ent", entities + attributes), target, "ent")
    _write(_generate_vectors(random, "rel", relations), target, "rel")


def _read(suffix: str) -> pd.DataFrame:
    package = importlib.util.find_spec("recbole")
    if package is None or package.origin is None:
        raise RuntimeError("RecBole is not installed, its bundled ml-100k is needed")
    file = Path(package.origin).parent / "dataset_example" / "ml-100k" / f"ml-100k.{suffix}"
    return pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)


def _write(frame: pd.DataFrame, target: Path, suffix: str) -> None:
    with open(target / f"{DATASET}.{suffix}", "w", encoding="utf-8") as file:
        frame.to_csv(file, sep="\t", index=False)


def _cut_interactions(random: np.random.Generator) -> pd.DataFrame:
    frame = _read("inter")
    ratings_per_item = frame["item_id:token"].value_counts().rename_axis("item").reset_index(name="count")
    # the token breaks ties, so that the choice does not depend on the version of pandas
    items = ratings_per_item.sort_values(["count", "item"], ascending=[False, True])["item"].head(_ITEMS)
    frame = frame[frame["item_id:token"].isin(set(items))]
    ratings_per_user = frame.groupby("user_id:token").size()
    candidates = np.array(sorted(ratings_per_user[ratings_per_user.between(25, 60)].index), dtype=object)
    users = random.choice(candidates, size=_USERS, replace=False)
    return frame[frame["user_id:token"].isin(set(users))].reset_index(drop=True)


def _cut_features(suffix: str, tokens: np.ndarray, blank: list[str]) -> pd.DataFrame:
    """The feature rows of ``tokens``; one cell of each column in ``blank`` is emptied, in different rows."""
    frame = _read(suffix)
    frame = frame[frame[f"{suffix}_id:token"].isin(set(tokens))].reset_index(drop=True)
    for row, column in enumerate(blank):
        frame.loc[row, column] = ""
    return frame


def _generate_triples(
    random: np.random.Generator, entities: list[str], attributes: list[str], relations: list[str]
) -> pd.DataFrame:
    """Each entity of an item has relations to attributes, each attribute to one other entity."""
    heads = [head for head in entities for _ in range(_TRIPLES_PER_ITEM)]
    tails = list(random.choice(attributes, size=len(heads)))
    heads, tails = heads + attributes, tails + list(random.choice(entities, size=len(attributes)))
    kinds = list(random.choice(relations, size=len(heads)))
    frame = pd.DataFrame({"head_id:token": heads, "relation_id:token": kinds, "tail_id:token": tails})
    return frame.drop_duplicates(ignore_index=True)


def _generate_vectors(random: np.random.Generator, name: str, tokens: list[str]) -> pd.DataFrame:
    vectors = random.normal(scale=0.1, size=(len(tokens), ENTITY_WIDTH))
    cells = [" ".join(f"{value:.6f}" for value in vector) for vector in vectors]
    return pd.DataFrame({f"{name}_id:token": tokens, f"{name}_emb:float_seq": cells})
