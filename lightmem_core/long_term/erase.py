"""Erase a user from the tables of a store, so that no file of theirs holds the user any more.

A delete alone hides rows: the data files, the pages of an index, the delete's own filter and all
older versions keep them. So what holds the user is rewritten, and everything older is dropped.
Nothing else may write meanwhile: a commit that started on a version which is gone cannot see what
it conflicts with, and would store rows twice. `lease.ERASING` keeps the other runs away.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightmem_core.errors import StoreError
from lightmem_core.long_term.mentions import redacted
from lightmem_core.long_term.store import MemoryStore, table_names
from lightmem_core.long_term.tables import (
    FRAGMENT_ROWS,
    SCAN_ROWS,
    of_users,
    quoted,
    read_batches,
)

if TYPE_CHECKING:
    from lancedb.table import Table

SOUGHT_IDS = 10  # of a user's rows in each table, whose letters are looked for in all files
SHARDED = re.compile(r"_(\d{4,})(_g\d+)?$")
USER_COLUMNS = {"user_id", "values", "min", "max"}  # of data files, and of an index on user_id


@dataclass(frozen=True, slots=True)
class ErasedTable:
    """`rows` of the user were found and are gone, with `old_versions` of the whole table."""

    name: str
    rows: int
    old_versions: int


def erase_rows(store: MemoryStore, user_id: str) -> list[ErasedTable]:
    """Remove a user's rows from every table, physically, and what cut-off writes and an
    earlier try left of them.

    Raise StoreError naming what is left of the user.
    """
    tables = list(_tables_of(store, user_id))
    ids = _sought(tables, user_id)
    try:
        erased = [_erase(table, user_id) for table in tables]
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).replace(user_id, "USER")
        raise StoreError(f"the erasing was cut off, run it again: {reason}") from None
    if "://" not in store.database.uri:
        _check_files(Path(store.database.uri), [t.name for t in tables], user_id)
        check_bytes(Path(store.database.uri), ids)
    return erased


def erase_from_ledger(store: MemoryStore, user_id: str) -> int:
    """Replace a user's id in the requests and reports of runs; return in how many it stood."""
    named = 0
    for run in store.runs.latest(None):
        request, report = redacted(run.request, user_id), redacted(run.report, user_id)
        if (request, report) != (run.request, run.report):
            store.runs.write(replace(run, request=request, report=report))
            named += 1
    table = store.runs.table
    _rewrite(table, None)
    _drop_old(table)
    return named


def check_run_bytes(store: MemoryStore, user_id: str) -> None:
    """Raise StoreError if a file that a run left holds an id of the user's rows. Only while these
    are there can it be known: what is left must be found before they go."""
    if "://" not in store.database.uri:
        ids = _sought(list(_tables_of(store, user_id)), user_id)
        check_bytes(Path(store.database.uri) / "_runs", ids)


def check_bytes(folder: Path, ids: Sequence[str]) -> None:
    """Raise StoreError if a file below a folder holds one of the ids of what was erased."""
    if not ids:
        return
    sought = re.compile(b"|".join(i.encode() for i in ids))
    for path in sorted(folder.rglob("*")):
        if path.is_file() and sought.search(path.read_bytes()):
            raise StoreError(f"{path} still holds an id of the user: erase again")


def _tables_of(store: MemoryStore, user_id: str) -> Iterator[Table]:
    """Those that can hold rows of the user, of all generations."""
    number = store.shard_number(user_id)
    for name in table_names(store.database):
        place = SHARDED.search(name)
        if place is None or int(place[1]) == number:
            table = store.database.open_table(name)
            if "user_id" in table.schema.names:
                yield table


def _sought(tables: Sequence[Table], user_id: str) -> list[str]:
    return [found for table in tables for found in _ids(table, user_id)]


def _ids(table: Table, user_id: str) -> list[str]:
    if "id" not in table.schema.names:
        return []
    batches = read_batches(table, of_users([user_id]), ["id"])
    return list(islice((i for batch in batches for i in batch["id"].to_pylist()), SOUGHT_IDS))


def _erase(table: Table, user_id: str) -> ErasedTable:
    where = of_users([user_id])
    table.checkout_latest()
    rows = table.count_rows(where)
    _rewrite(table, where)
    old = _drop_old(table)
    _check_versions(table, where)
    return ErasedTable(table.name, rows, old)


def _check_versions(table: Table, where: str) -> None:
    dataset = table.to_lance()
    for version in dataset.versions():
        left = dataset.checkout_version(version["version"]).count_rows(filter=where)
        if left:
            raise StoreError(
                f"version {version['version']} of {table.name} still holds {left} rows of the "
                "user: end what writes them, or remove the version's tag, and erase again"
            )


def _rewrite(table: Table, where: str | None) -> None:
    """Delete, then write again what held the deleted rows.

    Indices are made anew: to optimize one, even to retrain it, keeps the pages of rows whose whole
    fragment is gone. The last commit must not be the delete, for that holds its filter.
    """
    table.checkout_latest()
    if where and table.count_rows(where):
        table.delete(where)
    dataset = table.to_lance()
    dataset.optimize.compact_files(
        target_rows_per_fragment=FRAGMENT_ROWS,
        materialize_deletions_threshold=0.0,
        num_threads=1,
        batch_size=SCAN_ROWS,
    )
    for index in dataset.describe_indices():
        if not index.name.startswith("__"):
            kind: Any = index.index_type.upper()
            dataset.create_scalar_index(index.field_names[0], kind, name=index.name, replace=True)
    dataset.update_config({"lightmem.rewritten": str(time.time_ns())})


def _drop_old(table: Table) -> int:
    table.checkout_latest()
    stats = table.to_lance().cleanup_old_versions(
        older_than=timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False
    )
    table.checkout_latest()
    return stats.old_versions


def _check_files(folder: Path, tables: Sequence[str], user_id: str) -> None:
    """Read every file of the tables, also those that no version names."""
    for name in tables:
        paths = sorted(p for p in (folder / f"{name}.lance").rglob("*") if p.is_file())
        left = [path for path in paths if _holds(path, user_id)]
        if left:
            raise StoreError(
                f"{len(left)} files of {name} still hold the user, the first is {left[0]}: end "
                "what writes to the store, and erase again"
            )


def _holds(path: Path, user_id: str) -> bool:
    if path.suffix == ".lance":
        try:
            return _column_holds(path, user_id)
        except (OSError, ValueError, RuntimeError):  # cut off while it was written
            return user_id.encode() in path.read_bytes()
    return quoted(user_id).encode() in path.read_bytes()


def _column_holds(path: Path, user_id: str) -> bool:
    import pyarrow.compute as pc
    from lance.file import LanceFileReader

    schema = LanceFileReader(str(path)).metadata().schema
    columns = [f.name for f in schema if f.name in USER_COLUMNS and f.type == "string"]
    if not columns:
        return False
    for batch in LanceFileReader(str(path), columns=columns).read_all().to_batches():
        if any(pc.any(pc.equal(column, user_id)).as_py() for column in batch.columns):  # pyright: ignore[reportAttributeAccessIssue]
            return True
    return False
