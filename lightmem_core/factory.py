"""Build stages from configuration. The batch pipeline and the server both start here."""

from __future__ import annotations

from lightmem_core.config import MemoryConfig
from lightmem_core.long_term.consolidate import Consolidation
from lightmem_core.long_term.embed import Embedding
from lightmem_core.long_term.retrieve import Retrieval
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.plugins import load
from lightmem_core.protocols import Embedder, Tokenizer
from lightmem_core.sensory.compress import Compression
from lightmem_core.sensory.segment import Segmentation
from lightmem_core.short_term.buffer import Buffering
from lightmem_core.short_term.extract import Extraction


def check(config: MemoryConfig) -> None:
    """Raise ConfigError if a part or an option is wrong, before anything is started.

    Parts are built; weights are read only when they are first needed.
    """
    for make in (compression, segmentation, extraction, embedder, consolidation):
        make(config)


def tokenizer(config: MemoryConfig) -> Tokenizer:
    return load("tokenizer", config.tokenizer)


def compression(config: MemoryConfig) -> Compression:
    tokens = tokenizer(config)
    return Compression(load("compressor", config.compressor, tokenizer=tokens), tokens)


def segmentation(config: MemoryConfig) -> Segmentation:
    return Segmentation(load("segmenter", config.segmenter))


def buffering(config: MemoryConfig) -> Buffering:
    return Buffering(config.buffer_tokens)


def extraction(config: MemoryConfig) -> Extraction:
    return Extraction(load("generator", config.generator))


def embedder(config: MemoryConfig) -> Embedder:
    return load("embedder", config.embedder)


def embedding(config: MemoryConfig) -> Embedding:
    return Embedding(embedder(config))


def consolidation(config: MemoryConfig) -> Consolidation:
    return Consolidation(load("updater", config.updater), config.queue.k, config.queue.theta)


def retrieval(config: MemoryConfig) -> Retrieval:
    """Raise StoreError if there is no store yet, or one of another embedder."""
    model = embedder(config)
    return Retrieval(model, MemoryStore.open(config.store, VectorModel.of(model)))
