"""What a call of a language model takes, as past runs on the store have measured it."""

from __future__ import annotations

from dataclasses import dataclass

from lightmem_core import factory
from lightmem_core.config import LLMConfig, MemoryConfig
from lightmem_core.errors import ConfigError, StoreError
from lightmem_core.long_term.store import MemoryStore

RUNS = 20  # the latest, of which those of the same model count


@dataclass(frozen=True, slots=True)
class Measured:
    """Per call: `completion_tokens`, `seconds`, and the share of the prompt that the server had
    read before. `calls` were measured; 0: it is what the configuration expects. The first two may
    be `spread` larger or smaller: half or double where they are guesses."""

    calls: int
    completion_tokens: float
    seconds: float
    cached_share: float

    @property
    def spread(self) -> float:
        return self.calls**-0.5 if self.calls else 1.0


def measured_calls(memory: MemoryConfig, llm: LLMConfig) -> Measured:
    """From the latest backfills of the same model, or from the configuration."""
    try:
        runs = MemoryStore.open(memory.store).runs.latest(None)
    except StoreError:
        runs = []
    name = _name(memory)
    found = [r.report["llm"] for r in runs if r.kind in ("backfill", "retry") and "llm" in r.report]
    same = [u for u in found if u.get("models") and u["models"].keys() == {name}][:RUNS]
    calls = sum(u["calls"] for u in same)
    if not calls:
        return Measured(0, llm.completion_tokens, llm.call_seconds, 0.0)
    tokens_in = sum(u["summary_in"] for u in same)
    return Measured(
        calls,
        sum(u["summary_out"] for u in same) / calls,
        sum(u["call_seconds"] for u in same) / calls,
        sum(u["cached"] for u in same) / max(tokens_in, 1),
    )


def _name(memory: MemoryConfig) -> str | None:
    """The model's, as replies carry it; None where its client is not installed."""
    try:
        return factory.chat(memory).name
    except ConfigError:
        return None
