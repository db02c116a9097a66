"""Vectors from hashed words and tokens from white space: no model, the same on every machine.

Shipped fakes: they measure and test everything around the models.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np


class WordTokenizer:
    """One token per word."""

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]


class HashEmbedder:
    def __init__(self, dim: int = 384):
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.dim = dim
        self.name = f"hash-{dim}"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split() or [""]:
                vectors[row, zlib.crc32(word.encode("utf-8", "surrogatepass")) % self.dim] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
