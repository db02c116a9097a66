"""What a shard's tables hold, and how they are read and written."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from lightmem_core.errors import StoreError
from lightmem_core.schema import schema_of
from lightmem_core.types import Entry, Message

if TYPE_CHECKING:
    from lancedb.db import DBConnection
    from lancedb.table import Table

ATTEMPTS = 6  # at a commit, each of which LanceDB itself repeats for 30 seconds
PAUSE_S = 0.1  # at most, before the second attempt; it doubles with each
NEWER = "target.gen < source.gen"  # of two states of an entry the later one wins
KEY_MARK = {b"lance-schema:unenforced-primary-key:position": b"1"}
T = TypeVar("T")


def now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)


def quoted(value: str) -> str:
    """A value as an SQL string literal. Raise StoreError for what no row can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise StoreError(f"{value[:99]!a} holds half a character: give it as UTF-8") from None
    return "'" + value.replace("'", "''") + "'"


def entry_schema(dim: int) -> pa.Schema:
    """Entries as stored: vectors of fixed size, and an id that can be a primary key."""
    schema = with_key(schema_of(Entry))
    place = schema.get_field_index("vector")
    return schema.set(place, pa.field("vector", pa.list_(pa.float32(), dim)))


def version_schema(dim: int) -> pa.Schema:
    """Entries as they were until a run replaced them; `key` is their id and `gen`."""
    schema = entry_schema(dim).append(pa.field("key", pa.string(), nullable=False))
    schema = schema.append(pa.field("replaced_at", pa.int64()))
    return schema.append(pa.field("replaced_by", pa.string()))


def message_schema() -> pa.Schema:
    """Messages as stored; the compressed text is not kept, it can be made again."""
    schema = with_key(schema_of(Message))
    schema = schema.remove(schema.get_field_index("compressed"))
    return schema.append(pa.field("run_id", pa.string())).append(pa.field("stored_at", pa.int64()))


def with_key(schema: pa.Schema) -> pa.Schema:
    """A schema whose id can be a primary key."""
    return schema.set(schema.get_field_index("id"), pa.field("id", pa.string(), nullable=False))


def opened(database: DBConnection, name: str) -> Table | None:
    """A table, None where there is none: a folder whose first commit never came is none."""
    if "://" not in database.uri and not os.path.isdir(_uri(database, name)):
        return None  # LanceDB says the same, and takes its time
    try:
        return database.open_table(name)
    except ValueError as error:
        if "not found" not in str(error).lower():
            raise
        return None


def made_once(database: DBConnection, name: str, rows: pa.Table) -> Table:
    """Open a table, or make it of some rows; of several makers at once only one does.

    `create_table` would not do: the later maker replaces the table, and what is in it by then.
    """
    if (table := opened(database, name)) is not None:
        return table
    from lance import LanceDataset, LanceOperation
    from lance.fragment import write_fragments

    uri = _uri(database, name)
    options: dict[str, str] | None = getattr(database, "storage_options", None)
    data = write_fragments(rows, uri, mode="create", storage_options=options) if len(rows) else []
    made = LanceOperation.Overwrite(rows.schema, data)
    try:
        LanceDataset.commit(uri, made, storage_options=options, max_retries=0)
    except (OSError, RuntimeError, ValueError):
        if (table := opened(database, name)) is None:
            raise
        return table
    return database.open_table(name)


def _uri(database: DBConnection, name: str) -> str:
    if "://" not in database.uri:
        return f"{database.uri}/{name}.lance"
    place, mark, query = database.uri.partition("?")
    return f"{place.rstrip('/')}/{name}.lance{mark}{query}"


def keyed_table(
    database: DBConnection, name: str, schema: pa.Schema, key: str, index: str | None = None
) -> Table:
    """Open a table, or make it, with a primary key, and an index on another column. What a maker
    that died left out is added.

    The key makes replayed inserts harmless; its column must have no scalar index.
    """
    place = schema.get_field_index(key)
    keyed = schema.set(place, schema.field(place).with_metadata(KEY_MARK))
    table = made_once(database, name, keyed.empty_table())
    if not _has_key(table, key):
        committed(table, lambda: _set_key(table, key))
    if index and not _has_index(table, index):
        committed(table, lambda: _make_index(table, index))
    return table


def _has_key(table: Table, key: str) -> bool:
    return bool(KEY_MARK.keys() & (table.schema.field(key).metadata or {}).keys())


def _set_key(table: Table, key: str) -> None:
    try:
        table.set_unenforced_primary_key(key)  # pyright: ignore[reportAttributeAccessIssue]
    except (RuntimeError, ValueError):
        table.checkout_latest()
        if not _has_key(table, key):  # else another process was first
            raise


def _has_index(table: Table, column: str) -> bool:
    return any(index.columns == [column] for index in table.list_indices())


def _make_index(table: Table, column: str) -> None:
    from lancedb.index import BTree

    if not _has_index(table, column):
        table.create_index(column, config=BTree())


def among(column: str, values: Iterable[str]) -> str:
    """The condition that a column of text has one of some values."""
    listed = ", ".join(map(quoted, values))
    return f"{column} IN ({listed})" if listed else "false"


def of_users(user_ids: Iterable[str]) -> str:
    return among("user_id", user_ids)


def read(table: Table, where: str, columns: list[str] | None = None) -> pa.Table:
    return twice(lambda: _query(table, where, columns).to_arrow())


def twice(read: Callable[[], T], before_again: Callable[[], None] = lambda: None) -> T:
    """Read, and once more if that fails: erasing drops the version that is being read."""
    try:
        return read()
    except (OSError, RuntimeError, ValueError):
        before_again()
        return read()


def read_batches(table: Table, where: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    return iter(_query(table, where, columns).to_batches())


def _query(table: Table, where: str, columns: list[str] | None) -> Any:
    query = table.search().where(where)
    return query.select(columns) if columns else query


def committed(table: Table, commit: Callable[[], T]) -> T:
    """Make a commit to the newest version of a table, again where other writers were in its way:
    six times at most, after pauses of random length, so that the same do not meet again.

    Only what may be done twice is given here: rows merged by their key, files joined.
    """
    for attempt in range(1, ATTEMPTS):
        table.checkout_latest()
        try:
            return commit()
        except (OSError, RuntimeError) as error:
            if not in_the_way(error):
                raise
        time.sleep(random.uniform(0, PAUSE_S * 2**attempt))
    table.checkout_latest()
    return commit()


def in_the_way(error: Exception) -> bool:
    """Whether a commit failed because of other writers: nothing of it was written then."""
    text = str(error).lower()
    return "conflict" in text or "concurrent writers" in text


def insert_missing(table: Table, key: str, rows: pa.Table) -> None:
    """Add the rows whose key the table does not hold. Its handle may be old."""
    if len(rows):
        committed(
            table, lambda: table.merge_insert(key).when_not_matched_insert_all().execute(rows)
        )


def upsert(table: Table, key: str, rows: pa.Table, where: str | None = None) -> Any:
    """Add rows; one whose key the table holds replaces that row where `where` is true (none:
    always). The result counts the rows inserted and updated."""
    return committed(
        table,
        lambda: (
            table.merge_insert(key)
            .when_matched_update_all(where=where)
            .when_not_matched_insert_all()
            .execute(rows)
        ),
    )
