"""The inbox: messages that are accepted and wait for their extraction, a table for each shard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from lightmem_core.history import stored_history
from lightmem_core.long_term.compaction import compact
from lightmem_core.long_term.newest import NewestVersion
from lightmem_core.long_term.shard import IDS_PER_FILTER, USERS_PER_FILTER
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import (
    among,
    committed,
    insert_missing,
    keyed_table,
    of_users,
    opened,
    quoted,
    read,
    with_key,
)
from lightmem_core.long_term.upkeep import COMPACT_AFTER
from lightmem_core.schema import from_table, schema_of, to_table
from lightmem_core.types import Message

if TYPE_CHECKING:
    from lancedb.db import DBConnection
    from lancedb.table import Table

KEPT = timedelta(minutes=10)  # old versions: rows come and go, and are read at once


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that waits, since `accepted_at`; `tokens` are of its content.

    `batch` names the extraction that has begun with it: that one goes on with the same messages,
    whatever becomes of the process. After `attempts` that failed for a `reason` it is tried again
    at `retry_at`.
    """

    id: str
    user_id: str
    session_id: str
    position: int
    role: str
    content: str
    said_at: int
    name: str
    agent_id: str
    metadata: str
    source: str
    infer: bool = True
    tokens: int = 0
    accepted_at: int = 0
    batch: str = ""
    attempts: int = 0
    retry_at: int = 0
    reason: str = ""

    @classmethod
    def of(cls, message: Message, **other: Any) -> Waiting:
        return cls(**{name: getattr(message, name) for name in SHARED}, **other)

    @property
    def message(self) -> Message:
        return Message(**{name: getattr(self, name) for name in SHARED}, reason=self.reason)


SHARED = (
    *("id", "user_id", "session_id", "position", "role", "content", "said_at"),
    *("name", "agent_id", "metadata", "source"),
)
SCHEMA = with_key(schema_of(Waiting))


class Inbox:
    """The inbox of a shard. Its table is made when something first has to wait."""

    def __init__(self, database: DBConnection, number: int):
        self.database = database
        self.name = f"inbox_{number:04}"
        self.commits = 0
        self._opened: Table | None = None
        self._newest: NewestVersion | None = None

    @classmethod
    def of(cls, store: MemoryStore, user_id: str) -> Inbox:
        return cls(store.database, store.shard_number(user_id))

    @property
    def version(self) -> int:
        """Rises with each change; 0 while there is no table."""
        if self._newest is None and (table := self._table()) is not None:
            self._newest = NewestVersion(table)
        return 0 if self._newest is None else self._newest()

    def waiting(self, user_id: str) -> list[Message]:
        """What waits of a user, in order. `reason` says why an extraction failed."""
        rows = self.rows([user_id])
        return list(stored_history(row.message for row in rows).messages) if rows else []

    def rows(self, user_ids: Sequence[str]) -> list[Waiting]:
        found: list[Waiting] = []
        for start in range(0, len(user_ids), USERS_PER_FILTER):
            found += self._where(of_users(user_ids[start : start + USERS_PER_FILTER]))
        return found

    def find(self, message_id: str) -> Waiting | None:
        """A message that waits, of any user."""
        found = self._where(f"id = {quoted(message_id)}")
        return found[0] if found else None

    def user_ids(self) -> set[str]:
        """Those of whom anything waits."""
        table = self._table()
        if table is None:
            return set()
        return set(read(table, "true", ["user_id"])["user_id"].unique().to_pylist())

    def everything(self) -> list[Waiting]:
        return self._where("true")

    def accept(self, rows: Sequence[Waiting]) -> None:
        """Add messages in one commit; those that wait already are left as they are."""
        if rows:
            insert_missing(self._made(), "id", to_table(rows, Waiting).cast(SCHEMA))
            self._count_commit()

    def mark(self, ids: Sequence[str], **values: Any) -> None:
        """Change some columns of the messages that still wait."""
        if not ids:
            return
        table = self._made()
        for where in _of_ids(ids):
            committed(table, partial(table.update, where=where, values=values))
        self._count_commit()

    def remove(self, ids: Iterable[str]) -> None:
        for where in _of_ids(sorted(ids)):
            table = self._made()
            committed(table, partial(table.delete, where))
            self._count_commit()

    def _where(self, where: str) -> list[Waiting]:
        table = self._table()
        return [] if table is None else from_table(read(table, where), Waiting)

    def _table(self) -> Table | None:
        if self._opened is None:
            self._opened = opened(self.database, self.name)
        return self._opened

    def _made(self) -> Table:
        table = self._table()
        if table is None:
            table = self._opened = keyed_table(self.database, self.name, SCHEMA, "id")
        return table

    def _count_commit(self) -> None:
        self.commits += 1
        if self.commits % COMPACT_AFTER == 0:
            compact(self._made(), KEPT)


def _of_ids(ids: Sequence[str]) -> list[str]:
    parts = (ids[at : at + IDS_PER_FILTER] for at in range(0, len(ids), IDS_PER_FILTER))
    return [among("id", part) for part in parts]
