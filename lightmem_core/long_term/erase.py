"""Erase a user from the tables of a store, so that no file of theirs holds the user any more.

A delete alone hides rows: the data files, the pages of an index, the delete's own filter and all
older versions keep them. So what holds the user is rewritten, and everything older is dropped.
Nothing else may write meanwhile: a commit that started on a version which is gone cannot see what
it conflicts with, and would store rows twice. `lease.ERASING` keeps the other runs away.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lightmem_core.errors import StoreError
from lightmem_core.long_term.compaction import join_fragments
from lightmem_core.long_term.mentions import (
    Redaction,
    pseudonym,
    telling_of,
    texts_in,
    without_error,
)
from lightmem_core.long_term.store import MemoryStore, table_names
from lightmem_core.long_term.tables import of_users, read_batches

if TYPE_CHECKING:
    from lancedb.table import Table

SHARDED = re.compile(r"_(\d{4,})(_g\d+)?$")
SAID = ("id", "text", "content", "raw", "reply")  # the columns of what reports must not repeat


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
    try:
        return [_erase(table, user_id) for table in tables_of(store, user_id)]
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).replace(user_id, "USER")
        raise StoreError(f"the erasing was cut off, run it again: {reason}") from None


def erase_from_ledger(store: MemoryStore, user_id: str) -> int:
    """Replace a user's id in the requests and reports of runs, and what there holds an id or a text
    of the user's rows or may hold one; return in how many it stood.

    Only while the rows are there can that be known: they go last.
    """
    runs, named = store.runs.latest(None), 0
    texts = {text for run in runs for text in texts_in(run.report)}
    telling = telling_of(texts, _said(store, user_id))
    redaction = Redaction(user_id, pseudonym(user_id, store.salt), telling)
    for run in runs:
        request, report = redaction.of(run.request), redaction.of(without_error(run.report))
        if (request, report) != (run.request, run.report):
            store.runs.write(replace(run, request=request, report=report))
            named += 1
    table = store.runs.table
    _rewrite(table, None)
    _drop_old(table)
    return named


def _said(store: MemoryStore, user_id: str) -> Iterator[str]:
    """The ids and the texts of a user's rows."""
    for table in tables_of(store, user_id):
        columns = [name for name in SAID if name in table.schema.names]
        for batch in read_batches(table, of_users([user_id]), columns) if columns else ():
            for column in batch.columns:
                yield from column.to_pylist()


def tables_of(store: MemoryStore, user_id: str) -> Iterator[Table]:
    """Those that can hold rows of the user, of all generations."""
    number = store.shard_number(user_id)
    for name in table_names(store.database):
        place = SHARDED.search(name)
        if place is None or int(place[1]) == number:
            table = store.database.open_table(name)
            if "user_id" in table.schema.names:
                yield table


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
    join_fragments(dataset, deleted=0.0)
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
