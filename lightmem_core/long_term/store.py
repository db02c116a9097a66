"""The store: one LanceDB database, hash-sharded by user, with a ledger of runs.

Nothing here is overwritten in place: inserts skip the ids that exist, and the sleep phase writes
a row again only with a higher `gen`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lightmem_core.config import StoreConfig
from lightmem_core.errors import StoreError
from lightmem_core.long_term.runs import RunLedger
from lightmem_core.long_term.shard import Shard, entry_schema, message_schema
from lightmem_core.protocols import Embedder

if TYPE_CHECKING:
    from lancedb.db import DBConnection

SCHEMA_VERSION = "1"
CACHE_BYTES = 64 << 20  # of indices, and of metadata; by default they may grow to gigabytes


@dataclass(frozen=True, slots=True)
class VectorModel:
    """The embedder that made a store's vectors; its vectors alone can be compared with them."""

    name: str
    dim: int

    @classmethod
    def of(cls, embedder: Embedder) -> VectorModel:
        return cls(embedder.name, embedder.dim)


def connect(config: StoreConfig) -> DBConnection:
    import lancedb

    return lancedb.connect(
        config.uri,
        storage_options=config.storage_options or None,
        read_consistency_interval=timedelta(0),
        session=lancedb.Session(CACHE_BYTES, CACHE_BYTES),
    )


class MemoryStore:
    """An open store. `create` and `open` check that it fits; the constructor only holds."""

    def __init__(self, database: DBConnection, shards: int, model: VectorModel):
        self.database = database
        self.model = model
        self.shard_count = shards

    @classmethod
    def create(cls, config: StoreConfig, model: VectorModel) -> MemoryStore:
        """Open the store, making it first where there is none."""
        database = connect(config)
        for shard in range(config.shards):
            if _exists(database):
                break
            # Shard 0 is made last: a store whose making was cut off does not exist yet.
            _create_shard(database, config.shards - 1 - shard, config.shards, model)
        return cls.open(config, model)

    @classmethod
    def open(cls, config: StoreConfig, model: VectorModel | None = None) -> MemoryStore:
        """Raise StoreError where there is no store, or one of other vectors or another version."""
        local = "://" not in config.uri
        database = None if local and not Path(config.uri).exists() else connect(config)
        if database is None or not _exists(database):
            raise StoreError(f"there is no store at {config.uri}: run `lightmem backfill` first")
        metadata = database.open_table(_entries(0)).schema.metadata or {}
        kept = {key.decode(): value.decode() for key, value in metadata.items()}
        stored = VectorModel(kept["embedder"], int(kept["dim"]))
        if kept["schema_version"] != SCHEMA_VERSION:
            raise StoreError(
                f"{config.uri} has schema version {kept['schema_version']}, this release reads "
                f"{SCHEMA_VERSION}: use the release that wrote it, or backfill into a new store"
            )
        if model is not None and stored != model:
            raise StoreError(
                f"{config.uri} holds vectors of {stored.name} (dimension {stored.dim}), but the "
                f"configured embedder is {model.name} ({model.dim}): restore the embedder it was "
                "built with, or backfill into a new store"
            )
        return cls(database, int(kept["shards"]), stored)

    def shard_number(self, user_id: str) -> int:
        digest = hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.shard_count

    @cached_property
    def shards(self) -> list[Shard]:
        return [self.shard(number) for number in range(self.shard_count)]

    @cached_property
    def runs(self) -> RunLedger:
        return RunLedger(self.database)

    def shard(self, number: int) -> Shard:
        open_table = self.database.open_table
        return Shard(number, open_table(_entries(number)), open_table(_messages(number)))

    def shard_for(self, user_id: str) -> Shard:
        return self.shards[self.shard_number(user_id)]

    def by_shard(self, user_ids: Iterable[str]) -> dict[int, list[str]]:
        """Group users by the shard that holds them."""
        groups: dict[int, list[str]] = {}
        for user_id in user_ids:
            groups.setdefault(self.shard_number(user_id), []).append(user_id)
        return groups


def _entries(shard: int) -> str:
    return f"entries_{shard:04}"


def _messages(shard: int) -> str:
    return f"messages_{shard:04}"


def _exists(database: DBConnection) -> bool:
    return _entries(0) in _tables(database)


def _tables(database: DBConnection) -> list[str]:
    return database.list_tables(limit=100_000).tables


def _create_shard(database: DBConnection, shard: int, shards: int, model: VectorModel) -> None:
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "shards": str(shards),
        "embedder": model.name,
        "dim": str(model.dim),
    }
    _create_table(database, _messages(shard), message_schema().with_metadata(metadata))
    _create_table(database, _entries(shard), entry_schema(model.dim).with_metadata(metadata))


def _create_table(database: DBConnection, name: str, schema: pa.Schema) -> Any:
    """A primary key makes replayed inserts harmless; it must have no scalar index of its own."""
    from lancedb.index import BTree

    if name in _tables(database):
        database.drop_table(name)
    table = database.create_table(name, schema=schema)
    table.set_unenforced_primary_key("id")  # pyright: ignore[reportAttributeAccessIssue]
    table.create_index("user_id", config=BTree())
    return table
