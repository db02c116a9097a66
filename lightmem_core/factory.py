"""Build stages from configuration. The batch pipeline and the server both start here."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Any

from lightmem_core.config import Component, Config, MemoryConfig
from lightmem_core.errors import ConfigError
from lightmem_core.llm.chat import Chat, NoReplies, SavedReplies
from lightmem_core.llm.prompting import Prompt
from lightmem_core.long_term.consolidate import Consolidation
from lightmem_core.long_term.embed import Embedding
from lightmem_core.long_term.retrieve import Retrieval
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.plugins import find, load
from lightmem_core.protocols import Embedder, Reranker, Stage, Tokenizer
from lightmem_core.sensory.compress import Compression
from lightmem_core.sensory.joint import JointSegmentation
from lightmem_core.sensory.segment import Segmentation
from lightmem_core.short_term.buffer import Buffering
from lightmem_core.short_term.extract import Extraction


def check(config: MemoryConfig) -> None:
    """Raise ConfigError if a part or an option is wrong, before anything is started.

    Parts are built; weights are read only when they are first needed.
    """
    for make in (compression, segmentation, extraction, embedder, consolidation, reranker):
        make(config)


def shipped(config: Config) -> Config:
    """The configuration, checked, as other machines can use it: prompts are texts, not paths."""
    check(config.memory)
    return config.model_copy(update={"memory": with_prompts(config.memory)})


def tokenizer(config: MemoryConfig) -> Tokenizer:
    return load("tokenizer", config.tokenizer)


def compression(config: MemoryConfig) -> Compression:
    """A segmenter that compresses in its own pass leaves the texts to that."""
    tokens = tokenizer(config)
    chosen = Component(use="none") if _compresses(config.segmenter) else config.compressor
    return Compression(load("compressor", chosen, tokenizer=tokens), tokens)


def segmentation(config: MemoryConfig) -> Segmentation | JointSegmentation:
    tokens = tokenizer(config)
    if not _compresses(config.segmenter):
        return Segmentation(_segmenter(config, tokenizer=tokens))
    compressor = load("compressor", config.compressor, tokenizer=tokens)
    return JointSegmentation(_segmenter(config, tokenizer=tokens, compressor=compressor), tokens)


def _segmenter(config: MemoryConfig, **given: Any) -> Any:
    """One whose option `embedder` is "configured" is given that of the memory."""
    component, options = config.segmenter, dict(config.segmenter.options)
    if options.get("embedder") == "configured":
        del options["embedder"]
        given["embedder"] = embedder(config)
    return load("segmenter", component.model_copy(update={"options": options}), **given)


def _compresses(segmenter: Component) -> bool:
    return getattr(find("segmenter", segmenter), "compresses", False)


def buffering(config: MemoryConfig) -> Buffering:
    return Buffering(config.buffer_tokens)


def extraction(config: MemoryConfig, saved: SavedReplies | None = None) -> Extraction:
    """`saved` keeps the replies of a generator that asks a language model."""
    return Extraction(_part("generator", config, saved))


def embedder(config: MemoryConfig) -> Embedder:
    return load("embedder", config.embedder)


def embedding(config: MemoryConfig) -> Embedding:
    return Embedding(embedder(config))


def stages(config: MemoryConfig) -> list[Stage[Any, Any]]:
    """Those of an extraction, in order: what one gives the next one takes, from History to
    Extracted."""
    makers = (compression, segmentation, buffering, extraction, embedding)
    return [make(config) for make in makers]


def consolidation(
    config: MemoryConfig, saved: SavedReplies | None = None, device: str | None = None
) -> Consolidation:
    """`saved` keeps the replies of an updater that asks a language model. `device` is torch's, of a
    process that was given a GPU."""
    updater = _part("updater", config, saved)
    return Consolidation(updater, config.queue.k, config.queue.theta, device)


def chat(config: MemoryConfig) -> Chat:
    """A client of the configured language model. Nothing is asked or loaded yet."""
    if config.llm is None:
        raise ConfigError(
            "the configuration names no language model: add one under memory, such as "
            "llm: {use: openai, options: {model: gpt-4.1-mini}}"
        )
    return load("llm", config.llm, tokenizer=tokenizer(config))


def asks_llm(kind: str, component: Component) -> bool:
    """Whether a part asks the language model: its constructor names `chat`."""
    return "chat" in inspect.signature(find(kind, component)).parameters


def with_prompts(config: MemoryConfig) -> MemoryConfig:
    """The configuration with the names and texts of all prompts in place of their paths: other
    machines need no such files, and an edited prompt is another configuration."""
    parts = {kind: _with_prompts(kind, getattr(config, kind)) for kind in ("generator", "updater")}
    return config.model_copy(update=parts)


def _with_prompts(kind: str, component: Component) -> Component:
    options = component.options
    prompts = {
        option: asdict(Prompt.of(name, options.get(option)))
        for option, name in getattr(find(kind, component), "prompts", {}).items()
    }
    return component.model_copy(update={"options": options | prompts})


def varies(config: MemoryConfig) -> bool:
    """Whether the generator may write other texts when it is asked again."""
    return not getattr(find("generator", config.generator), "deterministic", False)


def _part(kind: str, config: MemoryConfig, saved: SavedReplies | None) -> Any:
    """A part that may ask the language model: one whose constructor names `chat` is given it."""
    component: Component = getattr(config, kind)
    if not asks_llm(kind, component):
        return load(kind, component)
    return load(kind, component, chat=chat(config), saved=saved or NoReplies())


def reranker(config: MemoryConfig) -> Reranker | None:
    return None if config.reranker is None else load("reranker", config.reranker)


def retrieval(config: MemoryConfig) -> Retrieval:
    """Raise StoreError if there is no store yet, or one of another embedder."""
    model = embedder(config)
    store = MemoryStore.open(config.store, VectorModel.of(model))
    return Retrieval(model, store, reranker(config))
