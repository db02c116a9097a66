"""The default segmenter: valleys of similarity, informed by attention.

At a change of topic the messages before and after differ: in what they say, which the last layer of
an encoder knows, and in how they say it, which its first layers do. And a message attends less to
the one before it. The three are added, so that each deepens or fills a valley but never vetoes one:
the printed rule B1 and B2 intersects two and misses most boundaries (docs/segmentation.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from lightmem_core.encoders.joint_reading import MARGIN, JointReader
from lightmem_core.encoders.minilm import MiniLMEmbedder
from lightmem_core.protocols import Embedder
from lightmem_core.sensory.options import check_embedder, check_number, check_whole
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
    deviation count, which fits any `embedder`; one that is given has no early layers. With `dtype`
    float32 the cuts of a session do not depend on the sessions beside it.
    """

    def __init__(
        self,
        *,
        window: int = 2,
        depth: float | None = 0.4,
        attention: float = 0.3,
        early: int = 2,
        layers: int = 2,
        dtype: str = "float32",
        device: str = "cpu",
        embedder: Embedder | None = None,
    ):
        self.minilm = MiniLMEmbedder(dtype=dtype, device=device)
        self.reader = JointReader(layers=range(layers), dtype=dtype, device=device)
        check_embedder(embedder)
        check_whole("window", window, 1)
        check_whole("layers", layers, 1, self.reader.depth)
        check_whole("early", early, 0, self.reader.depth)
        check_number("attention", attention, 0)
        if depth is not None:
            check_number("depth", depth, 0)
        self.embedder = embedder
        self.window, self.depth = window, depth
        self.attention, self.early = attention, early

    def cut(self, sessions: Sequence[Sequence[Message]]) -> list[list[int]]:
        texts = [[m.content for m in session] for session in sessions]
        flat = [text for session in texts for text in session]
        if not flat:
            return [[] for _ in sessions]
        with ThreadPoolExecutor(1, "tokenise") as thread:  # beside the embedder
            tokens = thread.submit(self._tokens, flat)
            vectors, ids = iter(self._vectors(flat)), iter(tokens.result())
        cutting = [
            _Session(
                self,
                session,
                np.array(list(islice(vectors, len(session)))),
                list(islice(ids, len(session))),
            )
            for session in texts
        ]
        shares = iter(self.reader.attention([group for s in cutting for group in s.groups()]))
        return [session.cut(list(islice(shares, len(session.windows)))) for session in cutting]

    def least(self, depths: np.ndarray) -> float:
        """How deep a valley must be."""
        if self.depth is not None:
            return self.depth
        valleys = depths[depths > 0]
        return float(valleys.mean() + valleys.std()) if len(valleys) else 0.0

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Those of each text that take part in the attention."""
        if not self.attention:
            return [[] for _ in texts]
        return [ids[:MESSAGE_TOKENS] for ids in self.reader.token_ids(texts)]

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        """One or more unit vectors of each text; shape (texts, vectors, dim)."""
        if self.embedder is not None:
            return self.embedder.encode(texts)[:, None]
        return self.minilm.encode_layers(texts, (self.early, -1) if self.early else (-1,))


class _Session:
    """A session: its texts, their vectors and tokens, and the windows in which it is attended.

    What rounding could turn, as it differs from batch to batch, is decided by values that are read
    again, each text and window in a batch of its own, and of these no more than it takes.
    """

    def __init__(
        self,
        segmenter: ValleySegmenter,
        texts: Sequence[str],
        vectors: np.ndarray,
        ids: list[list[int]],
    ):
        self.segmenter, self.texts, self.vectors, self.ids = segmenter, texts, vectors, ids
        lengths = [segmenter.reader.marks.length(i) for i in ids] if segmenter.attention else []
        self.windows = list(_windows(lengths, len(lengths)))
        self.known: dict[str, np.ndarray] = {}

    def groups(self) -> list[list[list[int]]]:
        return [self.ids[start:stop] for start, stop in self.windows]

    def cut(self, matrices: Sequence[np.ndarray]) -> list[int]:
        """The places, of M of each window."""
        shares = np.full(len(self.texts), TYPICAL)
        for (start, stop), matrix in zip(self.windows, matrices, strict=True):
            shares[start + CONTEXT : stop] = matrix.diagonal(-1)[CONTEXT - 1 :]
        similarity = window_similarity(self.vectors, self.segmenter.window)
        curve = similarity + self.segmenter.attention * shares
        if self.segmenter.reader.dtype == "float32":
            close = np.flatnonzero(np.abs(np.diff(curve)) <= MARGIN)
            self._read_again(curve, {*close.tolist(), *(close + 1).tolist()})
            self._read_again(curve, self._near_the_least(curve))
        depths = valley_depth(curve)
        return np.flatnonzero(depths > self.segmenter.least(depths)).tolist()

    def _near_the_least(self, curve: np.ndarray) -> set[int]:
        """The bottoms and tops of the valleys that may or may not be deep enough."""
        depths = valley_depth(curve)
        valleys = np.flatnonzero(depths > 0)
        near = np.abs(depths[valleys] - self.segmenter.least(depths)) <= MARGIN
        if self.segmenter.depth is None and near.any():
            near[:] = True  # the least depth is made of all of them
        found = valleys[near].tolist()
        return {place for k in found for place in (k, *climbs(curve, k))}

    def _read_again(self, curve: np.ndarray, places: set[int]) -> None:
        wanted = sorted(places - {0})  # 0 is as it is
        shares, window = self._shares(wanted), self.segmenter.window
        for k in wanted:
            first = max(k - window, 0)
            around = np.array([self._vector(text) for text in self.texts[first : k + window]])
            similarity = window_similarity(around, window)[k - first]
            curve[k] = similarity + self.segmenter.attention * shares.get(k, TYPICAL)

    def _vector(self, text: str) -> np.ndarray:
        if text not in self.known:
            self.known[text] = self.segmenter._vectors([text])[0]
        return self.known[text]

    def _shares(self, places: Sequence[int]) -> dict[int, float]:
        """M(k, k-1) of those places that have one."""
        found: dict[int, float] = {}
        for start, stop in self.windows:
            inside = [k for k in places if start + CONTEXT <= k < stop]
            if inside:
                (matrix,) = self.segmenter.reader.attention([self.ids[start:stop]])
                found.update((k, float(matrix[k - start, k - start - 1])) for k in inside)
        return found


def _windows(lengths: Sequence[int], stop: int) -> Iterator[tuple[int, int]]:
    """Windows of messages that fit the model, overlapping by CONTEXT."""
    start = 0
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
        left, right = climbs(curve, k)
        depth[k] = curve[left] + curve[right] - 2 * curve[k]
    return depth


def climbs(curve: np.ndarray, k: int) -> tuple[int, int]:
    """Where the climbs from a local minimum end, on its left and on its right."""
    left, right, last = k, k, len(curve) - 1
    while left > 1 and curve[left - 1] >= curve[left]:
        left -= 1
    while right < last and curve[right + 1] >= curve[right]:
        right += 1
    return left, right
