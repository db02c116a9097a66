"""Batches of similar length: the model's time goes into tokens, not into padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

BATCH_TOKENS = 4096


def length_batches(lengths: Sequence[int], budget: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Yield row numbers, shortest first, so that no batch holds over `budget` padded tokens."""
    rows: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda r: lengths[r]):
        if rows and (len(rows) + 1) * lengths[row] > budget:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


def split_windows(items: Sequence[Sequence[T]], size: int) -> tuple[list[int], list[Sequence[T]]]:
    """Cut each sequence into pieces of at most `size`; return the owner of each piece, and them.

    An empty sequence gives one empty piece.
    """
    owners, pieces = [], []
    for owner, item in enumerate(items):
        for start in range(0, max(len(item), 1), size):
            owners.append(owner)
            pieces.append(item[start : start + size])
    return owners, pieces
