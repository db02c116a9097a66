"""Retrieval: the entries of one user, ranked for a query. Batch, command and server share it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from lightmem_core.errors import ConfigError
from lightmem_core.long_term.embed import encode
from lightmem_core.long_term.neighbours import neighbours
from lightmem_core.long_term.ranking import Scores, UserIndex
from lightmem_core.long_term.render import entry_line
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import now_ms
from lightmem_core.long_term.versions import entries_as_of
from lightmem_core.long_term.warm import Waiting, WarmUsers
from lightmem_core.metadata import expired
from lightmem_core.protocols import Embedder, Filter, Reranker
from lightmem_core.types import Entry, Message

MOST_NEIGHBOURS = 50


@dataclass(frozen=True, slots=True)
class Query:
    """A search in the memories of `user_id`. `since` and `until` bound `said_at`, both included.

    `as_of` is when to search: what was stored or changed later does not count. `threshold` is the
    least `cosine`. A hit brings the messages up to `neighbours` places around its sources. `rerank`
    has a model read the best entries beside the query, and order them anew.
    """

    user_id: str
    text: str
    limit: int = 5
    since: int | None = None
    until: int | None = None
    as_of: int | None = None
    session_id: str = ""
    agent_id: str = ""
    wanted: Filter | None = None
    threshold: float | None = None
    neighbours: int = 0
    rerank: bool = False
    show_expired: bool = False

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")
        if not 0 <= self.neighbours <= MOST_NEIGHBOURS:
            raise ValueError(
                f"neighbours must be from 0 to {MOST_NEIGHBOURS}, got {self.neighbours}"
            )

    def allows(self, entry: Entry, now: int) -> bool:
        """Whether an entry may be found. What has expired on the day of `now` is not."""
        return (
            (self.since is None or entry.said_at >= self.since)
            and (self.until is None or entry.said_at <= self.until)
            and self.session_id in ("", entry.session_id)
            and self.agent_id in ("", entry.agent_id)
            and (self.show_expired or not expired(entry.metadata, now))
            and (self.wanted is None or self.wanted.matches(entry))
        )


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """An entry found, best first. `score` ranks and compares within one query only.

    Its parts: `cosine` of entry and query; `window`, the same with the neighbours counted in;
    `bm25` likewise; `speaker`, 1 where the query names who spoke. `rerank` is what a reranker gave,
    and orders where it was asked for. `neighbours` are messages in their order, those that the
    entry came from among them.
    """

    entry: Entry
    score: float
    cosine: float
    window: float
    bm25: float
    speaker: float
    neighbours: tuple[Message, ...] = ()
    rerank: float | None = None


class Retrieval:
    """Answer a batch of queries: one call of the embedder, one exact ranking per query, one call of
    the reranker. Many threads may ask."""

    def __init__(
        self,
        embedder: Embedder,
        store: MemoryStore,
        reranker: Reranker | None = None,
        waiting: Waiting | None = None,
    ):
        self.embedder, self.store = embedder, store
        self.reranker, self.waiting = reranker, waiting
        self.users = WarmUsers(store, waiting)

    def __call__(self, rows: Sequence[Query]) -> list[list[Hit]]:
        return self.answer(rows, self.embed(rows))

    def embed(self, rows: Sequence[Query]) -> np.ndarray:
        return encode(self.embedder, [row.text for row in rows])

    def answer(self, rows: Sequence[Query], vectors: np.ndarray) -> list[list[Hit]]:
        """The same for queries that are embedded: float32 of shape (len(rows), dim). Raise
        ConfigError if one is to be reranked and there is no reranker."""
        if self.reranker is None and any(row.rerank for row in rows):
            raise ConfigError(
                "the configuration names no reranker: add one under memory, such as "
                "reranker: {use: cross-encoder, options: {model: ...}}"
            )
        found = [self._hits(row, vector) for row, vector in zip(rows, vectors, strict=True)]
        found = self._reranked(rows, found)
        return [self._with_neighbours(row, hits) for row, hits in zip(rows, found, strict=True)]

    def index(self, user_id: str) -> UserIndex:
        """The user's entries, read again only after a commit that may have touched them."""
        return self.users.of(user_id).index

    def _hits(self, query: Query, vector: np.ndarray) -> list[Hit]:
        index = self._index_for(query)
        scores = index.rank(query.text, vector)
        depth = query.limit
        if query.rerank and self.reranker:
            depth = max(depth, self.reranker.candidates)
        found = islice(_allowed(query, index.entries, scores), depth)
        return [_hit(index.entries[i], scores, i) for i in found]

    def _index_for(self, query: Query) -> UserIndex:
        """What was once there is read for its query alone: the cache is for what is there now."""
        if query.as_of is None:
            return self.index(query.user_id)
        shard = self.store.shard_for(query.user_id)
        return UserIndex(entries_as_of(shard, query.user_id, query.as_of))

    def _reranked(self, rows: Sequence[Query], found: Sequence[list[Hit]]) -> list[list[Hit]]:
        asked = [(row, hits) for row, hits in zip(rows, found, strict=True) if row.rerank]
        pairs = [(row.text, entry_line(hit.entry)) for row, hits in asked for hit in hits]
        if self.reranker is None or not pairs:
            return list(found)
        scores = iter(self.reranker.score(pairs).tolist())
        return [
            _ordered(hits, scores)[: row.limit] if row.rerank else hits
            for row, hits in zip(rows, found, strict=True)
        ]

    def _with_neighbours(self, query: Query, hits: list[Hit]) -> list[Hit]:
        if not query.neighbours or not hits:
            return hits
        shard, entries = self.store.shard_for(query.user_id), [hit.entry for hit in hits]
        present = self.waiting is not None and query.as_of is None
        waiting = self.waiting.messages(query.user_id) if present and self.waiting else ()
        around = neighbours(shard, entries, query.neighbours, waiting, query.as_of)
        return [replace(hit, neighbours=near) for hit, near in zip(hits, around, strict=True)]


def _allowed(query: Query, entries: Sequence[Entry], scores: Scores) -> Iterator[int]:
    """The places of what may be found, best first."""
    now = now_ms() if query.as_of is None else query.as_of
    for place in scores.best(len(entries)).tolist():
        near = query.threshold is None or scores.cosine[place] >= query.threshold
        if near and query.allows(entries[place], now):
            yield place


def _ordered(hits: Sequence[Hit], scores: Iterator[float]) -> list[Hit]:
    scored = [replace(hit, rerank=score) for hit, score in zip(hits, scores, strict=False)]
    return sorted(scored, key=lambda hit: -(hit.rerank or 0.0))


def _hit(entry: Entry, scores: Scores, i: int) -> Hit:
    parts = (scores.total, scores.cosine, scores.window, scores.bm25, scores.speaker)
    score, cosine, window, bm25, speaker = (float(part[i]) for part in parts)
    return Hit(entry, score, cosine, window, bm25, speaker)
