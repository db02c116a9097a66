"""A text of any length as windows that a model can read: cut after sentences, nothing left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive tokens of a text: ids (n,) and their places in the source (n, 2)."""

    text: int
    ids: np.ndarray
    spans: np.ndarray


class Windows:
    """Windows of at most `room` tokens, none empty. A longer text is cut after the last token in
    its window that is one of `ends`, else before the last that `begins` a word, else anywhere."""

    def __init__(self, tokenizer: Tokenizer, room: int, ends: set[int], begins: np.ndarray):
        self.tokenizer, self.room, self.ends, self.begins = tokenizer, room, ends, begins

    def of(self, texts: Sequence[str]) -> Iterator[Window]:
        for owner, found in enumerate(self._encoded(texts)):
            for ids, spans in self._fitting(texts[owner], found, 0):
                if len(ids):
                    yield Window(owner, ids, spans)

    def _encoded(self, texts: Sequence[str]) -> list[Encoding]:
        return self.tokenizer.encode_batch(list(texts), add_special_tokens=False)

    def _fitting(
        self, text: str, encoding: Encoding, start: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Read alone, a piece may have a token more than within its text: then it is cut again."""
        if len(encoding.ids) <= self.room:
            spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
            yield np.array(encoding.ids, np.int64), spans + start
            return
        cuts = [0, *self._cuts(text, encoding), len(text)]
        pieces = [text[a:b] for a, b in pairwise(cuts)]
        for a, piece, found in zip(cuts, pieces, self._encoded(pieces), strict=False):
            yield from self._fitting(piece, found, start + a)

    def _cuts(self, text: str, encoding: Encoding) -> list[int]:
        """Places in the text, ascending, strictly inside it; at least one."""
        ids, offsets, cuts, first = encoding.ids, encoding.offsets, [], 0
        while len(ids) - first > self.room:
            first = self._next(ids, first)
            cuts.append(offsets[first - 1][1])
        inside = sorted({cut for cut in cuts if 0 < cut < len(text)})
        return inside or [len(text) // 2]

    def _next(self, ids: Sequence[int], first: int) -> int:
        """The token that opens the window after the one that `first` opens."""
        stop = first + self.room
        for last in range(stop - 1, first, -1):
            if ids[last] in self.ends:
                return last + 1
        for opening in range(stop, first, -1):
            if self.begins[ids[opening]]:
                return opening
        return stop
