"""Reading online: what was just accepted, what is stored, and what it was."""

from __future__ import annotations

import builtins
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice
from threading import Lock

import numpy as np

from lightmem_core import factory
from lightmem_core.config import MemoryConfig
from lightmem_core.errors import NotFoundError, RequestError
from lightmem_core.long_term.provenance import Provenance
from lightmem_core.long_term.retrieve import Hit, Query, Retrieval
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.long_term.tables import now_ms, of_users, quoted, read
from lightmem_core.long_term.versions import EntryHistory, history_of
from lightmem_core.metadata import expired
from lightmem_core.online.context import packed
from lightmem_core.online.known_users import KnownUsers
from lightmem_core.online.origins import entries_from, shown
from lightmem_core.online.overview import Asked, Changes, Story, TimeLine, changes, story, time_line
from lightmem_core.online.paging import behind
from lightmem_core.online.provisional import Provisional, WaitingEntry
from lightmem_core.online.service import Context
from lightmem_core.protocols import Embedder, Filter
from lightmem_core.schema import from_table
from lightmem_core.types import Entry

MOST_RUNS = 100
MOST_OWNERS = 100_000
ID = re.compile(r"[0-9a-f]{32}")  # of entries and messages


class OnlineReader:
    """Reads a store that others write to. Safe for many threads; what is accepted or committed is
    seen by the next call."""

    def __init__(self, config: MemoryConfig):
        """Raise StoreError if there is no store yet, or one of another embedder."""
        embedder = Turns(factory.embedder(config))
        self.store = MemoryStore.open(config.store, VectorModel.of(embedder))
        self.waiting = Provisional(embedder, self.store)
        reranker = factory.reranker(config)
        self.retrieval = Retrieval(embedder, self.store, reranker, self.waiting)
        self.tokenizer = factory.tokenizer(config)
        self.known = KnownUsers(self.store, self.waiting)
        self._owners = Owners()

    def search(self, queries: Sequence[Query]) -> builtins.list[builtins.list[Hit]]:
        return self.answer(queries, self.embed(queries))

    def embed(self, queries: Sequence[Query]) -> np.ndarray:
        """float32, shape (len(queries), dim)."""
        return self.retrieval.embed(queries)

    def prepare(self, user_id: str) -> None:
        """Read and index what the user has, so that `answer` need not."""
        self.retrieval.index(user_id)

    def answer(
        self, queries: Sequence[Query], vectors: np.ndarray
    ) -> builtins.list[builtins.list[Hit]]:
        """A search with the queries' vectors. Raise ConfigError if there is no reranker for it."""
        found = self.retrieval.answer(queries, vectors)
        self._owners.note_all(hit.entry for hits in found for hit in hits)
        return found

    def get(self, memory_id: str, user_id: str | None = None) -> Entry | None:
        """An entry, also a tombstone, by its whole id; by that of a message the message while it
        waits, then the first active entry that came of it. Without the user the whole store is
        searched, unless the id is `known_owner`'s."""
        owner = user_id or self.known_owner(memory_id) or self._searched_owner(memory_id)
        if owner is None:
            return None
        stored = _read_entry(self.store.shard_for(owner), memory_id, owner)
        if stored:
            return stored
        entries = self.retrieval.users.of(owner).entries
        waiting = (entry for entry in entries if entry.id == memory_id)
        return next(waiting, None) or shown(entries_from(entries, [memory_id]))

    def known_owner(self, memory_id: str) -> str | None:
        """Whose an id is that was found lately."""
        return self._owners.of(memory_id)

    def _searched_owner(self, memory_id: str) -> str | None:
        """Whose an id is; what waits is looked at first, for it may be stored meanwhile."""
        waiting = self.waiting.find(memory_id)
        owner = waiting.user_id if waiting else _owner_anywhere(self.store, memory_id)
        if owner:
            self._owners.note(memory_id, owner)
        return owner

    def written(self, user_id: str, message_ids: Sequence[str]) -> builtins.list[Entry]:
        """What came of messages, in order: active entries, and the messages that wait."""
        entries = self.retrieval.users.of(user_id).entries
        return [entry for entry in entries_from(entries, message_ids) if entry.active]

    def _required(self, memory_id: str, user_id: str) -> Entry:
        found = self.get(memory_id, user_id)
        if found is None:
            raise NotFoundError(f"the user has no memory {memory_id!r:.60}")
        return found

    def list(
        self,
        user_id: str,
        limit: int,
        after: str = "",
        wanted: Filter | None = None,
        show_expired: bool = False,
    ) -> builtins.list[Entry]:
        """A user's active entries and what waits, newest first; `after` is the last one of the page
        before, whatever became of it. Raise RequestError if the user has no such entry."""
        if limit < 1:
            raise RequestError(f"limit must be at least 1, got {limit}")
        newest = self.retrieval.users.of(user_id).entries[::-1]
        now = now_ms()
        allowed = (
            entry
            for entry in newest[behind(newest, after, user_id, self.store.shard_for(user_id)) :]
            if entry.active
            and (show_expired or not expired(entry.metadata, now))
            and (wanted is None or wanted.matches(entry))
        )
        page = list(islice(allowed, limit))
        self._owners.note_all(page)
        return page

    def history(self, entry_id: str, user_id: str) -> EntryHistory:
        """Raise NotFoundError if the user has no such entry."""
        entry = self._required(entry_id, user_id)
        if isinstance(entry, WaitingEntry):
            return EntryHistory(entry, [])
        return history_of(self.store.shard_for(user_id), entry)

    def provenance(self, entry_id: str, user_id: str) -> Provenance:
        """Why an entry is known. Raise NotFoundError if the user has no such entry."""
        entry, shard = self._required(entry_id, user_id), self.store.shard_for(user_id)
        ids = entry.message_ids
        waiting = [message for message in self.waiting.messages(user_id) if message.id in ids]
        stored = shard.sources(user_id, (*entry.sources, *entry.absorbed))
        known = {message.id for message in stored}
        messages = [*stored, *(message for message in waiting if message.id not in known)]
        successor = self.get(entry.superseded_by, user_id) if entry.superseded_by else None
        return Provenance(entry, messages, shard.superseded_by(entry), successor)

    def story(self, entry_id: str, user_id: str, reach: int) -> Story:
        """Why an entry is known, what it was, and the messages up to `reach` places around its
        sources. Raise NotFoundError if the user has no such entry."""
        known, shard = self.provenance(entry_id, user_id), self.store.shard_for(user_id)
        past = self.history(entry_id, user_id)
        return story(shard, known, past, reach, self.waiting.messages(user_id))

    def time_line(self, user_id: str, asked: Asked) -> TimeLine:
        """All that a user has, tombstones too, and one page of it. Raise RequestError if there is
        no entry to go on from."""
        entries = self.retrieval.users.of(user_id).entries
        start = behind(entries[::-1], asked.before, user_id, self.store.shard_for(user_id))
        return time_line(entries, asked, start)

    def changes(self, user_id: str, limit: int, run_id: str = "") -> Changes:
        """What runs changed of a user's memories, newest first."""
        entries = self.retrieval.users.of(user_id).entries
        return changes(self.store.shard_for(user_id), entries, limit, run_id)

    def context(self, query: Query, tokens: int) -> Context:
        """The best memories that fit in so many tokens, at most the query's limit."""
        return self.packed(self.search([query])[0], tokens)

    def packed(self, hits: Sequence[Hit], tokens: int) -> Context:
        return packed(hits, tokens, self.tokenizer)

    def users(self, limit: int, after: str = "", prefix: str = "") -> builtins.list[str]:
        """Users that have anything, in the order of their ids, those behind `after`."""
        return self.known.page(limit, after, prefix)

    def runs(self, kind: str = "", limit: int = MOST_RUNS, after: str = "") -> builtins.list[Run]:
        """Runs of a kind, or of all, newest first, those behind `after`. Raise RequestError if
        there is no such run."""
        return self.store.runs.page(kind, limit, after)

    def run(self, run_id: str) -> Run | None:
        return self.store.runs.find(run_id)


class Turns:
    """An embedder that threads use one after the other."""

    def __init__(self, embedder: Embedder):
        self.embedder, self.name, self.dim = embedder, embedder.name, embedder.dim
        self._turn = Lock()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        with self._turn:
            return self.embedder.encode(texts)


class Owners:
    """Whose the entries are that were handed out lately: to look for an id in a whole store takes
    long."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: OrderedDict[str, str] = OrderedDict()

    def note_all(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.note(entry.id, entry.user_id)

    def note(self, memory_id: str, user_id: str) -> None:
        with self._lock:
            self._known[memory_id] = user_id
            self._known.move_to_end(memory_id)
            while len(self._known) > MOST_OWNERS:
                self._known.popitem(last=False)

    def of(self, memory_id: str) -> str | None:
        return self._known.get(memory_id)


def _owner_anywhere(store: MemoryStore, memory_id: str) -> str | None:
    """The user of an entry or a message, in the whole store."""
    if not ID.fullmatch(memory_id):
        return None
    for tables in zip(*((shard.entries, shard.messages) for shard in store.shards), strict=True):
        for table in tables:
            found = read(table, f"id = '{memory_id}'", ["user_id"])
            if len(found):
                return found["user_id"][0].as_py()
    return None


def _read_entry(shard: Shard, entry_id: str, user_id: str) -> Entry | None:
    where = f"{of_users([user_id])} AND id = {quoted(entry_id)}"
    found = from_table(read(shard.entries, where), Entry)
    return found[0] if found else None
