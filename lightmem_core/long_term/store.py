"""The store: one LanceDB database, hash-sharded by user, with a ledger of runs.

Inserts skip the ids that exist; the sleep phase writes a row again only with a higher `gen`, after
what it was has become a version.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from lightmem_core.config import StoreConfig
from lightmem_core.errors import StoreError
from lightmem_core.long_term.objects import check_store
from lightmem_core.long_term.runs import RunLedger
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.tables import (
    entry_schema,
    keyed_table,
    made_once,
    message_schema,
    opened,
    version_schema,
)
from lightmem_core.protocols import Embedder
from lightmem_core.schema import to_table

if TYPE_CHECKING:
    from lancedb.db import DBConnection
    from lancedb.table import Table

SCHEMA_VERSION = "1"
MANIFEST = "store"
CACHE_BYTES = 16 << 20  # of indices, and of metadata; by default they may grow to gigabytes
READ_AHEAD_BYTES = 32 << 20  # by default 2 GiB: compaction would read as much as it can hold


@dataclass(frozen=True, slots=True)
class TableNames:
    """Messages outlive the vectors: `generation` counts how often entries were embedded anew."""

    generation: int
    shard: int

    @property
    def messages(self) -> str:
        return f"messages_{self.shard:04}"

    @property
    def entries(self) -> str:
        return f"entries_{self.shard:04}{self._suffix}"

    @property
    def versions(self) -> str:
        return f"versions_{self.shard:04}{self._suffix}"

    @property
    def _suffix(self) -> str:
        return f"_g{self.generation}" if self.generation else ""


@dataclass(frozen=True, slots=True)
class VectorModel:
    """The embedder that made a store's vectors; its vectors alone can be compared with them."""

    name: str
    dim: int

    @classmethod
    def of(cls, embedder: Embedder) -> VectorModel:
        return cls(embedder.name, embedder.dim)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a store is: a table of one row, so that it changes at once."""

    schema_version: str
    shards: int
    embedder: str
    dim: int
    generation: int = 0

    @property
    def model(self) -> VectorModel:
        return VectorModel(self.embedder, self.dim)

    def table(self) -> pa.Table:
        return to_table([self], Manifest)


def connect(config: StoreConfig) -> DBConnection:
    os.environ.setdefault("LANCE_DEFAULT_IO_BUFFER_SIZE", str(READ_AHEAD_BYTES))
    import lancedb

    return lancedb.connect(
        config.uri,
        storage_options=config.storage_options or None,
        read_consistency_interval=timedelta(0),
        session=lancedb.Session(CACHE_BYTES, CACHE_BYTES),
    )


class MemoryStore:
    """An open store. `create` and `open` check that it fits; the constructor only holds."""

    def __init__(self, database: DBConnection, manifest: Manifest):
        self.database = database
        self.manifest = manifest
        self._confirmed = 0

    @property
    def model(self) -> VectorModel:
        return self.manifest.model

    @property
    def shard_count(self) -> int:
        return self.manifest.shards

    @classmethod
    def create(cls, config: StoreConfig, model: VectorModel) -> MemoryStore:
        """Open the store, making it first where there is none."""
        check_store(config, write=True)
        database = connect(config)
        if opened(database, MANIFEST) is None:
            for shard in range(config.shards):
                create_shard(database, TableNames(0, shard), model.dim)
            # Last: a store whose making was cut off does not exist yet.
            manifest = Manifest(SCHEMA_VERSION, config.shards, model.name, model.dim)
            made_once(database, MANIFEST, manifest.table())
        return cls.open(config, model)

    @classmethod
    def open(cls, config: StoreConfig, model: VectorModel | None = None) -> MemoryStore:
        """Raise StoreError where there is no store, or one of other vectors or another version."""
        check_store(config)
        local = "://" not in config.uri
        database = None if local and not Path(config.uri).exists() else connect(config)
        table = None if database is None else opened(database, MANIFEST)
        if database is None or table is None:
            raise StoreError(f"there is no store at {config.uri}: run `lightmem backfill` first")
        manifest = _manifest(table)
        if manifest.schema_version != SCHEMA_VERSION:
            raise StoreError(
                f"{config.uri} has schema version {manifest.schema_version}, this release reads "
                f"{SCHEMA_VERSION}: use the release that wrote it, or backfill into a new store"
            )
        if model is not None and manifest.model != model:
            stored = manifest.model
            raise StoreError(
                f"{config.uri} holds vectors of {stored.name} (dimension {stored.dim}), but the "
                f"configured embedder is {model.name} ({model.dim}): restore the embedder it was "
                "built with, or run `lightmem reembed` to move the store to the configured one"
            )
        return cls(database, manifest)

    def shard_number(self, user_id: str) -> int:
        return shard_number(user_id, self.shard_count)

    @cached_property
    def shards(self) -> list[Shard]:
        return [self.shard(number) for number in range(self.shard_count)]

    @cached_property
    def runs(self) -> RunLedger:
        return RunLedger(self.database)

    @cached_property
    def salt(self) -> str:
        """A secret of the store, made once: nobody can guess erased users from their pseudonyms
        without it."""
        made = pa.table({"salt": [secrets.token_hex(16)]})
        return made_once(self.database, "salt", made).to_arrow()["salt"][0].as_py()

    def shard(self, number: int) -> Shard:
        names = TableNames(self.manifest.generation, number)
        tables = (names.entries, names.messages, names.versions)
        entries, messages, versions = map(self.database.open_table, tables)
        return Shard(number, entries, messages, versions, confirm=self.confirm)

    def confirm(self) -> None:
        """Raise StoreError if the store has been switched to other vectors since it was opened."""
        version = self._manifest_table.version
        if version == self._confirmed:
            return
        now = read_manifest(self.database)
        if now.generation != self.manifest.generation:
            raise StoreError(
                f"the store was switched to vectors of {now.embedder} (dimension {now.dim}) "
                "meanwhile: configure that embedder and run again, only what is missing will be "
                "written"
            )
        self._confirmed = version

    @cached_property
    def _manifest_table(self) -> Table:
        return self.database.open_table(MANIFEST)

    def shard_for(self, user_id: str) -> Shard:
        return self.shards[self.shard_number(user_id)]

    def by_shard(self, user_ids: Iterable[str]) -> dict[int, list[str]]:
        """Group users by the shard that holds them."""
        groups: dict[int, list[str]] = {}
        for user_id in user_ids:
            groups.setdefault(self.shard_number(user_id), []).append(user_id)
        return groups


def shard_number(user_id: str, shards: int) -> int:
    """The shard that holds a user."""
    return _digest(user_id) % shards


def part_number(user_id: str, shards: int, parts: int) -> int:
    """The part of an input that holds a user, of so many in the order of the shards: a part holds
    users of few shards, or of one."""
    rest, shard = divmod(_digest(user_id), shards)
    return int((shard + (rest & 0xFFFF) / 0x10000) * parts / shards)


def _digest(user_id: str) -> int:
    digest = hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def read_manifest(database: DBConnection, name: str = MANIFEST) -> Manifest:
    return _manifest(database.open_table(name))


def _manifest(table: Table) -> Manifest:
    return Manifest(**table.to_arrow().to_pylist()[0])


def table_names(database: DBConnection) -> list[str]:
    return database.list_tables(limit=100_000).tables


def create_shard(database: DBConnection, names: TableNames, dim: int) -> None:
    """Make the tables of a shard, as far as they are not there."""
    _make_table(database, names.messages, message_schema(), "id")
    _make_table(database, names.versions, version_schema(dim), "key")
    _make_table(database, names.entries, entry_schema(dim), "id")


def _make_table(database: DBConnection, name: str, schema: pa.Schema, key: str) -> None:
    found = opened(database, name)
    if found is not None and found.schema != schema:
        database.drop_table(name)  # of a store of another shape, whose making was cut off
    keyed_table(database, name, schema, key, "user_id")
