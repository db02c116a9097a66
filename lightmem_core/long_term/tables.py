"""What a shard's tables hold, how they are read, and how they are kept fast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lightmem_core.schema import schema_of
from lightmem_core.types import Entry, Message

if TYPE_CHECKING:
    from lancedb.table import Table

FRAGMENT_ROWS = 50_000  # a fragment of so many rows is left alone: none is rewritten for ever
SCAN_ROWS = 1_024  # that compaction holds at a time
KEPT = timedelta(hours=1)  # old versions: as long as a reader may take


def now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)


def quoted(value: str) -> str:
    """A value as an SQL string literal."""
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


def insert_missing(table: Table, key: str, rows: pa.Table) -> None:
    """Add the rows whose key the table does not hold. Its handle may be old."""
    if len(rows):
        table.checkout_latest()
        table.merge_insert(key).when_not_matched_insert_all().execute(rows)


def compact(table: Table, keep: timedelta = KEPT) -> None:
    """Join the small fragments that commits left, bring the indices up to date, and drop the
    versions that are older than `keep`.

    Where another writer is at the same rows this waits for the next time: nothing is lost.
    """
    table.checkout_latest()
    dataset = table.to_lance()
    try:
        dataset.optimize.compact_files(
            target_rows_per_fragment=FRAGMENT_ROWS, num_threads=1, batch_size=SCAN_ROWS
        )
        dataset.optimize.optimize_indices()
    except (OSError, RuntimeError) as error:
        if "conflict" not in str(error).lower():
            raise
    dataset.cleanup_old_versions(older_than=keep, error_if_tagged_old_versions=False)
    table.checkout_latest()
