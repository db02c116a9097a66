"""The stages of the batch, for the messages of some users that wait."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import replace

from lightmem_core import factory
from lightmem_core.config import MemoryConfig
from lightmem_core.history import stored_history
from lightmem_core.llm.chat import SavedReplies
from lightmem_core.long_term.embed import Embedding
from lightmem_core.protocols import Embedder
from lightmem_core.sensory.compress import Compression, NoCompressor
from lightmem_core.sensory.segment import FixedSegmenter, Segmentation
from lightmem_core.short_term.extract import Extraction, VerbatimGenerator
from lightmem_core.types import Buffer, Extracted, History, Message


class Stages:
    """Built once, called by several threads: the models take turns, the generator is asked by all
    at once."""

    def __init__(self, memory: MemoryConfig, saved: SavedReplies):
        self.counter = factory.tokenizer(memory)
        self.buffering = factory.buffering(memory)
        self.inferring = (factory.compression(memory), factory.segmentation(memory))
        whole = Compression(NoCompressor(), factory.tokenizer(memory))
        self.verbatim = (whole, Segmentation(FixedSegmenter()))
        self.extraction = factory.extraction(memory, saved)
        self.keeping = Extraction(VerbatimGenerator())
        self.embedder: Embedder = factory.embedder(memory)
        self.embedding = Embedding(self.embedder)
        self._counting, self._models = threading.Lock(), threading.Lock()

    def tokens(self, texts: Sequence[str]) -> list[int]:
        with self._counting:
            return self.counter.count(texts) if texts else []

    def extracted(self, histories: Sequence[History], infer: bool = True) -> list[Extracted]:
        """What is in the messages; without `infer`, each of them word for word."""
        buffers = self.buffers(histories, infer)
        found = (self.extraction if infer else self.keeping)(buffers)
        with self._models:
            return self.embedding(found)

    def buffers(self, histories: Sequence[History], infer: bool = True) -> list[Buffer]:
        if not histories:
            return []
        compress, segment = self.inferring if infer else self.verbatim
        with self._models:
            return self.buffering(segment(compress(histories)))

    def settled(
        self, histories: Sequence[History], infer: bool, stored: Collection[str]
    ) -> list[Extracted]:
        """The messages as an extraction left them that wrote its entries and was cut off: those
        whose ids are in `stored` have some."""
        return [_settled(buffer, stored) for buffer in self.buffers(histories, infer)]

    def embedded(self, found: Extracted) -> Extracted:
        with self._models:
            return self.embedding([found])[0]


def history_of(messages: Sequence[Message]) -> list[History]:
    return [stored_history(messages)] if messages else []


def _settled(buffer: Buffer, stored: Collection[str]) -> Extracted:
    ended = (replace(m, state="stored" if m.id in stored else "no_facts") for m in buffer.messages)
    return Extracted(buffer.user_id, tuple(ended), ())
