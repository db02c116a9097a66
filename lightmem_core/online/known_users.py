"""The users of a store: all of whom anything is stored, or waits to be."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import islice, takewhile

from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import read_batches, twice
from lightmem_core.online.provisional import Provisional


class KnownUsers:
    """The ids of each shard, in order; a shard is read again after a commit to it."""

    def __init__(self, store: MemoryStore, waiting: Provisional):
        self.store, self.waiting = store, waiting
        self._held: dict[int, tuple[tuple[int, ...], list[str]]] = {}

    def page(self, limit: int, after: str = "", prefix: str = "") -> list[str]:
        """The first ids behind `after` of those with a prefix."""
        shards = range(self.store.shard_count)
        pages = [islice(self._behind(shard, after, prefix), limit) for shard in shards]
        return sorted(user for page in pages for user in page)[:limit]

    def _behind(self, shard: int, after: str, prefix: str) -> Iterator[str]:
        known = self._of(shard)
        first = bisect_right(known, after) if after >= prefix else bisect_left(known, prefix)
        return takewhile(lambda user: user.startswith(prefix), islice(known, first, None))

    def _of(self, number: int) -> list[str]:
        shard = self.store.shards[number]
        versions = (
            self.waiting.version(number),
            shard.entries.version,
            shard.messages.version,
        )
        held = self._held.get(number)
        if held is None or held[0] != versions:
            held = (versions, sorted(twice(lambda: self._read(number))))
            self._held[number] = held
        return held[1]

    def _read(self, number: int) -> set[str]:
        """Users that are in a table's rows: those that wait first, for they may leave it."""
        shard = self.store.shards[number]
        found = self.waiting.users(number)
        for table in (shard.entries, shard.messages):
            for batch in read_batches(table, "true", ["user_id"]):
                found.update(batch["user_id"].unique().to_pylist())
        return found
