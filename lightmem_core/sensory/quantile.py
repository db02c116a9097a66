"""Which words are above the quantile of their text, for many texts at once.

A model's values differ in their last bits with the shape of its batch. A choice that could hang on
them is named as unsure, so that it can be made anew from values that do not depend on the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Scored:
    """The words of `groups` texts: values, weights in tokens, and the group of each, ascending."""

    values: np.ndarray
    weights: np.ndarray
    group: np.ndarray
    groups: int

    def totals(self) -> np.ndarray:
        """The tokens of each group, int64."""
        return np.bincount(self.group, self.weights, self.groups).astype(np.int64)


def thresholds(words: Scored, ranks: np.ndarray) -> np.ndarray:
    """The value at the fractional rank of each group, between its tokens in ascending order.

    A word counts as often as it has tokens. A group without tokens has nan.
    """
    order = np.lexsort((words.values, words.group))
    values, upto = words.values[order], np.cumsum(words.weights[order])
    totals = words.totals()
    start = np.cumsum(totals) - totals
    low = np.floor(ranks).astype(np.int64)
    found = np.full(words.groups, np.nan)
    some = totals > 0

    def at(rank: np.ndarray) -> np.ndarray:
        return values[np.searchsorted(upto, (start + rank)[some], side="right")]

    below, above = at(low), at(np.minimum(low + 1, totals - 1))
    found[some] = below + (above - below) * (ranks - low)[some]
    return found


def chosen(words: Scored, limits: np.ndarray) -> np.ndarray:
    """Whether each word is above the limit of its group; equal values are not.

    Where none is above, those of the highest value are: no group with tokens ends up empty.
    """
    counted = words.weights > 0
    values = np.where(counted, words.values, -np.inf)
    highest = np.full(words.groups, -np.inf)
    np.maximum.at(highest, words.group, values)
    limit = limits[words.group]
    none_above = ~(highest > limits)[words.group]
    return counted & ((values > limit) | (none_above & (values == highest[words.group])))


def unsure(words: Scored, limits: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
    """The groups in which two words are so near the limit that noise of `tolerance` may decide."""
    distance = np.abs(words.values - limits[words.group])
    near = (words.weights > 0) & (distance <= tolerance[words.group])
    return np.flatnonzero(np.bincount(words.group[near], minlength=words.groups) > 1)
