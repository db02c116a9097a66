"""The default segmenter: valleys of similarity, informed by attention.

At a change of topic the messages before and after differ, and a message attends less to the one
before it. The two are added, so that attention deepens or fills a valley but never vetoes one: the
printed rule B1 and B2 intersects them and misses most boundaries of chats (README, Segmentation).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lightmem_core.encoders.joint_reading import JointReader
from lightmem_core.encoders.minilm import MiniLMEmbedder
from lightmem_core.types import Message

CONTEXT = 4  # earlier messages that the attention of a message needs to be comparable
TYPICAL = 0.35  # share of attention on the previous message where there are fewer
WINDOW_TOKENS = 480
MESSAGE_TOKENS = 96  # of a message that take part in the attention


class ValleySegmenter:
    """Cut where similarity + `attention` x M(k, k-1) has a valley deeper than `depth`.

    Similarity: cosine of the mean vectors of `window` messages before and after k. M(k, k-1): the
    share of the attention of message k to its earlier messages that falls on the last of them,
    mean over heads and the first `layers`.
    """

    def __init__(
        self,
        *,
        window: int = 2,
        depth: float = 0.5,
        attention: float = 0.6,
        layers: int = 2,
        device: str = "cpu",
    ):
        self.embedder = MiniLMEmbedder(device=device)
        self.reader = JointReader(layers=range(layers), device=device)
        self.window = window
        self.depth = depth
        self.attention = attention

    def cut(self, sessions: Sequence[Sequence[Message]]) -> list[list[int]]:
        texts = [f"{m.speaker}: {m.content}" for session in sessions for m in session]
        ends = np.cumsum([len(session) for session in sessions]).tolist()
        bounds = list(zip([0, *ends], ends, strict=False))
        vectors = self.embedder.encode(texts) if texts else np.zeros((0, 1), np.float32)
        shares = self._attention_shares(texts, bounds)
        return [self._cut_session(vectors[a:b], shares[a:b]) for a, b in bounds]

    def _cut_session(self, vectors: np.ndarray, shares: np.ndarray) -> list[int]:
        curve = window_similarity(vectors, self.window) + self.attention * shares
        return np.flatnonzero(valley_depth(curve) > self.depth).tolist()

    def _attention_shares(
        self, texts: Sequence[str], bounds: Sequence[tuple[int, int]]
    ) -> np.ndarray:
        """M(k, k-1) of every message, within its session; shape (messages,)."""
        ids = [i[:MESSAGE_TOKENS] for i in self.reader.token_ids(texts)]
        lengths = [self.reader.marks.length(i) for i in ids]
        windows = [w for a, b in bounds for w in _windows(lengths, a, b)]
        shares = np.full(len(texts), TYPICAL)
        found = self.reader.attention([ids[start:stop] for start, stop in windows])
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
    """Cosine of the mean of the `window` vectors before k and that from k on; 1 at k = 0."""
    similarity = np.ones(len(vectors))
    sums = np.concatenate([np.zeros((1, vectors.shape[1])), np.cumsum(vectors, axis=0)])
    k = np.arange(1, len(vectors))
    before = sums[k] - sums[np.maximum(k - window, 0)]
    after = sums[np.minimum(k + window, len(vectors))] - sums[k]
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    similarity[1:] = (before * after).sum(axis=1) / np.maximum(norms, 1e-9)
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
