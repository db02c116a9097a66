"""Move a store to another embedder: a second generation of its tables is filled, then it is the
store.

Readers and writers go on with the present generation meanwhile. Whatever they add or change is
brought over by comparing the two, until the manifest is switched in one commit; what was committed
before that and not brought over yet follows. All steps may be repeated.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightmem_core.errors import StoreError
from lightmem_core.long_term.embed import encode
from lightmem_core.long_term.portions import portioned
from lightmem_core.long_term.render import embedding_text
from lightmem_core.long_term.shard import IDS_PER_FILTER, Shard
from lightmem_core.long_term.store import (
    MANIFEST,
    MemoryStore,
    TableNames,
    VectorModel,
    create_shard,
    read_manifest,
    table_names,
)
from lightmem_core.long_term.tables import (
    NEWER,
    among,
    committed,
    insert_missing,
    made_once,
    of_users,
    read,
    upsert,
)
from lightmem_core.protocols import Embedder
from lightmem_core.schema import from_table
from lightmem_core.types import Entry

ROWS = 2_000  # that are embedded and committed together: a killed job loses no more an actor
VECTORS = r"(?:entries|versions)_\d+"
OF_GENERATION = re.compile(rf"(?:{VECTORS}|{MANIFEST})_g(\d+)|{VECTORS}")

compute: Any = pc


@dataclass(frozen=True, slots=True)
class Embedded:
    """Rows of both tables of a shard, as the next generation is to hold them."""

    entries: pa.Table
    versions: pa.Table


def next_generation(store: MemoryStore, model: VectorModel) -> MemoryStore:
    """The store as it will be, with the vectors of another embedder. Going on with what an
    interrupted attempt for that embedder has made; attempts for others have tables of their own.
    """
    present = store.manifest.generation
    names = table_names(store.database)
    begun = [g for g in _generations(names) if g > present and _manifest_name(g) in names]
    for generation in begun:
        manifest = read_manifest(store.database, _manifest_name(generation))
        if manifest.model == model:
            return MemoryStore(store.database, manifest)
    generation = max([present, *_generations(names)]) + 1
    for number in range(store.shard_count):
        create_shard(store.database, TableNames(generation, number), model.dim)
    manifest = replace(store.manifest, embedder=model.name, dim=model.dim, generation=generation)
    # Last: a generation whose making was cut off is not gone on with.
    made_once(store.database, _manifest_name(generation), manifest.table())
    return MemoryStore(store.database, manifest)


def previous_generation(store: MemoryStore) -> MemoryStore | None:
    """The store as it was before it was switched, if its tables are still there."""
    names = table_names(store.database)
    older = [g for g in _generations(names) if g < store.manifest.generation]
    if not older or TableNames(max(older), 0).entries not in names:
        return None
    return MemoryStore(store.database, replace(store.manifest, generation=max(older)))


def switch(old: MemoryStore, new: MemoryStore) -> None:
    """Make a generation the present one, in one commit. Attempts for other embedders go first.

    Raise StoreError if the store was switched to another embedder meanwhile.
    """
    present, chosen = old.manifest.generation, new.manifest
    drop_generations(old, lambda g: present < g != chosen.generation)
    old.database.open_table(MANIFEST).update(
        where=f"generation = {present}",
        values={
            "embedder": chosen.embedder,
            "dim": chosen.dim,
            "generation": chosen.generation,
        },
    )
    now = read_manifest(old.database)
    if now != chosen:
        raise StoreError(
            f"the store was switched to vectors of {now.embedder} (dimension {now.dim}) meanwhile: "
            f"run `lightmem reembed` again to move it to {chosen.embedder} ({chosen.dim})"
        )


def drop_generations(store: MemoryStore, unwanted: Callable[[int], bool]) -> int:
    """Drop the tables of some generations; return how many. The entries of shard 0 go first: a
    generation without them is not read any more."""
    names = [n for n in sorted(table_names(store.database)) if OF_GENERATION.fullmatch(n)]
    dropped = [name for name in names if unwanted(_generation(name))]
    for name in dropped:
        store.database.drop_table(name)
    return len(dropped)


def pending(old: Shard, new: Shard) -> Counter[str]:
    """How many rows each user has that the next generation does not hold, or holds as they were."""
    users: Counter[str] = Counter()
    for table, other, key in _pairs(old, new):
        rows = read(table, "true", ["user_id", key, "gen"])
        missing = _missing(rows, read(other, "true", [key, "gen"]), key)
        for item in missing["user_id"].value_counts().to_pylist():
            users[item["values"]] += item["counts"]
    return users


def remove_gone(old: Shard, new: Shard, confirm: Callable[[], None]) -> int:
    """Delete from the next generation what the present one no longer holds; return how much.

    `confirm` raises once the switch is made: from then on the present one holds less.
    """
    removed = 0
    for table, other, key in _pairs(old, new):
        held = read(other, "true", [key])  # first: what is held now was there before
        gone = held.join(read(table, "true", [key]), keys=key, join_type="left anti")
        confirm()
        ids = gone[key].to_pylist()
        for start in range(0, len(ids), IDS_PER_FILTER):
            some = among(key, ids[start : start + IDS_PER_FILTER])
            committed(other, partial(other.delete, some))
        removed += len(ids)
    return removed


def portions(sizes: Mapping[str, int], rows: int = ROWS) -> Iterator[list[str]]:
    """Users in their order, in portions of about so many rows."""
    return portioned(dict(sorted(sizes.items())), rows)


class Reembedding:
    """Give new vectors to what the next generation lacks of some users."""

    def __init__(self, embedder: Embedder):
        self.embedder = embedder

    def __call__(self, old: Shard, new: Shard, user_ids: Sequence[str]) -> Iterator[Embedded]:
        """At most ROWS of each table at a time; entries and versions of one text share a vector."""
        entries, versions = (_lacking(*pair, user_ids) for pair in _pairs(old, new))
        for start in range(0, max(len(entries), len(versions)), ROWS):
            parts = [rows.slice(start, ROWS) for rows in (entries, versions)]
            texts = [[embedding_text(e) for e in from_table(part, Entry)] for part in parts]
            unique = list(dict.fromkeys([*texts[0], *texts[1]]))
            vectors = encode(self.embedder, unique)
            place = {text: n for n, text in enumerate(unique)}
            schemas = (new.entries.schema, new.versions.schema)
            yield Embedded(
                *(
                    _with_vectors(part, vectors[[place[text] for text in of_part]], schema)
                    for part, of_part, schema in zip(parts, texts, schemas, strict=True)
                )
            )


def store_embedded(new: Shard, rows: Embedded) -> None:
    """Commit rows to the next generation, unless it holds them as they are or later."""
    insert_missing(new.versions, "key", rows.versions)
    if len(rows.entries):
        upsert(new.entries, "id", rows.entries, NEWER)


def _pairs(old: Shard, new: Shard) -> tuple[tuple[Any, Any, str], ...]:
    return (old.entries, new.entries, "id"), (old.versions, new.versions, "key")


def _lacking(table: Any, other: Any, key: str, user_ids: Sequence[str]) -> pa.Table:
    """The rows to be brought over, by user and time, without their vectors."""
    where = of_users(user_ids)
    rows = read(table, where, [name for name in table.schema.names if name != "vector"])
    missing = _missing(rows.select([key, "gen"]), read(other, where, [key, "gen"]), key)
    wanted = compute.is_in(rows[key], value_set=missing[key].combine_chunks())
    return rows.filter(wanted).sort_by([("user_id", "ascending"), ("said_at", "ascending")])


def _missing(rows: pa.Table, held: pa.Table, key: str) -> pa.Table:
    """The rows that are not held, or only with a lower gen."""
    both = rows.join(held.rename_columns([key, "held"]), keys=key, join_type="left outer")
    older = compute.less(both["held"], both["gen"])
    return both.filter(compute.or_kleene(compute.is_null(both["held"]), older))


def _with_vectors(rows: pa.Table, vectors: np.ndarray, schema: pa.Schema) -> pa.Table:
    columns = {name: rows[name] for name in rows.column_names}
    flat = pa.array(np.ascontiguousarray(vectors).ravel(), pa.float32())
    columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def _manifest_name(generation: int) -> str:
    return f"{MANIFEST}_g{generation}"


def _generation(name: str) -> int:
    found = OF_GENERATION.fullmatch(name)
    return int(found[1] or 0) if found else 0


def _generations(names: Sequence[str]) -> list[int]:
    """Those that have tables: the present one, older ones, and those in the making."""
    return sorted({_generation(name) for name in names if OF_GENERATION.fullmatch(name)})
