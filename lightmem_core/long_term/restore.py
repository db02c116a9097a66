"""Import: the rows of an export, added to a store of any number of shards."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from lightmem_core.errors import InputError
from lightmem_core.long_term.embed import encode
from lightmem_core.long_term.render import embedding_text
from lightmem_core.long_term.store import SCHEMA_VERSION, MemoryStore, VectorModel
from lightmem_core.long_term.tables import NEWER, upsert
from lightmem_core.long_term.transfer import (
    GROUP_ROWS,
    KINDS,
    MANIFEST,
    ExportManifest,
    Kind,
    table_of,
)
from lightmem_core.long_term.upkeep import COMPACT_AFTER
from lightmem_core.protocols import Embedder
from lightmem_core.schema import from_table
from lightmem_core.types import Entry

BUFFER_BYTES = 1 << 20

KEYS: dict[Kind, str] = {"messages": "id", "entries": "id", "versions": "key"}
RENEWED: dict[Kind, str] = {  # when a row that is there gives way to the imported one
    "messages": "target.state = 'quarantined' AND source.state != 'quarantined'",
    "entries": NEWER,
    "versions": "false",
}


@dataclass
class ImportCount:
    """`kept` rows were in the store already, in the same or a later state."""

    added: int = 0
    renewed: int = 0
    kept: int = 0


def read_manifest(system: fs.FileSystem, folder: str, model: VectorModel) -> ExportManifest:
    """Raise InputError unless the folder holds a finished export that fits the embedder."""
    try:
        with system.open_input_stream(f"{folder}/{MANIFEST}") as stream:
            manifest = ExportManifest(**json.loads(stream.read()))
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no finished export: it has no {MANIFEST}; run `lightmem export` again"
        ) from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder}/{MANIFEST} is no manifest of an export: {error}") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise InputError(
            f"{folder} has schema version {manifest.schema_version}, this release reads "
            f"{SCHEMA_VERSION}: import it with the release that wrote it"
        )
    if manifest.vectors and (manifest.embedder, manifest.dim) != (model.name, model.dim):
        raise InputError(
            f"{folder} holds vectors of {manifest.embedder} (dimension {manifest.dim}), but the "
            f"configured embedder is {model.name} ({model.dim}): configure that embedder, or "
            "export with --no-vectors"
        )
    return manifest


def import_rows(
    store: MemoryStore,
    system: fs.FileSystem,
    folder: str,
    manifest: ExportManifest,
    embedder: Embedder,
) -> dict[str, ImportCount]:
    """Add the rows of an export, with their ids. Of an entry that is there, the state with the
    higher `gen` stays; of a message, the one that is not quarantined.

    Rows without vectors are embedded. Raise InputError at a file that is not as it was written.
    """
    importer = Importer(store, embedder)
    for kind in reversed(KINDS):
        for name in sorted(name for name in manifest.files if name.startswith(f"{kind}/")):
            read = 0
            for rows in _read(system, f"{folder}/{name}", importer.schema(kind, manifest.vectors)):
                importer.add(kind, rows)
                read += len(rows)
            if read != manifest.files[name]:
                raise InputError(
                    f"{folder}/{name} holds {read} rows, the manifest says {manifest.files[name]}: "
                    "export again"
                )
    importer.compact()
    return importer.counts


class Importer:
    """Writes the rows of an export to their users' shards."""

    def __init__(self, store: MemoryStore, embedder: Embedder):
        self.store = store
        self.embedder = embedder
        self.counts: dict[str, ImportCount] = {kind: ImportCount() for kind in KINDS}
        self.commits = dict.fromkeys(range(store.shard_count), 0)

    def schema(self, kind: Kind, vectors: bool) -> pa.Schema:
        schema = table_of(self.store.shards[0], kind).schema
        place = schema.get_field_index("vector")
        return schema if vectors or place < 0 else schema.remove(place)

    def add(self, kind: Kind, rows: pa.Table) -> None:
        schema = self.schema(kind, vectors=True)
        if "vector" in schema.names and "vector" not in rows.schema.names:
            rows = self._embedded(rows)
        rows = rows.select(schema.names).cast(schema)
        numbers = [self.store.shard_number(user) for user in rows["user_id"].to_pylist()]
        for number in sorted(set(numbers)):
            self._merge(kind, number, rows.filter(pa.array([n == number for n in numbers])))

    def compact(self) -> None:
        for number, commits in self.commits.items():
            if commits:
                self.store.shards[number].compact()

    def _embedded(self, rows: pa.Table) -> pa.Table:
        texts = [embedding_text(entry) for entry in from_table(rows, Entry)]
        flat = pa.array(encode(self.embedder, texts).reshape(-1), pa.float32())
        vectors = pa.FixedSizeListArray.from_arrays(flat, self.store.model.dim)
        return rows.append_column("vector", vectors)

    def _merge(self, kind: Kind, number: int, rows: pa.Table) -> None:
        table = table_of(self.store.shards[number], kind)
        rows = rows.sort_by([("user_id", "ascending"), ("said_at", "ascending")])
        result = upsert(table, KEYS[kind], rows, RENEWED[kind])
        count = self.counts[kind]
        count.added += result.num_inserted_rows
        count.renewed += result.num_updated_rows
        count.kept += len(rows) - result.num_inserted_rows - result.num_updated_rows
        self.commits[number] += 1
        if self.commits[number] % COMPACT_AFTER == 0:
            self.store.shards[number].compact()


def _read(system: fs.FileSystem, path: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """A file's rows, some thousands at a time."""
    read = _read_parquet if path.endswith(".parquet") else _read_lines
    try:
        yield from (pa.Table.from_batches([b]).cast(schema) for b in read(system, path, schema))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not as it was written, export again: {reason}") from error


def _read_parquet(system: fs.FileSystem, path: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with system.open_input_file(path) as file:
        for batch in pq.ParquetFile(file).iter_batches(GROUP_ROWS):
            yield batch.select(schema.names)


def _read_lines(system: fs.FileSystem, path: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with system.open_input_file(path) as file:
        held: list[dict[str, Any]] = []
        for line in io.BufferedReader(cast(io.RawIOBase, file), BUFFER_BYTES):
            row = json.loads(line)
            held.append({name: row[name] for name in schema.names})
            if len(held) == GROUP_ROWS:
                yield pa.RecordBatch.from_pylist(held, schema)
                held = []
        if held:
            yield pa.RecordBatch.from_pylist(held, schema)
