"""The two tables of a shard: entries, and the messages that they came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lightmem_core.schema import from_table, schema_of
from lightmem_core.types import Entry, Message, Source

if TYPE_CHECKING:
    from lancedb.table import Table

OPTIMIZE_AFTER = 50  # commits: search slows down with the fragments that each one leaves


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


def message_schema() -> pa.Schema:
    """Messages as stored; the compressed text is not kept, it can be made again."""
    schema = _with_key(schema_of(Message))
    schema = schema.remove(schema.get_field_index("compressed"))
    return schema.append(pa.field("run_id", pa.string())).append(pa.field("stored_at", pa.int64()))


def _with_key(schema: pa.Schema) -> pa.Schema:
    return schema.set(schema.get_field_index("id"), pa.field("id", pa.string(), nullable=False))


@dataclass(slots=True)
class Shard:
    """Reads may come from anywhere; `insert` and `update` only from the shard's one committer."""

    number: int
    entries: Table
    messages: Table
    commits: int = 0

    def insert(self, extracted: pa.Table, run_id: str) -> None:
        """Store rows of Extracted. Ids that exist are left as they are, but for messages that
        were quarantined and have been tried again.

        Entries go first: a message that is found here has all its entries.
        """
        written = {"run_id": run_id, "stored_at": now_ms()}
        entries = _stored_rows(extracted["entries"], self.entries.schema, written)
        messages = _stored_rows(extracted["messages"], self.messages.schema, written)
        if len(entries):
            self.entries.checkout_latest()
            self.entries.merge_insert("id").when_not_matched_insert_all().execute(entries)
        if len(messages):
            self.messages.checkout_latest()
            (
                self.messages.merge_insert("id")
                .when_matched_update_all(where="target.state = 'quarantined'")
                .when_not_matched_insert_all()
                .execute(messages)
            )
        self._count_commit()

    def update(self, changed: pa.Table) -> int:
        """Write entries of the sleep phase in one version. A row that changed meanwhile wins;
        return how many did."""
        if not len(changed):
            return 0
        self.entries.checkout_latest()
        result = (
            self.entries.merge_insert("id")
            .when_matched_update_all(where="target.gen < source.gen")
            .execute(changed.cast(self.entries.schema))
        )
        self._count_commit()
        return len(changed) - result.num_updated_rows

    def optimize(self) -> None:
        """Compact the fragments that commits left, and bring the indices up to date.

        Where another writer is at the same rows this waits for the next time: nothing is lost.
        """
        for table in (self.entries, self.messages):
            try:
                table.optimize()
            except RuntimeError as error:
                if "conflict" not in str(error).lower():
                    raise
        self.commits = 0

    def known(self, user_ids: Sequence[str]) -> dict[str, str]:
        """The run that stored each message of some users, by message id.

        Quarantined messages are not among them: they may be tried again.
        """
        where = f"{_of_users(user_ids)} AND state != 'quarantined'"
        found = _read(self.messages, where, ["id", "run_id"])
        return dict(zip(found["id"].to_pylist(), found["run_id"].to_pylist(), strict=True))

    def entries_of(self, user_ids: Sequence[str], tombstones: bool = False) -> list[Entry]:
        """Entries with their vectors, by user and in their order."""
        where = _of_users(user_ids) + ("" if tombstones else " AND superseded_by = ''")
        rows = from_table(_read(self.entries, where), Entry)
        return sorted(rows, key=lambda e: (e.user_id, e.order))

    def entries_with_prefix(self, entry_id: str) -> list[Entry]:
        """The entries whose id starts so, tombstones too."""
        return from_table(_read(self.entries, f"starts_with(id, {quoted(entry_id)})"), Entry)

    def superseded_by(self, entry: Entry) -> list[Entry]:
        """The tombstones that name an entry as their successor, in their order."""
        where = f"{_of_users([entry.user_id])} AND superseded_by = {quoted(entry.id)}"
        return sorted(from_table(_read(self.entries, where), Entry), key=lambda e: e.order)

    def sources(self, user_id: str, sources: Sequence[Source]) -> list[Message]:
        """The messages that an entry came from, in their order."""
        if not sources:
            return []
        ids = ", ".join(sorted({quoted(s.message_id) for s in sources}))
        where = f"{_of_users([user_id])} AND id IN ({ids})"
        found = from_table(_read(self.messages, where), Message)
        return sorted(found, key=lambda m: (m.said_at, m.session_id, m.position))

    def user_sizes(self) -> dict[str, int]:
        """The number of active entries of each user."""
        sizes: dict[str, int] = {}
        for batch in _batches(self.entries, "superseded_by = ''", ["user_id"]):
            counts = batch["user_id"].value_counts()
            for item in counts.to_pylist():
                sizes[item["values"]] = sizes.get(item["values"], 0) + item["counts"]
        return sizes

    def message_batches(self, run_id: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The messages that a run stored, in batches."""
        return _batches(self.messages, f"run_id = {quoted(run_id)}", columns)

    def entries_written(self, run_id: str) -> int:
        """How many entries a run wrote."""
        return self.entries.count_rows(f"run_id = {quoted(run_id)}")

    def _count_commit(self) -> None:
        self.commits += 1
        if self.commits >= OPTIMIZE_AFTER:
            self.optimize()


def _of_users(user_ids: Sequence[str]) -> str:
    return f"user_id IN ({', '.join(map(quoted, user_ids))})" if user_ids else "false"


def _query(table: Table, where: str, columns: list[str] | None) -> Any:
    query = table.search().where(where)
    return query.select(columns) if columns else query


def _read(table: Table, where: str, columns: list[str] | None = None) -> pa.Table:
    return _query(table, where, columns).to_arrow()


def _batches(table: Table, where: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    return iter(_query(table, where, columns).to_batches())


def _stored_rows(
    nested: pa.ChunkedArray, schema: pa.Schema, written: dict[str, object]
) -> pa.Table:
    """The structs of a list column as a table of `schema`, clustered by user and time."""
    structs = nested.combine_chunks().flatten()
    columns = dict(zip([f.name for f in structs.type], structs.flatten(), strict=True))
    for name, value in written.items():
        columns[name] = pa.repeat(pa.scalar(value, schema.field(name).type), len(structs))
    rows = pa.table({name: columns[name] for name in schema.names}).cast(schema)
    return rows.sort_by([("user_id", "ascending"), ("said_at", "ascending")])
