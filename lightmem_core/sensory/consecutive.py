"""LLMLingua-2's `drop_consecutive`: a forced token that follows itself is kept once."""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np

from lightmem_core.sensory.quantile import Scored


def repeats(
    words: Scored, names: Sequence[str], limits: np.ndarray, forced: Container[str]
) -> np.ndarray:
    """Whether each word is a forced one that follows itself with nothing above the limit between,
    bool (words,)."""
    above = (words.values > limits[words.group]).tolist()
    found, group, previous, between = np.zeros(len(names), bool), -1, None, False
    for i in np.flatnonzero(words.weights).tolist():
        if words.group[i] != group:
            group, previous, between = words.group[i], None, False
        name = names[int(i)]
        if name not in forced:
            between |= above[i]
            continue
        found[i] = not between and name == previous
        previous, between = name, False
    return found


def without_repeats(
    kept: np.ndarray, words: Scored, names: Sequence[str], forced: Container[str]
) -> np.ndarray:
    """`kept` less the forced words that are the same as the last one kept of their window."""
    kept, last = kept.copy(), {}
    for i in np.flatnonzero(kept).tolist():
        group = int(words.group[i])
        name = names[int(i)]
        if name in forced and last.get(group) == name:
            kept[i] = False
        else:
            last[group] = name
    return kept
