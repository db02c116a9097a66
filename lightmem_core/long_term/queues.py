"""Update queues: Q(i) = top-k { j : j later than i, sim(v_i, v_j) >= theta }, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np

BLOCK = 256  # rows of the similarity matrix held at a time, fewer where they are long:
CELLS = 1 << 23  # values of it held at a time
T = TypeVar("T")

Queue = tuple[int, list[tuple[int, float]]]


def update_queues(
    vectors: np.ndarray, k: int, theta: float, device: str | None = None
) -> Iterator[Queue]:
    """Yield (i, [(j, similarity), ...]) for each row with a queue, most similar first.

    `vectors`: unit length, float32, shape (n, dim), in the order of the entries; only j > i can
    stand in the queue of i, so that no two entries queue each other. Equal similarities are
    ordered by j. Memory grows with n, not with its square.

    `device` is torch's; none is numpy, which no torch on the CPU outruns, and which takes over
    where the device has no memory left. Each rounds its products in its own way: pairs closer
    than 1e-6 to theta, or to each other, may change places between them.
    """
    rows = max(1, min(BLOCK, CELLS // max(len(vectors), 1)))
    moved = None if device is None else _with_room(partial(_moved, vectors, device))
    for start in range(0, len(vectors), rows):
        found = None
        if moved is not None:
            found = _with_room(partial(_found, moved, slice(start, start + rows), (k, theta)))
        if found is None:
            moved = None
            found = _select(vectors[start : start + rows] @ vectors[start:].T, k, theta)
        yield from _queues(start, len(vectors) - start, *found)


def _queues(
    start: int, width: int, places: np.ndarray, similarities: np.ndarray
) -> Iterator[Queue]:
    """The queues of a block that begins at entry `start`, from its pairs in row order."""
    rows, columns = np.divmod(places, width)
    order = np.lexsort((-similarities, rows))
    later = (columns[order] + start).tolist()
    found = similarities[order].tolist()
    begin = 0
    for i, count in enumerate(np.bincount(rows).tolist(), start):
        if count:
            end = begin + count
            yield i, list(zip(later[begin:end], found[begin:end], strict=True))
            begin = end


def _select(block: np.ndarray, k: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """The places in a flattened block of what its queues hold, ascending, and the values there."""
    hits = block >= theta
    hits[:, : len(block)] = np.triu(hits[:, : len(block)], 1)
    crowded = np.flatnonzero(np.count_nonzero(hits, axis=1) > k)
    if len(crowded):
        values = np.where(hits[crowded], block[crowded], np.float32(-np.inf))
        hits[crowded] = _largest(values, k)
    places = np.flatnonzero(hits)
    return places, block.ravel()[places]


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """Mark the k largest of each row; of equal ones the first."""
    place = values.shape[1] - k
    least = np.partition(values, place, axis=1)[:, [place]]
    marked = values >= least
    excess = np.count_nonzero(marked, axis=1) - k
    for row in np.flatnonzero(excess):
        equal = np.flatnonzero(values[row] == least[row])
        marked[row, equal[-excess[row] :]] = False
    return marked


def _select_on(block: Any, k: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """As `_select`, for a block on a torch device."""
    import torch

    block.masked_fill_(block < theta, -torch.inf)
    square = block[:, : len(block)]
    square.masked_fill_(torch.ones_like(square, dtype=torch.bool).tril(), -torch.inf)
    least = block.topk(min(k, block.shape[1]), dim=1).values[:, -1:]
    larger, equal = block > least, (block == least) & block.isfinite()
    room = k - larger.sum(dim=1, keepdim=True)
    marked = larger | equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room)
    places = marked.flatten().nonzero()[:, 0]
    return places.cpu().numpy(), block.flatten()[places].cpu().numpy()


def _found(moved: Any, rows: slice, asked: tuple[int, float]) -> tuple[np.ndarray, np.ndarray]:
    return _select_on(moved[rows] @ moved[rows.start :].T, *asked)


def _with_room(work: Callable[[], T]) -> T | None:
    """What work on a device gives; None if it lacks the memory."""
    import torch

    try:
        return work()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def _moved(vectors: np.ndarray, device: str) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(vectors)).to(device)
