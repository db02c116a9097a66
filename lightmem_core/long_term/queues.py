"""Update queues: Q(i) = top-k { j : j later than i, sim(v_i, v_j) >= theta }, exactly."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK = 512  # rows of the similarity matrix held at a time


def update_queues(
    vectors: np.ndarray, k: int, theta: float
) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    """Yield (i, [(j, similarity), ...]) for each row with a queue, most similar first.

    `vectors`: unit length, float32, shape (n, dim), in the order of the entries; only j > i can
    stand in the queue of i, so that no two entries queue each other. Equal similarities are
    ordered by j. Memory is BLOCK x n.
    """
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK] @ vectors[start:].T
        rows, columns = np.nonzero(block >= theta)
        later = columns > rows
        rows, columns = rows[later], columns[later]
        order = np.lexsort((columns, -block[rows, columns], rows))
        rows, columns = rows[order], columns[order]
        similarities = block[rows, columns]
        ends = np.flatnonzero(np.diff(rows, append=-1)) + 1
        begin = 0
        for end in ends.tolist():
            top = slice(begin, min(end, begin + k))
            queue = zip((columns[top] + start).tolist(), similarities[top].tolist(), strict=True)
            yield int(rows[begin]) + start, list(queue)
            begin = end
