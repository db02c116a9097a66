"""The embedding stage: every entry gets its vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lightmem_core.errors import ComponentError
from lightmem_core.long_term.render import embedding_text
from lightmem_core.protocols import Embedder
from lightmem_core.types import Entry, Extracted


class Embedding:
    """Embed all entries of a batch in one call of the model."""

    def __init__(self, embedder: Embedder):
        self.embedder = embedder

    def __call__(self, rows: Sequence[Extracted]) -> list[Extracted]:
        texts = [embedding_text(entry) for row in rows for entry in row.entries]
        vectors = iter(encode(self.embedder, texts))
        return [
            replace(row, entries=tuple(replace(e, vector=next(vectors)) for e in row.entries))
            for row in rows
        ]


def vectors_of(entries: Sequence[Entry]) -> np.ndarray:
    """The vectors of stored entries, float32, shape (len(entries), dim)."""
    missing = [entry.id for entry in entries if entry.vector is None]
    if missing:
        raise ValueError(f"{len(missing)} entries have no vector, the first is {missing[0]}")
    return np.array([entry.vector for entry in entries], dtype=np.float32)


def encode(embedder: Embedder, texts: Sequence[str]) -> np.ndarray:
    """The embedder's vectors, checked: float32, shape (len(texts), dim), finite."""
    if not texts:
        return np.zeros((0, embedder.dim), np.float32)
    vectors = np.asarray(embedder.encode(texts), np.float32)
    if vectors.shape != (len(texts), embedder.dim) or not np.isfinite(vectors).all():
        raise ComponentError(
            f"{type(embedder).__name__}.encode returned shape {vectors.shape} for {len(texts)} "
            f"texts, expected finite vectors of shape {(len(texts), embedder.dim)}"
        )
    return vectors
