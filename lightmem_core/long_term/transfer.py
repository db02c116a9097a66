"""Export: the rows of some users, or of all, as files that do not hang on shards.

A folder holds a file per table and shard, and last of all its manifest: without one there is no
export. Reads follow the order of writes backwards (messages, entries, versions), and an import
writes in their order, so that a message that is found always has its entries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from lightmem_core.errors import InputError, StoreError
from lightmem_core.long_term.shard import USERS_PER_FILTER, Shard
from lightmem_core.long_term.store import SCHEMA_VERSION, MemoryStore
from lightmem_core.long_term.tables import of_users, read_batches

if TYPE_CHECKING:
    from lancedb.table import Table

Format = Literal["parquet", "jsonl"]
Kind = Literal["messages", "entries", "versions"]
KINDS: tuple[Kind, ...] = ("messages", "entries", "versions")
MANIFEST = "manifest.json"
GROUP_ROWS = 5_000  # of a Parquet row group, and of a commit


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """Whose rows to write (no users: everyone's), and how."""

    users: tuple[str, ...] = ()
    format: Format = "parquet"
    vectors: bool = True


@dataclass(frozen=True, slots=True)
class ExportManifest:
    """What an export holds: its `files` with the number of rows in each."""

    schema_version: str
    embedder: str
    dim: int
    format: Format
    vectors: bool
    counts: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)


def export(
    store: MemoryStore, system: fs.FileSystem, folder: str, request: ExportRequest
) -> dict[str, int]:
    """Write rows to a folder; return how many of each kind. Raise StoreError for an unknown user,
    InputError where the folder holds an export already."""
    place = f"{folder}/{MANIFEST}"
    if system.get_file_info(place).type != fs.FileType.NotFound:
        raise InputError(f"{folder} holds an export already: name an empty folder")
    work = dict(_work(store, request.users))
    counts: dict[str, int] = dict.fromkeys(KINDS, 0)
    files: dict[str, int] = {}
    for number, filters in work.items():
        for kind in KINDS:
            name = f"{kind}/{number:04}.{request.format}"
            batches = _rows(table_of(store.shards[number], kind), filters, request.vectors)
            files[name] = _write(system, f"{folder}/{name}", batches, request.format)
            counts[kind] += files[name]
    model = store.model
    manifest = ExportManifest(
        SCHEMA_VERSION, model.name, model.dim, request.format, request.vectors, counts, files
    )
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False)
    with system.open_output_stream(f"{place}.part") as stream:
        stream.write(text.encode())
    system.move(f"{place}.part", place)
    return counts


def _work(store: MemoryStore, users: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The filters of each shard that has something to export."""
    if not users:
        yield from ((number, ["true"]) for number in range(store.shard_count))
        return
    for number, held in sorted(store.by_shard(dict.fromkeys(users)).items()):
        for user in held:
            shard, where = store.shards[number], of_users([user])
            if not shard.messages.count_rows(where) + shard.entries.count_rows(where):
                raise StoreError(f"the store holds nothing of user {user!r}")
        parts = range(0, len(held), USERS_PER_FILTER)
        yield number, [of_users(held[at : at + USERS_PER_FILTER]) for at in parts]


def table_of(shard: Shard, kind: Kind) -> Table:
    return getattr(shard, kind)


def _rows(table: Table, filters: Sequence[str], vectors: bool) -> tuple[pa.Schema, Iterator[Any]]:
    schema = table.schema
    if not vectors and "vector" in schema.names:
        schema = schema.remove(schema.get_field_index("vector"))
    return schema, (b for where in filters for b in read_batches(table, where, schema.names))


def _write(
    system: fs.FileSystem, path: str, rows: tuple[pa.Schema, Iterator[Any]], format: Format
) -> int:
    """Write a file that is complete or absent; return its rows."""
    system.create_dir(path.rpartition("/")[0], recursive=True)
    schema, batches = rows
    write = _write_parquet if format == "parquet" else _write_lines
    count = write(system, f"{path}.part", schema, batches)
    system.move(f"{path}.part", path)
    return count


def _write_parquet(
    system: fs.FileSystem, path: str, schema: pa.Schema, batches: Iterator[Any]
) -> int:
    count = 0
    with pq.ParquetWriter(path, schema, filesystem=system, compression="zstd") as writer:
        for table in _groups(batches):
            writer.write_table(table.select(schema.names).cast(schema))
            count += len(table)
    return count


def _write_lines(
    system: fs.FileSystem, path: str, schema: pa.Schema, batches: Iterator[Any]
) -> int:
    count = 0
    with system.open_output_stream(path) as stream:
        for batch in batches:
            for row in batch.select(schema.names).to_pylist():
                stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            count += len(batch)
    return count


def _groups(batches: Iterator[Any]) -> Iterator[pa.Table]:
    """Small batches joined."""
    held: list[Any] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= GROUP_ROWS:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)
