"""What some users tell of all: a sample of them, and totals with their range."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lightmem_core.types import Message, stable_id

RESAMPLES = 2_000
RANGE = (2.5, 97.5)  # percentiles: a small sample knows too little of the large users


class Estimate(NamedTuple):
    """A total that is `expected`, within `low` and `high`."""

    expected: float
    low: float
    high: float

    def times(self, factor: float, spread: float = 0) -> Estimate:
        """`factor` is itself a guess: it may be 1 + `spread` times as large, or as small."""
        return Estimate(
            self.expected * factor,
            self.low * factor / (1 + spread),
            self.high * factor * (1 + spread),
        )

    def or_more(self, other: Estimate) -> Estimate:
        return Estimate(*map(max, self, other))


class Sample:
    """All messages of some users, and the size (in characters) of every user, in one pass.

    Whoever has the lowest hashes is in it, wherever in the input: the same users each time.
    """

    def __init__(self, users: int):
        self.users = users
        self.messages = 0
        self.sizes: dict[str, int] = {}
        self.kept: dict[str, list[Message]] = {}
        self._ranks: list[tuple[int, str]] = []  # a heap, the highest hash first

    def add(self, message: Message) -> None:
        self.messages += 1
        user = message.user_id
        if user not in self.sizes:
            self.sizes[user] = 0
            self._meet(user)
        self.sizes[user] += len(message.content)
        if user in self.kept:
            self.kept[user].append(message)

    def _meet(self, user: str) -> None:
        rank = (-int(stable_id("sample", user), 16), user)
        if len(self.kept) < self.users:
            heapq.heappush(self._ranks, rank)
        elif rank > self._ranks[0]:
            del self.kept[heapq.heapreplace(self._ranks, rank)[1]]
        else:
            return
        self.kept[user] = []


class Estimator:
    """Totals over all users, from what was found of each sampled one: what there is of a thing for
    each character, times all characters. The range is that of samples drawn anew from the sample;
    it shrinks as this comes to hold everyone."""

    def __init__(self, rows: Sequence[Mapping[str, float]], sample: Sample):
        self.rows = rows
        self.sizes = np.array([row["size"] for row in rows], np.float64)
        self.all = float(sum(sample.sizes.values()))
        left_out = 1 - len(rows) / len(sample.sizes)
        self.shrink = float(np.sqrt(left_out))
        draws = np.random.default_rng(0).integers(0, len(rows), (RESAMPLES, len(rows)))
        self.draws = draws if left_out else draws[:1]

    def total(self, name: str) -> Estimate:
        values = np.array([row[name] for row in self.rows], np.float64)
        expected = values.sum() / max(self.sizes.sum(), 1) * self.all
        sizes = np.maximum(self.sizes[self.draws].sum(axis=1), 1)
        totals = values[self.draws].sum(axis=1) / sizes * self.all
        low, high = np.percentile(expected + (totals - expected) * self.shrink, RANGE)
        return Estimate(float(expected), min(float(low), expected), max(float(high), expected))
