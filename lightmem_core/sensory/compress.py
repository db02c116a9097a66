"""The compression stage: each message keeps the share of its tokens that carries information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from lightmem_core.errors import ComponentError
from lightmem_core.protocols import Compressor, Tokenizer
from lightmem_core.types import History


class Compression:
    """Compress every message of a batch of histories in one call of the model."""

    def __init__(self, compressor: Compressor, tokenizer: Tokenizer):
        self.compressor = compressor
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[History]) -> list[History]:
        contents = [m.content for row in rows for m in row.messages]
        texts = self.compressor.compress(contents)
        if len(texts) != len(contents):
            raise ComponentError(
                f"{type(self.compressor).__name__}.compress returned {len(texts)} texts for "
                f"{len(contents)}, expected as many"
            )
        pairs = zip(texts, contents, strict=True)
        texts = [text if text.strip() else content for text, content in pairs]
        counted = zip(self.tokenizer.count(contents), self.tokenizer.count(texts), strict=True)
        messages = (m for row in rows for m in row.messages)
        filled = iter(
            replace(m, compressed=text, content_tokens=before, compressed_tokens=after)
            for m, text, (before, after) in zip(messages, texts, counted, strict=True)
        )
        return [replace(row, messages=tuple(islice(filled, len(row.messages)))) for row in rows]


class NoCompressor:
    def compress(self, texts: Sequence[str]) -> list[str]:
        return list(texts)
