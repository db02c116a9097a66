"""Leases: what one process at a time may do with a store, whatever machine it runs on.

The rows of a store are safe without them, for every commit can be repeated. A lease keeps two
processes from doing the same long work twice.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

from lightmem_core.errors import StoreError
from lightmem_core.long_term.tables import drop_versions, now_ms, quoted

if TYPE_CHECKING:
    from lancedb.db import DBConnection

NAME = "leases"
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("holder", pa.string()),
        pa.field("until", pa.int64()),
    ]
)
ERASING = "an erase"  # beside no other lease: it drops versions that a write may need
LEASE_MS = 60_000
RENEW_SECONDS = 15.0


class Leases:
    """A table of who holds what, and until when. `holder` is a host and a process."""

    def __init__(self, database: DBConnection):
        if NAME in database.list_tables(limit=100_000).tables:
            self.table = database.open_table(NAME)
        else:
            self.table = database.create_table(NAME, schema=SCHEMA, exist_ok=True)
            self.table.set_unenforced_primary_key("id")  # pyright: ignore[reportAttributeAccessIssue]
        self.holder = f"{platform.node()}/{os.getpid()}/{threading.get_ident()}"

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Hold a lease while the block runs. Raise StoreError if another living process has it, or
        one that cannot stand beside it."""
        self._take(name)
        stop = threading.Event()
        renewer = threading.Thread(target=self._renew, args=(name, stop), daemon=True)
        renewer.start()
        try:
            self._refuse_beside(name)
            yield
        finally:
            stop.set()
            renewer.join()
            self._write(name, until=0)
            drop_versions(self.table)

    def _take(self, name: str) -> None:
        row = self._row(name)
        if row is not None and row[1] > now_ms() and not _dead(row[0]):
            raise _taken(name, row[0])
        before = row or ("", 0)
        unchanged = f"target.holder = {quoted(before[0])} AND target.until = {before[1]}"
        self._write(name, now_ms() + LEASE_MS, unchanged)
        holder, _ = self._row(name) or ("", 0)
        if holder != self.holder:
            raise _taken(name, holder)

    def _refuse_beside(self, name: str) -> None:
        """Each side takes its own lease before it looks, so that of two at once none is missed."""
        self.table.checkout_latest()
        for row in self.table.search().to_list():
            apart = row["id"] != name and ERASING in (row["id"], name)
            if apart and row["until"] > now_ms() and not _dead(row["holder"]):
                raise _taken(row["id"], row["holder"])

    def _renew(self, name: str, stop: threading.Event) -> None:
        while not stop.wait(RENEW_SECONDS):
            self._write(name, now_ms() + LEASE_MS)

    def _row(self, name: str) -> tuple[str, int] | None:
        self.table.checkout_latest()
        found = self.table.search().where(f"id = {quoted(name)}").to_list()
        return (found[0]["holder"], found[0]["until"]) if found else None

    def _write(self, name: str, until: int, where: str | None = None) -> None:
        """Without `where` only the holder's own row is written."""
        row = {"id": name, "holder": self.holder, "until": until}
        (
            self.table.merge_insert("id")
            .when_matched_update_all(where=where or f"target.holder = {quoted(self.holder)}")
            .when_not_matched_insert_all()
            .execute(pa.Table.from_pylist([row], schema=SCHEMA))
        )


def _taken(name: str, holder: str) -> StoreError:
    host, process, _ = (*holder.split("/"), "", "")[:3]
    return StoreError(
        f"{name} is under way in process {process} on {host}: wait until it ends; if it has died, "
        f"its hold ends within {LEASE_MS // 1000} seconds"
    )


def _dead(holder: str) -> bool:
    """Whether the holder ran on this machine and is gone, so that nobody need wait for its time."""
    host, process, _ = holder.split("/")
    if host != platform.node():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
