"""What a shard's tables hold, how they are read, and how they are kept fast."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from lightmem_core.errors import StoreError
from lightmem_core.schema import schema_of
from lightmem_core.types import Entry, Message

if TYPE_CHECKING:
    from lancedb.table import Table

FRAGMENT_ROWS = 50_000  # a fragment of so many rows is left alone: none is rewritten for ever
SCAN_ROWS = 1_024  # that compaction holds at a time
VERSIONS = 100  # of a small table
KEPT = timedelta(hours=1)  # old versions: as long as a reader may take
ATTEMPTS = 6  # at a commit, each of which LanceDB itself repeats for 30 seconds
PAUSE_S = 0.1  # at most, before the second attempt; it doubles with each
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
    schema = _with_key(schema_of(Entry))
    place = schema.get_field_index("vector")
    return schema.set(place, pa.field("vector", pa.list_(pa.float32(), dim)))


def version_schema(dim: int) -> pa.Schema:
    """Entries as they were until a run replaced them; `key` is their id and `gen`."""
    schema = entry_schema(dim).append(pa.field("key", pa.string(), nullable=False))
    schema = schema.append(pa.field("replaced_at", pa.int64()))
    return schema.append(pa.field("replaced_by", pa.string()))


def message_schema() -> pa.Schema:
    """Messages as stored; the compressed text is not kept, it can be made again."""
    schema = _with_key(schema_of(Message))
    schema = schema.remove(schema.get_field_index("compressed"))
    return schema.append(pa.field("run_id", pa.string())).append(pa.field("stored_at", pa.int64()))


def _with_key(schema: pa.Schema) -> pa.Schema:
    return schema.set(schema.get_field_index("id"), pa.field("id", pa.string(), nullable=False))


def of_users(user_ids: Sequence[str]) -> str:
    return f"user_id IN ({', '.join(map(quoted, user_ids))})" if user_ids else "false"


def read(table: Table, where: str, columns: list[str] | None = None) -> pa.Table:
    return _query(table, where, columns).to_arrow()


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


def drop_versions(table: Table) -> None:
    """Compact a small table, once its many small writes have left many versions."""
    if len(table.list_versions()) > VERSIONS:
        compact(table)


def compact(table: Table, keep: timedelta = KEPT) -> None:
    """Join the small fragments that commits left, bring the indices up to date, and drop the
    versions that are older than `keep`.

    Where other writers are at the same rows all the time, this waits for the next time.
    """
    try:
        committed(table, lambda: _join_fragments(table))
    except (OSError, RuntimeError) as error:
        if not in_the_way(error):
            raise
    dataset = table.to_lance()
    dataset.cleanup_old_versions(older_than=keep, error_if_tagged_old_versions=False)
    table.checkout_latest()


def _join_fragments(table: Table) -> None:
    dataset = table.to_lance()
    dataset.optimize.compact_files(
        target_rows_per_fragment=FRAGMENT_ROWS, num_threads=1, batch_size=SCAN_ROWS
    )
    dataset.optimize.optimize_indices()
