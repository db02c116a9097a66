"""Why an entry is known: the messages behind it, the entries it replaced and its successor."""

from __future__ import annotations

from dataclasses import dataclass

from lightmem_core.errors import StoreError
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.types import Entry, Message

SHORTEST_PREFIX = 4


@dataclass(frozen=True, slots=True)
class Provenance:
    """`replaced` are the tombstones that name the entry as their successor, oldest first."""

    entry: Entry
    messages: list[Message]
    replaced: list[Entry]
    successor: Entry | None


def find_entry(store: MemoryStore, entry_id: str) -> tuple[Shard, Entry]:
    """An entry by its id or the start of it. Raise StoreError unless exactly one has it."""
    if len(entry_id) < SHORTEST_PREFIX:
        raise StoreError(f"give at least {SHORTEST_PREFIX} letters of the entry's id")
    found = [(s, e) for s in store.shards for e in s.entries_with_prefix(entry_id)]
    if len(found) != 1:
        what = "several entries have ids" if found else "no entry has an id"
        raise StoreError(f"{what} that start with {entry_id!r}: take an id that `search` prints")
    return found[0]


def provenance(store: MemoryStore, entry_id: str) -> Provenance:
    """Find an entry as `find_entry` does, with all that led to it."""
    shard, entry = find_entry(store, entry_id)
    sources = (*entry.sources, *entry.absorbed)
    successor = shard.entries_with_prefix(entry.superseded_by) if entry.superseded_by else []
    replaced = shard.superseded_by(entry)
    messages = shard.sources(entry.user_id, sources)
    return Provenance(entry, messages, replaced, successor[0] if successor else None)
