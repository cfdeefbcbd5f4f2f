"""The best columns of every row of a score matrix that is never there as a whole, and the best rows of every column.

And what several lists rank best together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from logging import getLogger
from time import monotonic

import numpy as np
import torch

from recbole_prune.data.used_ids import UsedIds
from recbole_prune.errors import ConfigError
from recbole_prune.scoring.ranking import scores_at_once, top_k
from recbole_prune.sparse.best_products import ProductSearch, Wanted, are_finite, longest
from recbole_prune.sparse.compiling import available

# scores of some rows [n, columns], for their ids [n]
Score = Callable[[torch.Tensor], torch.Tensor]
Ranked = tuple[np.ndarray, np.ndarray]

# ids [n, width] of some rows, and what each counts
Entries = Callable[[slice], tuple[torch.Tensor, torch.Tensor]]

_ENTRIES_AT_ONCE = 1 << 21
_FEWEST_ROWS = 32
_SECONDS_BETWEEN_LINES = 20.0


def best_of_rows(
    score: Score, excluded: UsedIds, length: int, what: str, device: torch.device, ids: np.ndarray
) -> Ranked:
    """The best columns of every row.

    Args:
        score: gives the scores of some rows.
        excluded: the columns of each row that are not ranked; column 0 is padding and never is.
        length: how many to keep.
        what: the lists, for the log and for messages.
        device: where the scores are.
        ids: the rows that have scores, ascending; row 0, padding, is not among them.

    Returns:
        (columns int32, scores float32), each ``[rows, length]``, best first, lower ids first among equal scores; -1 and
        0 behind the end of a list.

    Raises:
        ConfigError: a score is NaN or infinite.
    """
    rows, columns = excluded.key_count, excluded.value_count
    found = np.full((rows, length), -1, np.int32), np.zeros((rows, length), np.float32)
    for some, scores in _chunks(score, excluded, what, device, ids):
        best, places = top_k(scores, min(length, columns))
        for table, part in zip(found, _in_order(best, places)):
            table[some, : part.shape[1]] = part.cpu().numpy()
    return found


def best_of_products(
    vectors: torch.Tensor, table: torch.Tensor, excluded: UsedIds, length: int, what: str, ids: np.ndarray
) -> Ranked:
    """:func:`best_of_rows` by the products of vectors ``[rows, width]`` with a table ``[columns, width]``."""
    sides = vectors.detach(), table.detach()[: excluded.value_count]
    on_cpu = all(side.device.type == "cpu" and side.dtype == torch.float32 for side in sides)
    if not (on_cpu and available() and are_finite(sides[0].numpy(), longest(sides[1].numpy()))):
        return best_of_rows(lambda some: sides[0][some] @ sides[1].t(), excluded, length, what, vectors.device, ids)
    seen = excluded.codes % excluded.value_count
    wanted = Wanted(sides[0].numpy()[ids], excluded.offsets[ids], excluded.offsets[ids + 1], seen)
    best = ProductSearch(sides[1].numpy()).top_k(wanted, length, torch.get_num_threads())
    found = np.full((len(vectors), length), -1, np.int32), np.zeros((len(vectors), length), np.float32)
    found[0][ids], found[1][ids] = best.items, np.where(best.items < 0, np.float32(0), best.scores)
    return found


def best_of_listed(
    score: Score, listed: UsedIds, length: int, what: str, device: torch.device, ids: np.ndarray
) -> Ranked:
    """The best columns of every row among those that ``listed`` has for it; as :func:`best_of_rows` otherwise."""
    columns, nothing = listed.value_count, np.empty(0, np.int64)
    found = np.full((listed.key_count, length), -1, np.int32), np.zeros((listed.key_count, length), np.float32)
    none = UsedIds(nothing, nothing, listed.key_count, columns)
    for some, scores in _chunks(score, none, what, device, ids):
        codes = torch.from_numpy(_codes(listed, some)).to(device)
        kept = torch.full_like(scores, -torch.inf)
        kept.view(-1)[codes] = scores.view(-1)[codes]
        for table, part in zip(found, _in_order(*kept.topk(min(length, columns), dim=1))):
            table[some, : part.shape[1]] = part.cpu().numpy()
    return found


def best_of_groups(
    score: Score,
    excluded: UsedIds,
    length: int,
    what: str,
    device: torch.device,
    ids: np.ndarray,
    groups: Sequence[np.ndarray],
) -> np.ndarray:
    """The best columns of each group for every row; as :func:`best_of_rows` otherwise.

    Args:
        groups: ids of the columns of each group, ascending; the other arguments are those of :func:`best_of_rows`.

    Returns:
        columns int32 ``[rows, groups, length]``.
    """
    found = np.full((excluded.key_count, len(groups), length), -1, np.int32)
    for some, scores in _chunks(score, excluded, what, device, ids):
        for number, members in enumerate(groups):
            columns = torch.from_numpy(members).to(device)
            best, places = scores[:, columns].topk(min(length, len(members)), dim=1)
            ordered = _in_order(best, places)[0].cpu().numpy()
            found[some, number, : ordered.shape[1]] = np.where(ordered < 0, -1, members[ordered])
    return found


def split_by_groups(lists: np.ndarray, groups: Sequence[np.ndarray]) -> np.ndarray:
    """The members of each group in lists ``[n, length]``, in their order, ``[n, groups, length]``; -1 behind them."""
    found = np.full((len(lists), len(groups), lists.shape[1]), -1, lists.dtype)
    for number, members in enumerate(groups):
        outside = ~np.isin(lists, members)
        order = outside.argsort(axis=1, kind="stable")
        found[:, number] = np.take_along_axis(np.where(outside, -1, lists), order, axis=1)
    return found


def best_of_columns(
    score: Score, excluded: UsedIds, length: int, what: str, device: torch.device, ids: np.ndarray
) -> Ranked:
    """The best rows of every column, in one pass over the rows; as :func:`best_of_rows` otherwise.

    It holds ``[columns, length]`` numbers, and merges the scores of some rows into them.
    """
    columns = excluded.value_count
    best = torch.full((columns, length), -torch.inf, device=device)
    places = torch.full((columns, length), -1, dtype=torch.int32, device=device)
    for some, scores in _chunks(score, excluded, what, device, ids):
        together = torch.cat([best, scores.t()], dim=1)
        numbers = torch.from_numpy(some).to(device, torch.int32).expand(columns, -1)
        best, kept = together.topk(length, dim=1)
        places = torch.cat([places, numbers], dim=1).gather(1, kept)
    best[0] = -torch.inf
    ordered, scores = _in_order(best, places)
    return ordered.cpu().numpy(), scores.cpu().numpy()


def best_of_sums(entries: Entries, rows: int, width: int, length: int, nothing: int) -> Ranked:
    """The ids of the largest sums of what is said of them, row by row.

    Args:
        entries: gives ids ``[n, width]`` of some rows, and what each counts; sums are taken in their order.
        rows: how many there are.
        width: entries of a row.
        length: how many ids to keep.
        nothing: an id that stands for none.

    Returns:
        (ids int32, sums float32), each ``[rows, length]``, best first, lower ids first among equal sums; ``nothing``
        and 0 behind the end.
    """
    found = np.full((rows, length), nothing, np.int32), np.zeros((rows, length), np.float32)
    step = max(1, _ENTRIES_AT_ONCE // max(1, width))
    for start in range(0, rows, step):
        some = slice(start, min(start + step, rows))
        for table, part in zip(found, _summed(*entries(some), nothing)):
            table[some, : part.shape[1]] = part[:, :length].numpy()
    return found


def _summed(ids: torch.Tensor, values: torch.Tensor, nothing: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every id of a row once with the sum of its values, largest first; ``nothing`` and 0 behind them."""
    ids, order = ids.sort(dim=1, stable=True)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    groups = first.cumsum(1) - 1
    sums = torch.zeros_like(values).scatter_add_(1, groups, values.gather(1, order))
    named = torch.full_like(ids, nothing).scatter_(1, groups, ids)
    sums, places = sums.masked_fill(named == nothing, -torch.inf).sort(dim=1, descending=True, stable=True)
    return named.gather(1, places), sums.masked_fill(sums == -torch.inf, 0.0)


def _chunks(
    score: Score, excluded: UsedIds, what: str, device: torch.device, ids: np.ndarray
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Ids of some rows, and their scores with minus infinity where nothing is ranked."""
    step, said = max(_FEWEST_ROWS, scores_at_once(device) // excluded.value_count), monotonic()
    for start in range(0, len(ids), step):
        some = ids[start : start + step]
        scores = score(torch.from_numpy(some).to(device)).detach().to(device, torch.float32)
        scores = scores.clone(memory_format=torch.contiguous_format)
        scores[:, 0] = 0.0  # some models score padding as minus infinity
        _check_finite(scores, what, some)
        scores[:, 0] = -torch.inf
        scores.view(-1)[torch.from_numpy(_codes(excluded, some)).to(device)] = -torch.inf
        yield some, scores
        if monotonic() - said > _SECONDS_BETWEEN_LINES:
            said = monotonic()
            getLogger("recbole_prune").info(f"{what}: {start + len(some)} of {len(ids)}")


def _codes(excluded: UsedIds, ids: np.ndarray) -> np.ndarray:
    """Where the excluded entries stand in the flat scores of some rows."""
    codes = excluded.codes[excluded.offsets[ids[0]] : excluded.offsets[ids[-1] + 1]]
    keys, values = np.divmod(codes, excluded.value_count)
    rows = np.searchsorted(ids, keys)
    present = ids[rows] == keys
    places: np.ndarray = rows * excluded.value_count + values
    found: np.ndarray = places[present]
    return found


def _check_finite(scores: torch.Tensor, what: str, ids: np.ndarray) -> None:
    # NaN is the least and the largest of all
    if not scores.numel() or bool(torch.stack(scores.aminmax()).isfinite().all()):
        return
    wrong = ~scores.isfinite()
    row = ids[int(wrong.any(1).nonzero()[0])]
    raise ConfigError(
        f"{what}: {int(wrong.sum())} of {wrong.numel()} scores are NaN or infinite, the first of internal id {row}"
    )


def _in_order(best: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and scores, largest first, lower positions first among equal scores, the end of each list marked."""
    places, order = places.to(torch.int32).sort(dim=1)
    best, by_score = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    ended = best == -torch.inf
    return places.gather(1, by_score).masked_fill(ended, -1), best.masked_fill(ended, 0.0)
