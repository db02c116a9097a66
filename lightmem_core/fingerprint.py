"""What results depend on, beside the data: two configurations of one fingerprint give the same."""

from __future__ import annotations

import json

from lightmem_core import factory
from lightmem_core.config import MemoryConfig
from lightmem_core.llm.chat import identity
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.types import stable_id


def fingerprint(memory: MemoryConfig, *names: str) -> str:
    """What the sections of that name make of the same input, in few letters; none: all but the
    store. Prompts count by their texts, a language model by its name and what shapes its replies:
    how it is reached does not."""
    parts = factory.with_prompts(memory).model_dump(
        mode="json", include=set(names) or None, exclude={"store", "llm", "reranker"}
    )
    kind = "updater" if "updater" in names else "generator"
    if memory.llm is not None and factory.asks_llm(kind, getattr(memory, kind)):
        parts["llm"] = [memory.llm.use, *identity(factory.chat(memory))]
    return stable_id(json.dumps(parts, sort_keys=True))[:12]


def sleep_fingerprint(store: MemoryStore, memory: MemoryConfig) -> str:
    """What the decisions of a sleep depend on, beside the entries."""
    model = [store.manifest.embedder, store.manifest.generation]
    return stable_id(fingerprint(memory, "updater", "queue"), *model)[:12]
