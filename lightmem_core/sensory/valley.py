"""The default segmenter: valleys of similarity, informed by attention.

At a change of topic the messages before and after differ: in what they say, which the last layer of
an encoder knows, and in how they say it, which its first layers do. And a message attends less to
the one before it. The three are added, so that each deepens or fills a valley but never vetoes one:
the printed rule B1 and B2 intersects two and misses most boundaries (docs/segmentation.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lightmem_core.encoders.joint_reading import MARGIN, JointReader
from lightmem_core.encoders.minilm import MiniLMEmbedder
from lightmem_core.protocols import Embedder
from lightmem_core.types import Message

CONTEXT = 4  # earlier messages that the attention of a message needs to be comparable
TYPICAL = 0.35  # share of attention on the previous message where there are fewer
WINDOW_TOKENS = 480
MESSAGE_TOKENS = 96  # of a message that take part in the attention


class ValleySegmenter:
    """Cut where similarity + `attention` x M(k, k-1) has a valley deeper than `depth`.

    Similarity: cosine of the mean vectors of `window` messages before and after k, the mean of that
    `early` layers into the model and that of its output. M(k, k-1): the share of the attention of
    message k to its earlier messages that falls on the last of them, mean over heads and the first
    `layers`. Without a `depth` valleys deeper than the mean of their session by a standard
    deviation count, which fits any `embedder`; one that is given has no early layers.
    """

    def __init__(
        self,
        *,
        window: int = 2,
        depth: float | None = 0.4,
        attention: float = 0.3,
        early: int = 2,
        layers: int = 2,
        device: str = "cpu",
        embedder: Embedder | None = None,
    ):
        self.minilm = MiniLMEmbedder(device=device)
        self.reader = JointReader(layers=range(layers), device=device)
        self.embedder = embedder
        self.window, self.depth = window, depth
        self.attention, self.early = attention, early

    def cut(self, sessions: Sequence[Sequence[Message]]) -> list[list[int]]:
        texts = [[m.content for m in session] for session in sessions]
        curves = self._curves(texts)
        for row, curve in enumerate(curves):
            if not self._clear(curve):
                (curves[row],) = self._curves([texts[row]], alone=True)
        return [self._places(curve) for curve in curves]

    def _places(self, curve: np.ndarray) -> list[int]:
        depths = valley_depth(curve)
        return np.flatnonzero(depths > self._least(depths)).tolist()

    def _least(self, depths: np.ndarray) -> float:
        if self.depth is not None:
            return self.depth
        valleys = depths[depths > 0]
        return float(valleys.mean() + valleys.std()) if len(valleys) else 0.0

    def _clear(self, curve: np.ndarray) -> bool:
        """Whether rounding, as it differs from batch to batch, could not change the places."""
        depths = valley_depth(curve)
        gaps = np.abs(depths[depths > 0] - self._least(depths))
        return bool((np.abs(np.diff(curve)) > MARGIN).all() and (gaps > MARGIN).all())

    def _curves(self, sessions: Sequence[Sequence[str]], alone: bool = False) -> list[np.ndarray]:
        """A curve for each session; `alone` reads each text and window in a batch of its own."""
        texts = [text for session in sessions for text in session]
        if not texts:
            return [np.zeros(0) for _ in sessions]
        ends = np.cumsum([len(session) for session in sessions]).tolist()
        bounds = list(zip([0, *ends], ends, strict=False))
        batches = [[text] for text in texts] if alone else [texts]
        vectors = np.concatenate([self._vectors(batch) for batch in batches])
        shares = self._attention_shares(texts, bounds, alone)
        return [
            window_similarity(vectors[a:b], self.window) + self.attention * shares[a:b]
            for a, b in bounds
        ]

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        """One or more unit vectors of each text; shape (texts, vectors, dim)."""
        if self.embedder is not None:
            return self.embedder.encode(texts)[:, None]
        return self.minilm.encode_layers(texts, (self.early, -1) if self.early else (-1,))

    def _attention_shares(
        self, texts: Sequence[str], bounds: Sequence[tuple[int, int]], alone: bool
    ) -> np.ndarray:
        """M(k, k-1) of every message, within its session; shape (messages,)."""
        shares = np.full(len(texts), TYPICAL)
        if not self.attention:
            return shares
        ids = [i[:MESSAGE_TOKENS] for i in self.reader.token_ids(texts)]
        lengths = [self.reader.marks.length(i) for i in ids]
        windows = [w for a, b in bounds for w in _windows(lengths, a, b)]
        groups = [ids[start:stop] for start, stop in windows]
        batches = [[group] for group in groups] if alone else [groups]
        found = [matrix for batch in batches for matrix in self.reader.attention(batch)]
        for (start, stop), matrix in zip(windows, found, strict=True):
            shares[start + CONTEXT : stop] = matrix.diagonal(-1)[CONTEXT - 1 :]
        return shares


def _windows(lengths: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Windows of messages in [start, stop) that fit the model, overlapping by CONTEXT."""
    while stop - start > CONTEXT:
        end, size = start, 0
        while end < stop and size + lengths[end] <= WINDOW_TOKENS:
            size += lengths[end]
            end += 1
        yield start, end
        if end == stop:
            return
        start = max(end - CONTEXT, start + 1)


def window_similarity(vectors: np.ndarray, window: int) -> np.ndarray:
    """Cosine of the mean of the `window` vectors before k and that from k on; 1 at k = 0.

    `vectors` are (messages, dim), or (messages, kinds, dim): then the mean over the kinds.
    """
    similarity = np.ones(len(vectors))
    if len(vectors) < 2:
        return similarity
    sums = np.concatenate([np.zeros((1, *vectors.shape[1:])), np.cumsum(vectors, axis=0)])
    k = np.arange(1, len(vectors))
    before = sums[k] - sums[np.maximum(k - window, 0)]
    after = sums[np.minimum(k + window, len(vectors))] - sums[k]
    norms = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    cosines = (before * after).sum(axis=-1) / np.maximum(norms, 1e-9)
    similarity[1:] = cosines.reshape(len(cosines), -1).mean(axis=1)
    return similarity


def valley_depth(curve: np.ndarray) -> np.ndarray:
    """For each local minimum, the climb to the next peak on its left plus that on its right."""
    depth = np.zeros(len(curve))
    last = len(curve) - 1
    for k in range(1, last + 1):
        if curve[k] >= curve[k - 1] or (k < last and curve[k] > curve[k + 1]):
            continue
        left = right = k
        while left > 1 and curve[left - 1] >= curve[left]:
            left -= 1
        while right < last and curve[right + 1] >= curve[right]:
            right += 1
        depth[k] = curve[left] + curve[right] - 2 * curve[k]
    return depth
