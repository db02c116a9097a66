"""Batches of similar length: the model's time goes into tokens, not into padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

WASTE = 0.08  # of a batch may be padding
BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}


def batch_budget(device: str, given: int | None = None) -> int:
    """How many tokens, with their padding, a batch on a device may hold: those `given`, if any."""
    if given is None:
        return BATCH_TOKENS.get(device.partition(":")[0], BATCH_TOKENS["cpu"])
    if given < 1:
        raise ValueError(f"batch_tokens must be at least 1, got {given}")
    return given


def length_batches(
    lengths: Sequence[int], budget: int, waste: float = WASTE
) -> Iterator[list[int]]:
    """Yield row numbers, shortest first, so that no batch holds over `budget` padded tokens, and
    no more than the share `waste` of them is padding."""
    rows: list[int] = []
    tokens = 0
    for row in sorted(range(len(lengths)), key=lambda r: lengths[r]):
        padded = (len(rows) + 1) * lengths[row]
        wasted = padded - tokens - lengths[row]
        if rows and (padded > budget or wasted > waste * padded):
            yield rows
            rows, tokens = [], 0
        rows.append(row)
        tokens += lengths[row]
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
