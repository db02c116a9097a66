"""Segmentation by the paper's rules: peaks of attention between messages, and low similarity.

Messages count from 0, and a place k says that message k is the first of a topic. M(k, j), j < k, is
the share of the attention of message k to the messages before it that falls on message j.
    B1 = {k : M(k-1, k-2) < M(k, k-1) > M(k+1, k)}, for 2 <= k <= n - 2, where all three exist
    B2 = {k : sim(s_k-1, s_k) < tau}
`paper` cuts at B1 and B2. `tolerant` is the rule of the reference implementation: it cuts at B2
under the lowest of several thresholds that gives a place, and of these keeps those near a k for
which M(k+1, k) is a peak (B1, one message earlier). `attention` is B1 alone, `similarity` B2 alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise
from typing import Literal, TypeVar, get_args

import numpy as np

from lightmem_core.encoders.joint_reading import MARGIN, JointReader
from lightmem_core.encoders.minilm import MiniLMEmbedder
from lightmem_core.protocols import Embedder, Tokenizer
from lightmem_core.sensory.options import check_embedder, check_number, check_whole
from lightmem_core.sensory.sensory_buffer import Span, cut_in_lockstep, fitted
from lightmem_core.types import Message

T = TypeVar("T")
Mode = Literal["paper", "tolerant", "attention", "similarity"]

TOLERANT_FROM, TOLERANT_STEP, TOLERANCE = 0.2, 0.05, 3


class AttentionSegmenter:
    """Cut a buffer of `capacity` tokens at a time by what its messages attend to.

    `model` is a BERT-like encoder, such as the compressor's, and `layers` those whose attention
    counts, from its end if negative; their precision is `dtype`. `tau` bounds the similarity of B2,
    in mode `tolerant` the last of its thresholds. `embedder` gives the similarity; MiniLM does if
    there is none. In float32 the cuts of a session do not depend on the sessions beside it.
    """

    def __init__(
        self,
        *,
        mode: Mode = "paper",
        tau: float | None = None,
        capacity: int = 512,
        model: str | None = None,
        layers: Sequence[int] = (-4, -3, -2, -1),
        dtype: str = "float32",
        device: str = "cpu",
        tokenizer: Tokenizer | None = None,
        embedder: Embedder | None = None,
    ):
        if mode not in get_args(Mode):
            raise ValueError(f"mode is one of {', '.join(get_args(Mode))}, got {mode!r}")
        check_whole("capacity", capacity, 1)
        check_embedder(embedder)
        if tau is not None:
            check_number("tau", tau, -1, 1)
        self.mode = mode
        self.tau = tau if tau is not None else 0.5 if mode == "tolerant" else 0.4
        self.capacity = capacity
        self.reader = JointReader(model, layers, dtype, device)
        self.reader.check()
        self.embedder = embedder or MiniLMEmbedder(device=device)
        self.tokenizer = tokenizer

    def cut(self, sessions: Sequence[Sequence[Message]]) -> list[list[int]]:
        reading = SessionReading(self, [[m.content for m in session] for session in sessions])
        return cut_in_lockstep(reading.lengths, self.capacity, reading.cut)

    def places(self, shares: np.ndarray, similarity: np.ndarray) -> list[int]:
        """Where topics start, by M(k, k-1) and sim(s_k-1, s_k); the first of each says nothing."""
        if self.mode == "tolerant":
            return tolerant_places(shares, similarity, self.tau)
        found = np.arange(len(shares)) > 0
        if self.mode != "similarity":
            found &= attention_peaks(shares)
        if self.mode != "attention":
            found &= similarity < self.tau
        return np.flatnonzero(found).tolist()

    def clear(self, shares: np.ndarray, similarity: np.ndarray) -> bool:
        """Whether rounding, as it differs from batch to batch, could not change the places."""
        steps = np.abs(np.diff(shares[1:]))
        bounds = tolerant_thresholds(self.tau) if self.mode == "tolerant" else np.array([self.tau])
        gaps = np.abs(similarity[1:, None] - bounds)
        return bool((steps > MARGIN).all() and (gaps > MARGIN).all())


class SessionReading:
    """The messages of some sessions, as tokens and vectors, to be cut a buffer at a time."""

    def __init__(self, segmenter: AttentionSegmenter, sessions: Sequence[Sequence[str]]):
        self.segmenter = segmenter
        self.texts = sessions
        flat = [text for session in sessions for text in session]
        with ThreadPoolExecutor(1, "tokenise") as thread:  # beside the embedder
            ids, counted = thread.submit(self.tokenised, flat), thread.submit(self._counted, flat)
            self.vectors = like(sessions, self._vectors(flat))
        self.ids = like(sessions, ids.result())
        lengths = counted.result() or [len(of_text) for of_text in ids.result()]
        self.lengths = like(sessions, lengths)

    def _counted(self, texts: Sequence[str]) -> list[int]:
        """By the tokenizer of the configuration, if there is one."""
        counter = self.segmenter.tokenizer
        return counter.count(texts) if counter else []

    def tokenised(self, texts: Sequence[str]) -> list[list[int]]:
        return self.segmenter.reader.token_ids(texts)

    def attention(self, spans: Sequence[Span]) -> list[np.ndarray]:
        """M of the messages of each buffer."""
        return self.segmenter.reader.attention([self.group(span) for span in spans])

    def cut(self, spans: Sequence[Span]) -> list[list[int]]:
        found = []
        for span, shares in zip(spans, self._shares(spans), strict=True):
            session, start, stop = span
            similarity = _to_previous(self.vectors[session][start:stop])
            if not self.segmenter.clear(shares, similarity):
                shares, similarity = self._alone(span)
            found.append(self.segmenter.places(shares, similarity))
        return found

    def group(self, span: Span) -> list[Sequence[int]]:
        """The tokens of a buffer's messages, as far as the model has room for them."""
        session, start, stop = span
        return fitted(self.ids[session][start:stop], self.segmenter.reader.room)

    def _alone(self, span: Span) -> tuple[np.ndarray, np.ndarray]:
        """The same of a buffer that is read without others, each of its messages embedded so."""
        session, start, stop = span
        texts = self.texts[session][start:stop]
        vectors = [vector for text in texts for vector in self._vectors([text])]
        return self._shares([span])[0], _to_previous(vectors)

    def _shares(self, spans: Sequence[Span]) -> list[np.ndarray]:
        """M(k, k-1) of the messages of each buffer, 0 for its first."""
        if self.segmenter.mode == "similarity":
            return [np.arange(stop - start, dtype=float) for _, start, stop in spans]
        matrices = self.attention(spans)
        return [np.concatenate([[0], matrix.diagonal(-1)]) for matrix in matrices]

    def _vectors(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self.segmenter.mode == "attention" or not texts:
            return [np.zeros(1)] * len(texts)
        return list(self.segmenter.embedder.encode(texts))


def attention_peaks(shares: np.ndarray) -> np.ndarray:
    """B1, as truth values."""
    peaks = np.zeros(len(shares), bool)
    peaks[2:-1] = (shares[2:-1] > shares[1:-2]) & (shares[2:-1] > shares[3:])
    return peaks


def tolerant_thresholds(tau: float) -> np.ndarray:
    """Those of the tolerant rule, ascending, up to `tau`."""
    steps = int((tau - TOLERANT_FROM) / TOLERANT_STEP + 1e-6)
    return TOLERANT_FROM + TOLERANT_STEP * np.arange(max(steps, 0) + 1)


def tolerant_places(shares: np.ndarray, similarity: np.ndarray, tau: float) -> list[int]:
    """The rule of the reference implementation. No peak of attention: no place."""
    peaks = np.flatnonzero(attention_peaks(shares)) - 1
    for threshold in tolerant_thresholds(tau) if len(peaks) else ():
        found = [k for k in range(1, len(similarity)) if similarity[k] < threshold]
        if found:
            return [k for k in found if np.abs(peaks - k).min() <= TOLERANCE] or found
    return []


def _to_previous(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """The cosine of each unit vector and the one before, 1 for the first."""
    found = [float(a @ b) for a, b in pairwise(vectors)]
    return np.array([1.0, *found])


def like(sessions: Sequence[Sequence[object]], values: Sequence[T]) -> list[list[T]]:
    """The values, one for each message, by session."""
    remaining = iter(values)
    return [list(islice(remaining, len(session))) for session in sessions]
