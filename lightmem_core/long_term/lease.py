"""Leases: what one process at a time may do with a store, whatever machine it runs on.

The rows of a store are safe without them, for every commit can be repeated. A lease keeps two
processes from doing the same long work twice.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lightmem_core.errors import StoreError
from lightmem_core.long_term.compaction import drop_versions
from lightmem_core.long_term.tables import keyed_table, now_ms, quoted, upsert

if TYPE_CHECKING:
    from lancedb.db import DBConnection

NAME = "leases"
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("holder", pa.string()),
        pa.field("until", pa.int64()),
        pa.field("work", pa.string()),
    ]
)
SLEEPING = "the sleep phase"  # and all else that changes entries, but for single ones
ERASING = "an erase"  # beside no other lease: it drops versions that a write may need
LEASE_MS = 60_000
RENEW_SECONDS = 15.0

log = logging.getLogger(__name__)


@dataclass
class Hold:
    """A lease as its holder knows it: `until` is in ms; once it was lost it stays lost."""

    name: str
    work: str
    until: int
    lost: bool = False
    stop: threading.Event = field(default_factory=threading.Event)

    def confirm(self) -> None:
        """Raise StoreError if another process may have begun the same work meanwhile."""
        self.lost = self.lost or now_ms() >= self.until
        if self.lost:
            raise StoreError(
                f"{self.work} lost its hold on the store, which it could not renew for "
                f"{LEASE_MS // 1000} seconds: run it again, what is stored is not stored twice"
            )


class Leases:
    """A table of who holds what, and until when. `holder` is a machine, a process and a thread."""

    def __init__(self, database: DBConnection):
        self.table = keyed_table(database, NAME, SCHEMA, "id")
        self.holder = f"{platform.node()}/{os.getpid()}/{threading.get_ident()}/{_system()}"

    @contextmanager
    def held(self, name: str, work: str = "") -> Iterator[Hold]:
        """Hold a lease while the block runs; `work` is what others are told is under way.

        Raise StoreError if another living process has it, or one that cannot stand beside it, and
        at the end of the block if the lease was lost.
        """
        hold = self._take(name, work or name)
        renewer = threading.Thread(target=self._renew, args=(hold,), daemon=True)
        renewer.start()
        try:
            self._refuse_beside(name)
            yield hold
            hold.confirm()
        finally:
            hold.stop.set()
            renewer.join()
            self._release(hold)

    def _take(self, name: str, work: str) -> Hold:
        row = self._row(name)
        if row is not None and row["until"] > now_ms() and not _dead(row["holder"]):
            raise _taken(row)
        before = row or {"holder": "", "until": 0}
        unchanged = (
            f"target.holder = {quoted(before['holder'])} AND target.until = {before['until']}"
        )
        hold = Hold(name, work, now_ms() + LEASE_MS)
        self._write(hold, hold.until, unchanged)
        now = self._row(name)
        if now is None or now["holder"] != self.holder:
            raise _taken(now or before)
        return hold

    def _refuse_beside(self, name: str) -> None:
        """Each side takes its own lease before it looks, so that of two at once none is missed.

        An erase waits for the time of the dead too: their workers may outlive them.
        """
        self.table.checkout_latest()
        for row in self.table.search().to_list():
            apart = row["id"] != name and ERASING in (row["id"], name)
            gone = name != ERASING and _dead(row["holder"])
            if apart and row["until"] > now_ms() and not gone:
                raise _taken(row)

    def _renew(self, hold: Hold) -> None:
        """Until the block ends or the lease is lost. A renewal that fails is tried again."""
        while not hold.stop.wait(RENEW_SECONDS):
            try:
                hold.lost = hold.lost or not self._renewed(hold)
            except Exception as error:  # noqa: BLE001  whatever it is, time is left
                log.warning("the hold of %s could not be renewed: %s", hold.work, error)
            if hold.lost:
                return

    def _renewed(self, hold: Hold) -> bool:
        """What has lapsed is not taken again: others may have come and gone meanwhile."""
        until = now_ms() + LEASE_MS
        if now_ms() >= hold.until:
            return False
        self._write(hold, until)
        row = self._row(hold.name)
        if row is None or row["holder"] != self.holder or now_ms() >= hold.until:
            return False
        hold.until = until
        return True

    def _release(self, hold: Hold) -> None:
        """What ends the block matters more than an error here: the hold runs out by itself."""
        try:
            self._write(hold, until=0)
            drop_versions(self.table)
        except Exception as error:  # noqa: BLE001
            log.warning("the hold of %s could not be given back: %s", hold.work, error)

    def _row(self, name: str) -> dict[str, Any] | None:
        self.table.checkout_latest()
        found = self.table.search().where(f"id = {quoted(name)}").to_list()
        return found[0] if found else None

    def _write(self, hold: Hold, until: int, where: str | None = None) -> None:
        """Without `where` only the holder's own row is written."""
        row = {"id": hold.name, "holder": self.holder, "until": until, "work": hold.work}
        rows = pa.Table.from_pylist([row], schema=SCHEMA)
        upsert(self.table, "id", rows, where or f"target.holder = {quoted(self.holder)}")


def _taken(row: dict[str, Any]) -> StoreError:
    host, process, _ = (*row["holder"].split("/"), "", "")[:3]
    seconds = max(1, -(-(row["until"] - now_ms()) // 1000))
    return StoreError(
        f"{row.get('work') or 'other work'} is under way in process {process} on {host}: wait "
        f"until it ends; if it has died, try again in {seconds} seconds"
    )


def _system() -> str:
    """What tells apart machines, and containers on one, that have the same name."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return "/"


def _dead(holder: str) -> bool:
    """Whether the holder ran on this system and is gone, so that nobody need wait for its time."""
    host, process, _, system = (*holder.split("/", 3), "", "", "")[:4]
    if (host, system) != (platform.node(), _system()):
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
