"""Other ways to the best items of many users, to be timed beside :class:`recbole_prune.serving.Recommender`.

All take dense float32 tables; all but ``faiss, seen kept`` leave out what a user has seen. Names start with the package
that is needed. Each gets its data in the form that it likes best and blocks of a size that suits it; item 0 (padding)
must be among every user's seen items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# scores of a block: 4 Mi of 4 bytes, the fastest of 1 to 64 Mi for torch on gowalla
_SCORES_AT_ONCE = 1 << 22


def torch_top_k(
    users: Array, items: Array, k: int, seen_pointers: Array, seen_items: Array, threads: int = 1
) -> NDArray[np.int64]:
    """``torch.topk`` of matrix products, block by block.

    Args:
        users: float32, shape ``[users, width]``.
        items: float32, shape ``[items, width]``.
        k: length of a list.
        seen_pointers: shape ``[users + 1]``, into ``seen_items``: ids that are left out.
        threads: for the whole computation.

    Returns:
        item ids from the best on, shape ``[users, k]``; -1 where fewer than k are left.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            user_table, item_table = torch.from_numpy(users), torch.from_numpy(items)
            found = torch.empty((len(users), k), dtype=torch.int64)
            step = max(1, _SCORES_AT_ONCE // len(items))
            for start in range(0, len(users), step):
                scores = user_table[start : start + step] @ item_table.T
                rows, seen = _seen_of_block(seen_pointers, seen_items, start, len(scores))
                scores[torch.from_numpy(rows), torch.from_numpy(seen)] = -torch.inf
                best, ids = torch.topk(scores, k)
                found[start : start + step] = ids.masked_fill_(best == -torch.inf, -1)
    finally:
        torch.set_num_threads(before)
    return np.asarray(found.numpy())


def _seen_of_block(pointers: Array, items: Array, start: int, size: int) -> tuple[Array, Array]:
    counts: Array = np.diff(pointers[start : start + size + 1].astype(np.int64))
    return np.repeat(np.arange(size), counts), items[pointers[start] : pointers[start + size]].astype(np.int64)


def faiss_top_k(
    users: Array, items: Array, k: int, seen_pointers: Array, seen_items: Array, threads: int = 1
) -> NDArray[np.int64]:
    """FAISS's flat index of inner products; arguments and result as :func:`torch_top_k`.

    Flat search cannot leave out items of one user: it is asked for as many more as the user has seen, users with about
    equally many seen items together, and the seen ones are dropped.

    Raises:
        ImportError: faiss is not installed.
    """
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        index = faiss.IndexFlatIP(items.shape[1])
        index.add(items)
        counts = np.diff(seen_pointers.astype(np.int64))
        order = np.argsort(counts, kind="stable")
        found = np.full((len(users), k), -1, dtype=np.int64)
        step = max(1, len(users) // 64)
        for start in range(0, len(users), step):
            chosen = order[start : start + step]
            wanted = min(len(items), k + int(counts[chosen].max()))
            found[chosen] = _without_seen(index.search(users[chosen], wanted)[1], chosen, k, seen_pointers, seen_items)
    finally:
        faiss.omp_set_num_threads(before)
    return found


def faiss_with_seen(
    users: Array, items: Array, k: int, seen_pointers: Array, seen_items: Array, threads: int = 1
) -> NDArray[np.int64]:
    """FAISS's flat index asked for k items only, seen ones among them: less than what the others do.

    Raises:
        ImportError: faiss is not installed.
    """
    nothing = np.zeros(0, dtype=np.int64)
    return faiss_top_k(users, items, k, np.zeros(len(users) + 1, dtype=np.int64), nothing, threads)


def _without_seen(listed: Array, users: Array, k: int, pointers: Array, seen_items: Array) -> Array:
    """The first k of each row that the user has not seen; -1 where there are fewer."""
    kept = np.full((len(users), k), -1, dtype=np.int64)
    for row, user in enumerate(users):
        unseen = listed[row][~np.isin(listed[row], seen_items[pointers[user] : pointers[user + 1]])][:k]
        kept[row, : len(unseen)] = unseen
    return kept


def implicit_top_k(
    users: Array, items: Array, k: int, seen_pointers: Array, seen_items: Array, threads: int = 1
) -> NDArray[np.int64]:
    """The top-k of the package ``implicit`` on the CPU; arguments and result as :func:`torch_top_k`.

    Its matrix product uses as many BLAS threads as the process was started with.

    Raises:
        ImportError: implicit is not installed.
    """
    from implicit.cpu.topk import topk
    from scipy.sparse import csr_matrix

    ones = np.ones(len(seen_items), dtype=np.float32)
    seen = csr_matrix(
        (ones, seen_items.astype(np.int32), seen_pointers.astype(np.int32)), shape=(len(users), len(items))
    )
    found, scores = topk(items, users, k, filter_query_items=seen, num_threads=threads)
    return np.where(scores == np.finfo(np.float32).min, -1, found).astype(np.int64)  # the score it gives seen items


RIVALS: dict[str, Callable[..., NDArray[np.int64]]] = {
    "torch": torch_top_k,
    "faiss": faiss_top_k,
    "faiss, seen kept": faiss_with_seen,
    "implicit": implicit_top_k,
}
