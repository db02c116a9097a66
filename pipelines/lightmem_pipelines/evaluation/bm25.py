"""Plain BM25, the yardstick: no stems, no weights of words, only English stop words removed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

SATURATION = 1.5  # k1
LENGTH_WEIGHT = 0.75  # b
WORD = re.compile(r"\w+")
STOP_WORDS = frozenset(
    """a an and are as at be been but by did do does for from had has have he her hers him his how i
    if in into is it its me my no not of on or our she so some such than that the their them then
    there these they this to was we were what when where which who whom whose why will with would
    you your d didn doesn don ll m re s t ve""".split()
)


class BM25:
    def __init__(self, texts: Sequence[str]):
        rows = [Counter(_terms(text)) for text in texts]
        lengths = np.array([row.total() for row in rows], dtype=np.float64)
        relative = lengths / max(lengths.mean(), 1)
        self.norm = SATURATION * (1 - LENGTH_WEIGHT + LENGTH_WEIGHT * relative)
        self.postings: dict[str, list[tuple[int, int]]] = {}
        for number, row in enumerate(rows):
            for term, count in row.items():
                self.postings.setdefault(term, []).append((number, count))

    def __call__(self, query: str) -> np.ndarray:
        """The score of every text."""
        scores = np.zeros(len(self.norm))
        for term in _terms(query):
            if term in self.postings:
                holders, counts = np.array(self.postings[term]).T
                idf = np.log1p((len(scores) - len(holders) + 0.5) / (len(holders) + 0.5))
                scores[holders] += idf * counts * (SATURATION + 1) / (counts + self.norm[holders])
        return scores


def _terms(text: str) -> list[str]:
    return [word for word in WORD.findall(text.lower()) if word not in STOP_WORDS]
