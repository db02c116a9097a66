"""What a server needs of a store, for writing and for reading. Both are safe for many threads.

User ids are the store's own. Errors: StoreError where the store cannot do what is asked, KeyError
where the user has no such entry, ValueError where the request itself is wrong.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lightmem_core.long_term.retrieve import Hit, Query
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.versions import EntryHistory
from lightmem_core.protocols import Filter
from lightmem_core.types import Entry


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message as it arrives. Without `said_at` it was said now; without `position` it follows
    what its session has. `metadata` is a JSON object as text. Without `infer` it becomes an entry
    word for word. Of messages without time and position one of the same `key` is the same."""

    role: str
    content: str
    said_at: int | None = None
    name: str = ""
    agent_id: str = ""
    metadata: str = ""
    position: int | None = None
    infer: bool = True
    key: str = ""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a message, and its place in its session. A duplicate was there before."""

    message_id: str
    state: Literal["accepted", "duplicate"]
    position: int


@dataclass(frozen=True, slots=True)
class Context:
    """Memories as text for a prompt: `tokens` of the configured tokenizer, from `hits`, best
    first."""

    text: str
    tokens: int
    hits: tuple[Hit, ...]


class Writing(Protocol):
    def add(self, user_id: str, session_id: str, messages: Sequence[Incoming]) -> list[Accepted]:
        """One for each message, in order. They are durable when this returns."""
        ...

    def flush(self, user_id: str) -> int:
        """Extract now what waits of a user; return how many entries were written."""
        ...

    def update(
        self, user_id: str, entry_id: str, text: str | None = None, metadata: str | None = None
    ) -> Entry:
        """Change an entry; what it was stays in its history. None leaves a part as it is."""
        ...

    def delete(self, user_id: str, entry_id: str) -> None:
        """Make an entry a tombstone without a successor: hidden, but in its history."""
        ...

    def erase(self, user_id: str) -> dict[str, int]:
        """Remove all of a user, physically; return the rows that are gone, by table."""
        ...

    def sleep(self, user_id: str) -> dict[str, int]:
        """Consolidate a user's memories; return how many decisions were applied, by action."""
        ...


class Reading(Protocol):
    def search(self, queries: Sequence[Query]) -> builtins.list[builtins.list[Hit]]: ...

    def get(self, entry_id: str, user_id: str | None = None) -> Entry | None: ...

    def list(
        self, user_id: str, limit: int, after: str = "", wanted: Filter | None = None
    ) -> builtins.list[Entry]:
        """A user's entries, newest first; `after` is the id of the last one of the page before."""
        ...

    def history(self, entry_id: str, user_id: str) -> EntryHistory: ...

    def context(self, query: Query, tokens: int) -> Context:
        """The best memories that fit in so many tokens."""
        ...

    def users(self, limit: int, after: str = "", prefix: str = "") -> builtins.list[str]:
        """Users that have anything, in the order of their ids, those behind `after`."""
        ...

    def runs(self) -> builtins.list[Run]: ...
