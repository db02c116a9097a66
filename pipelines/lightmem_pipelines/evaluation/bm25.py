"""Plain BM25, the yardstick: no stems, no weights of words, only English stop words removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lightmem_core.language import words

SATURATION = 1.5  # k1
LENGTH_WEIGHT = 0.75  # b
STOP_WORDS = frozenset(
    """a about after all also am an and any are as at be because been before but by can could did do
    does doing for from had has have having he her hers him his how i if in into is it its just me
    my no not of on or our out over she should so some such than that the their them then there
    these they this those to too up us very was we were what when where which while who whom whose
    why will with would you your""".split()
)


class BM25:
    def __init__(self, texts: Sequence[str]):
        rows = [Counter(_terms(text)) for text in texts]
        lengths = np.array([row.total() for row in rows], dtype=np.float64)
        self.norm = SATURATION * (1 - LENGTH_WEIGHT + LENGTH_WEIGHT * lengths / lengths.mean())
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
    return [word for word in words(text) if word not in STOP_WORDS]
