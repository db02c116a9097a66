"""Retrieval: the entries of one user, ranked for a query. Batch, command and server share it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from lightmem_core.long_term.embed import encode
from lightmem_core.long_term.ranking import Scores, UserIndex
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.versions import entries_as_of
from lightmem_core.protocols import Embedder
from lightmem_core.types import Entry

CACHED_ENTRIES = 200_000  # entries of recently asked users that stay in memory


@dataclass(frozen=True, slots=True)
class Query:
    """A search in the memories of `user_id`. `since` and `until` bound `said_at`, both included.

    `as_of` is when to search: what was stored or changed later does not count.
    """

    user_id: str
    text: str
    limit: int = 5
    since: int | None = None
    until: int | None = None
    as_of: int | None = None

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """An entry found, best first. `score` ranks and compares within one query only.

    Its parts: `cosine` of entry and query; `window`, the same with the neighbours counted in;
    `bm25` likewise; `speaker`, 1 where the query names who spoke.
    """

    entry: Entry
    score: float
    cosine: float
    window: float
    bm25: float
    speaker: float


class Retrieval:
    """Answer a batch of queries: one call of the embedder, one exact ranking per query."""

    def __init__(self, embedder: Embedder, store: MemoryStore):
        self.embedder = embedder
        self.store = store
        self.cache: OrderedDict[str, tuple[int, UserIndex]] = OrderedDict()

    def __call__(self, rows: Sequence[Query]) -> list[list[Hit]]:
        vectors = encode(self.embedder, [row.text for row in rows])
        return [self._hits(row, vector) for row, vector in zip(rows, vectors, strict=True)]

    def index(self, user_id: str) -> UserIndex:
        """The user's entries, read again only after a commit to their shard."""
        shard = self.store.shard_for(user_id)
        version = shard.entries.version
        held = self.cache.pop(user_id, None)
        if held is None or held[0] != version:
            held = (version, UserIndex(shard.entries_of([user_id], tombstones=True)))
        self.cache[user_id] = held
        self._evict()
        return held[1]

    def _hits(self, query: Query, vector: np.ndarray) -> list[Hit]:
        index = self._index_for(query)
        scores = index.rank(query.text, vector)
        ranked = scores.best(len(index.entries)).tolist()
        allowed = (i for i in ranked if _within(index.entries[i], query))
        return [_hit(index.entries[i], scores, i) for i in islice(allowed, query.limit)]

    def _index_for(self, query: Query) -> UserIndex:
        """What was once there is read for its query alone: the cache is for what is there now."""
        if query.as_of is None:
            return self.index(query.user_id)
        shard = self.store.shard_for(query.user_id)
        return UserIndex(entries_as_of(shard, query.user_id, query.as_of))

    def _evict(self) -> None:
        held = sum(len(index.entries) for _, index in self.cache.values())
        while held > CACHED_ENTRIES and len(self.cache) > 1:
            _, (_, index) = self.cache.popitem(last=False)
            held -= len(index.entries)


def _within(entry: Entry, query: Query) -> bool:
    after = query.since is None or entry.said_at >= query.since
    return after and (query.until is None or entry.said_at <= query.until)


def _hit(entry: Entry, scores: Scores, i: int) -> Hit:
    parts = (scores.total, scores.cosine, scores.window, scores.bm25, scores.speaker)
    return Hit(entry, *(float(part[i]) for part in parts))
