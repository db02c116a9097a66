"""The tables of a shard: entries, what these were before they changed, and their messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lightmem_core.long_term.compaction import compact
from lightmem_core.long_term.tables import (
    NEWER,
    among,
    committed,
    insert_missing,
    now_ms,
    of_users,
    quoted,
    read,
    read_batches,
    twice,
    upsert,
)
from lightmem_core.long_term.upkeep import keep_fast
from lightmem_core.schema import from_table
from lightmem_core.types import Entry, Message, Source

if TYPE_CHECKING:
    from lance import LanceDataset
    from lancedb.table import Table

READER_CACHE_BYTES = 16 << 20  # of the index on users, and of the metadata
USERS_PER_FILTER = 1_000
IDS_PER_FILTER = 1_000
# A quarantined message may be stored by another run, or again from its place; of two places in the
# input of one run the first keeps it.
TRIED_AGAIN = (
    "target.state = 'quarantined' AND "
    "(target.run_id != source.run_id OR target.source = source.source)"
)


@dataclass(slots=True)
class Shard:
    """A run writes to a shard from one process. Runs that meet are kept apart by the primary key
    and by commits that are made again, not by a lock.

    `confirm` raises if the store has new vectors. It is asked after a commit too: what is committed
    before the switch is brought over, and what may not be is an error before it counts as stored.
    """

    number: int
    entries: Table
    messages: Table
    versions: Table
    commits: int = 0
    rest: int = 0  # commits until compaction is tried again
    confirm: Callable[[], None] = lambda: None
    reader: LanceDataset | None = None

    def insert(self, extracted: pa.Table, run_id: str, varies: bool = False) -> int:
        """Store rows of Extracted. Ids that exist are left as they are, but for messages that
        were quarantined and have been tried again. Return how many messages are repeats: of what
        another run, or another place of this run's input, has stored.

        Entries go first: a message that is found here has all its entries. Where texts vary from
        one attempt to the next, new entries of messages that all are found are therefore left out.
        """
        self.confirm()
        written = {"run_id": run_id, "stored_at": now_ms()}
        entries = _stored_rows(extracted["entries"], self.entries.schema, written)
        messages = _stored_rows(extracted["messages"], self.messages.schema, written)
        failed = [state == "quarantined" for state in messages["state"].to_pylist()]
        unique = _unique(messages, failed)
        insert_missing(self.entries, "id", _newest(self._lacking(entries) if varies else entries))
        self.confirm()
        repeats = len(messages) - len(unique) + self._insert_messages(unique)
        self._committed()
        return repeats

    def _lacking(self, entries: pa.Table) -> pa.Table:
        """The entries of which a source is not stored."""
        known = self.known(sorted(set(entries["user_id"].to_pylist())))
        lacking = [_unstored(sources, known) for sources in entries["sources"].to_pylist()]
        return entries.filter(pa.array(lacking, pa.bool_()))

    def drop_orphans(self, run_ids: Sequence[str]) -> int:
        """Remove the entries that runs wrote before they were cut off, without the messages that
        these came from, and return how many. Those that changed since, or that others were
        superseded by, are kept. None of the runs may be under way."""
        if not run_ids:
            return 0
        runs = f"{among('run_id', run_ids)} AND gen = 0"
        orphans = [
            id
            for batch in read_batches(self.entries, runs, ["id", "user_id", "sources"])
            for start in range(0, len(batch), IDS_PER_FILTER)
            for id in self._orphans(batch.slice(start, IDS_PER_FILTER).to_pylist())
        ]
        for start in range(0, len(orphans), IDS_PER_FILTER):
            where = f"{runs} AND {among('id', orphans[start : start + IDS_PER_FILTER])}"
            committed(self.entries, partial(self.entries.delete, where))
        return len(orphans)

    def _orphans(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        users = of_users(sorted({row["user_id"] for row in rows}))
        ids = {source["message_id"] for row in rows for source in row["sources"]}
        stored = _found(self.messages, f"{users} AND {among('id', sorted(ids))}", "id")
        lost = [row["id"] for row in rows if _unstored(row["sources"], stored)]
        if not lost:
            return []
        named = f"{users} AND {among('superseded_by', lost)}"
        heirs = _found(self.entries, named, "superseded_by")
        return [id for id in lost if id not in heirs]

    def _insert_messages(self, messages: pa.Table) -> int:
        if not len(messages):
            return 0
        result = upsert(self.messages, "id", messages, TRIED_AGAIN)
        if result.num_inserted_rows + result.num_updated_rows == len(messages):
            return 0
        stored = self._places(sorted(set(messages["user_id"].to_pylist())))
        ids, runs, sources = (messages[c].to_pylist() for c in ("id", "run_id", "source"))
        mine = zip(ids, zip(runs, sources, strict=True), strict=True)
        return sum(stored[id] != place for id, place in mine)

    def update(self, changed: pa.Table) -> int:
        """Write changed entries in one version; what they were becomes a version first. A row
        that changed meanwhile wins; return how many did."""
        if not len(changed):
            return 0
        self.confirm()
        changed = _newest(changed.cast(self.entries.schema))
        self.entries.checkout_latest()
        self._keep_versions(changed)
        merge = self.entries.merge_insert("id").when_matched_update_all(where=NEWER)
        result = committed(self.entries, lambda: merge.execute(changed))
        self.confirm()
        self._committed()
        return len(changed) - result.num_updated_rows

    def _keep_versions(self, changed: pa.Table) -> None:
        """Copy the rows that are about to be replaced; to do so again is harmless."""
        names = ("id", "user_id", "gen", "changed_at", "changed_by")
        columns = (changed[name].to_pylist() for name in names)
        new = {id: row for id, *row in zip(*columns, strict=True)}
        ids = sorted(new, key=lambda id: new[id][0])
        for start in range(0, len(ids), IDS_PER_FILTER):
            part = ids[start : start + IDS_PER_FILTER]
            users = of_users(sorted({new[id][0] for id in part}))
            old = read(self.entries, f"{users} AND {among('id', part)}")
            insert_missing(self.versions, "key", self._versions_of(old, new))

    def _versions_of(self, old: pa.Table, new: dict[str, list[Any]]) -> pa.Table:
        ids, gens = old["id"].to_pylist(), old["gen"].to_pylist()
        columns = {name: old[name] for name in self.entries.schema.names}
        columns["key"] = pa.array([f"{i}.{gen}" for i, gen in zip(ids, gens, strict=True)])
        columns["replaced_at"] = pa.array([new[i][2] for i in ids], pa.int64())
        columns["replaced_by"] = pa.array([new[i][3] for i in ids], pa.string())
        older = [gen < new[i][1] for i, gen in zip(ids, gens, strict=True)]
        versions = pa.table(columns, schema=self.versions.schema)
        return versions.filter(pa.array(older, pa.bool_()))

    def compact(self) -> None:
        """Keep the tables fast after many commits."""
        for table in self.tables:
            compact(table)

    def known(self, user_ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """The run that stored each message of some users, and where that run had read it, by
        message id. Quarantined messages are not among them: they may be tried again.
        """
        return self._places(user_ids, " AND state != 'quarantined'")

    def _places(self, user_ids: Sequence[str], where: str = "") -> dict[str, tuple[str, str]]:
        places: dict[str, tuple[str, str]] = {}
        columns = ["id", "run_id", "source"]
        for start in range(0, len(user_ids), USERS_PER_FILTER):
            users = of_users(user_ids[start : start + USERS_PER_FILTER])
            found = read(self.messages, users + where, columns)
            ids, runs, sources = (found[name].to_pylist() for name in columns)
            places |= dict(zip(ids, zip(runs, sources, strict=True), strict=True))
        return places

    def entries_of(
        self, user_ids: Sequence[str], tombstones: bool = False, version: int = 0
    ) -> list[Entry]:
        """Entries with their vectors, by user and in their order: as of a `version` of the table
        that was just the newest, or else as they are."""
        where = of_users(user_ids) + ("" if tombstones else " AND superseded_by = ''")
        versions = chain([version], repeat(0))
        rows = twice(lambda: self.rows_at(next(versions), where), self._forget_reader)
        return sorted(from_table(rows, Entry), key=lambda e: (e.user_id, e.order))

    def rows_at(self, version: int, where: str) -> pa.Table:
        """Rows of a version of the entries, 0 for the newest. A dataset hands over a user's in a
        third of the time that a query of the table takes."""
        version, reader = version or self.entries.version, self.reader
        if reader is None:
            reader = self.entries.to_lance(
                index_cache_size_bytes=READER_CACHE_BYTES,
                metadata_cache_size_bytes=READER_CACHE_BYTES,
            )
        if reader.version != version:
            reader = reader.checkout_version(version)
        self.reader = reader
        return reader.to_table(filter=where, late_materialization=False)

    def _forget_reader(self) -> None:
        self.reader = None

    def entries_with_prefix(self, entry_id: str) -> list[Entry]:
        """The entries whose id starts so, tombstones too."""
        return from_table(read(self.entries, f"starts_with(id, {quoted(entry_id)})"), Entry)

    def superseded_by(self, entry: Entry) -> list[Entry]:
        """The tombstones that name an entry as their successor, in their order."""
        where = f"{of_users([entry.user_id])} AND superseded_by = {quoted(entry.id)}"
        return sorted(from_table(read(self.entries, where), Entry), key=lambda e: e.order)

    def sources(self, user_id: str, sources: Sequence[Source]) -> list[Message]:
        """The messages that an entry came from, in their order."""
        if not sources:
            return []
        ids = sorted({source.message_id for source in sources})
        where = f"{of_users([user_id])} AND {among('id', ids)}"
        found = from_table(read(self.messages, where), Message)
        return sorted(found, key=lambda m: (m.said_at, m.session_id, m.position))

    def message_batches(self, run_id: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The messages that a run stored, in batches."""
        return read_batches(self.messages, f"run_id = {quoted(run_id)}", columns)

    def quarantined_sizes(self, run_ids: Sequence[str]) -> dict[str, int]:
        """The number of messages of each user that runs could not extract."""
        sizes: dict[str, int] = {}
        for batch in read_batches(self.messages, _quarantined_by(run_ids), ["user_id"]):
            for item in batch["user_id"].value_counts().to_pylist():
                sizes[item["values"]] = sizes.get(item["values"], 0) + item["counts"]
        return sizes

    def quarantined(self, run_ids: Sequence[str], user_ids: Sequence[str]) -> list[Message]:
        """What runs could not extract of some users, by user. A later insert may settle it."""
        where = f"{of_users(user_ids)} AND {_quarantined_by(run_ids)}"
        found = from_table(read(self.messages, where), Message)
        return sorted(found, key=lambda m: (m.user_id, m.id))

    def entries_written(self, run_id: str) -> int:
        """How many entries a run wrote."""
        return self.entries.count_rows(f"run_id = {quoted(run_id)}")

    def _committed(self) -> None:
        self.commits += 1
        keep_fast(self)

    @property
    def tables(self) -> tuple[Table, ...]:
        return self.entries, self.messages, self.versions


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


def _unstored(sources: Sequence[dict[str, Any]], stored: Collection[str]) -> bool:
    return any(source["message_id"] not in stored for source in sources)


def _found(table: Table, where: str, column: str) -> set[str]:
    return set(read(table, where, [column])[column].to_pylist())


def _quarantined_by(run_ids: Sequence[str]) -> str:
    return f"state = 'quarantined' AND {among('run_id', run_ids)}"


def _newest(entries: pa.Table) -> pa.Table:
    return _unique(entries, [-gen for gen in entries["gen"].to_pylist()])


def _unique(rows: pa.Table, ranks: Sequence[int]) -> pa.Table:
    """A row of each id, of the lowest rank, and the first of such. A commit that names an id twice
    would fail or write both."""
    ids = rows["id"].to_pylist()
    best: dict[str, int] = {}
    for place in sorted(range(len(ids)), key=ranks.__getitem__):
        best.setdefault(ids[place], place)
    return rows if len(best) == len(rows) else rows.take(sorted(best.values()))
