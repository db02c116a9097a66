"""The replies of a language model, kept until what they say is stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lightmem_core.llm.chat import Note, Reply
from lightmem_core.llm.usage import UPDATE, Usage
from lightmem_core.long_term.compaction import compact
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import (
    committed,
    insert_missing,
    keyed_table,
    now_ms,
    of_users,
    opened,
    quoted,
    read,
)
from lightmem_core.long_term.upkeep import COMPACT_AFTER
from lightmem_core.types import stable_id

if TYPE_CHECKING:
    from lancedb.table import Table

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("user_id", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("reply", pa.string()),
        pa.field("saved_at", pa.int64()),
    ]
)
Writing = Callable[[], AbstractContextManager[None]]


class StoredReplies:
    """A table for each shard, made when there is a first reply. What is there is not asked for
    again, also by the process that comes after this one. `writing` is held during a commit."""

    def __init__(self, store: MemoryStore, writing: Writing):
        self.store = store
        self.writing = writing
        self.tables: dict[int, Table] = {}
        self.commits = 0

    def get(self, user_id: str, key: str) -> Reply | None:
        table = self._table(self.store.shard_number(user_id))
        if table is None:
            return None
        where = f"{of_users([user_id])} AND id = {quoted(_id(user_id, key))}"
        found = read(table, where, ["reply"])["reply"].to_pylist()
        return Reply(**json.loads(found[0])) if found else None

    def put(self, user_id: str, stage: str, key: str, reply: Reply) -> None:
        text = json.dumps(asdict(reply))
        row = (_id(user_id, key), user_id, stage, text, now_ms())
        rows = pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True))], schema=SCHEMA)
        with self.writing():
            insert_missing(self._made(self.store.shard_number(user_id)), "id", rows)
            self._count_commit()

    def note(self, user_id: str, stage: str, note: Note) -> None:
        """Nothing is kept of it: what failed waits on with its reason."""

    def paying(self) -> AbstractAsyncContextManager[Any]:
        return nullcontext()

    def take(self, user_ids: Collection[str], of_sleep: bool = False) -> Usage:
        """Forget what an extraction, or a sleep, was told of users: it is stored, or must be asked
        for anew. Return what was paid for it."""
        stage = f"stage {'=' if of_sleep else '!='} {quoted(UPDATE)}"
        usage = Usage()
        for number, users in self.store.by_shard(user_ids).items():
            table = self._table(number)
            if table is None:
                continue
            where = f"{of_users(users)} AND {stage}"
            rows = read(table, where, ["stage", "reply"]).to_pylist()
            for row in rows:
                usage.add({"stage": row["stage"], **json.loads(row["reply"])})
            if rows:
                with self.writing():
                    committed(table, partial(table.delete, where))
                    self._count_commit()
        return usage

    def _count_commit(self) -> None:
        self.commits += 1
        if self.commits % COMPACT_AFTER == 0:
            for table in list(self.tables.values()):
                compact(table)

    def _table(self, number: int) -> Table | None:
        if number not in self.tables:
            table = opened(self.store.database, _name(number))
            if table is None:
                return None
            self.tables[number] = table
        return self.tables[number]

    def _made(self, number: int) -> Table:
        table = self._table(number)
        if table is None:
            table = keyed_table(self.store.database, _name(number), SCHEMA, "id")
            self.tables[number] = table
        return table


def _name(number: int) -> str:
    return f"replies_{number:04}"


def _id(user_id: str, key: str) -> str:
    return stable_id("reply", user_id, key)
