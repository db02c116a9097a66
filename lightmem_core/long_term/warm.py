"""The memories of users that were asked lately, kept ready in memory and true to the store."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from threading import Lock
from typing import Protocol

from lightmem_core.long_term.commits import Commits
from lightmem_core.long_term.ranking import UserIndex
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.types import Entry, Message

CACHED_ENTRIES = 200_000


class Waiting(Protocol):
    """Messages that are accepted and not extracted yet."""

    def messages(self, user_id: str) -> Sequence[Message]: ...

    def entries(self, user_id: str) -> Sequence[Entry]:
        """Each of the messages as an entry with its id, and with a vector."""
        ...


class UserMemory:
    """All that is known of a user: what is stored, as of `version` of the table, tombstones too,
    and what waits to be."""

    def __init__(self, version: int, stored: Sequence[Entry], waiting: Sequence[Entry] = ()):
        self.version, self.stored, self.waiting = version, stored, waiting

    @cached_property
    def entries(self) -> list[Entry]:
        """In their order. A message waits until it is taken out, which may be after its entries
        came in: it does not count beside these."""
        if not self.waiting:
            return list(self.stored)
        extracted = {id for entry in self.stored for id in entry.message_ids}
        waiting = (entry for entry in self.waiting if entry.id not in extracted)
        return sorted((*self.stored, *waiting), key=lambda entry: entry.order)

    @cached_property
    def index(self) -> UserIndex:
        return UserIndex(self.entries)

    @property
    def size(self) -> int:
        return len(self.stored) + len(self.waiting) + 1


class WarmUsers:
    """Reads a user again only after a commit that may have touched them. For many threads."""

    def __init__(
        self, store: MemoryStore, waiting: Waiting | None = None, capacity: int = CACHED_ENTRIES
    ):
        self.store, self.waiting, self.capacity = store, waiting, capacity
        self._lock = Lock()
        self._held: OrderedDict[str, UserMemory] = OrderedDict()
        self._size = 0
        self._commits: dict[int, Commits] = {}
        self._forgotten: dict[int, int] = {}

    def of(self, user_id: str) -> UserMemory:
        """What waits is read first: a message that is no longer there has its entries by then."""
        waiting = self.waiting.entries(user_id) if self.waiting else ()
        shard = self.store.shard_for(user_id)
        commits = self._followed(shard)
        version, touched = commits.touched(user_id)
        self._forget_before(shard.number, commits.everybody)
        held = self._held.get(user_id)
        if held is None or held.version < touched:
            stored = shard.entries_of([user_id], tombstones=True, version=version)
            held = UserMemory(version, stored, waiting)
        elif list(held.waiting) != list(waiting):  # the same objects while nothing changed
            held = UserMemory(held.version, held.stored, waiting)
        self._keep(user_id, held)
        return held

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
            self._size = 0

    def _followed(self, shard: Shard) -> Commits:
        with self._lock:
            if shard.number not in self._commits:
                self._commits[shard.number] = Commits(shard.entries)
            return self._commits[shard.number]

    def _forget_before(self, number: int, version: int) -> None:
        """Drop what is held of a shard's users from before a version that may have changed any: an
        erased one is never asked for again."""
        with self._lock:
            if self._forgotten.get(number, version) < version:
                old = [user for user, memory in self._held.items() if memory.version < version]
                for user in old:
                    if self.store.shard_number(user) == number:
                        self._drop(self._held.pop(user))
            self._forgotten[number] = version

    def _keep(self, user_id: str, memory: UserMemory) -> None:
        with self._lock:
            self._drop(self._held.pop(user_id, None))
            self._held[user_id] = memory
            self._size += memory.size
            while self._size > self.capacity and len(self._held) > 1:
                self._drop(self._held.popitem(last=False)[1])

    def _drop(self, memory: UserMemory | None) -> None:
        self._size -= memory.size if memory else 0
