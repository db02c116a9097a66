"""The ledger of runs: what each one was asked to do, and its report."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lightmem_core.errors import RequestError, StoreError
from lightmem_core.long_term.tables import among, keyed_table, now_ms, quoted, read, upsert
from lightmem_core.types import stable_id

if TYPE_CHECKING:
    from lancedb.db import DBConnection

NAME = "runs"
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("kind", pa.string()),
        pa.field("status", pa.string()),
        pa.field("started_at", pa.int64()),
        pa.field("finished_at", pa.int64()),
        pa.field("request", pa.string()),
        pa.field("report", pa.string()),
    ]
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """A run. `status` is running, done, failed, planned or undone; `request` and `report` can be
    written as JSON."""

    id: str
    kind: str
    status: str
    started_at: int
    finished_at: int = 0
    request: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


class RunLedger:
    def __init__(self, database: DBConnection):
        self.table = keyed_table(database, NAME, SCHEMA, "id")

    def write(self, run: Run) -> None:
        """Add a run, or replace what is known of it."""
        row = {
            "id": run.id,
            "kind": run.kind,
            "status": run.status,
            "started_at": run.started_at,
            "finished_at": run.finished_at,
            "request": json.dumps(run.request, ensure_ascii=False),
            "report": json.dumps(run.report, ensure_ascii=False),
        }
        rows = pa.Table.from_pylist([row], schema=SCHEMA)
        upsert(self.table, "id", rows)

    def get(self, run_id: str) -> Run:
        found = self.find(run_id)
        if found is None:
            known = ", ".join(run.id for run in self.latest(5)) or "none"
            raise StoreError(f"there is no run {run_id!r}; the latest are: {known}")
        return found

    def find(self, run_id: str) -> Run | None:
        found = read(self.table, f"id = {quoted(run_id)}").to_pylist()
        return _run(found[0]) if found else None

    def page(self, kind: str, limit: int, after: str = "") -> list[Run]:
        """Runs of a kind, "" for all, newest first, those behind the run `after`."""
        where = f"kind = {quoted(kind)}" if kind else "true"
        order = read(self.table, where, ["started_at", "id"]).to_pylist()
        places = sorted(((row["started_at"], row["id"]) for row in order), reverse=True)
        if after:
            last = self.find(after)
            if last is None:
                raise RequestError(f"there is no run {after!r:.60} to go on after")
            places = [place for place in places if place < (last.started_at, last.id)]
        ids = [run_id for _, run_id in places[:limit]]
        if not ids:
            return []
        rows = read(self.table, among("id", ids)).to_pylist()
        found = {row["id"]: _run(row) for row in rows}
        return [found[run_id] for run_id in ids]

    def last_of(self, kind: str, request: dict[str, Any]) -> Run | None:
        """The newest run of a kind that was asked to do the same."""
        asked = json.dumps(request, ensure_ascii=False)
        where = f"kind = {quoted(kind)} AND request = {quoted(asked)}"
        rows = self.table.search().where(where).to_list()
        return _run(max(rows, key=lambda row: (row["started_at"], row["id"]))) if rows else None

    def newest(self) -> Run:
        runs = self.latest(1)
        if not runs:
            raise StoreError("no run has been made on this store: run `lightmem backfill` first")
        return runs[0]

    def latest(self, limit: int | None = 20) -> list[Run]:
        """Runs, newest first; None: all."""
        rows = self.table.search().to_list()
        rows.sort(key=lambda row: (row["started_at"], row["id"]), reverse=True)
        return [_run(row) for row in rows[:limit]]


def _run(row: dict[str, Any]) -> Run:
    request, report = json.loads(row.pop("request")), json.loads(row.pop("report"))
    return Run(**row, request=request, report=report)


def new_run_id(kind: str, started: int, *parts: object) -> str:
    """A name that sorts by time, and differs by the parts for what is started together."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(started / 1000))
    return f"{kind}-{stamp}-{stable_id(started, *parts)[:6]}"


@dataclass
class Running:
    """A run under way. What is put into `report` is kept when the block ends; `status` is what it
    then is."""

    finished: Run
    report: dict[str, Any] = field(default_factory=dict)
    status: str = "done"

    @property
    def id(self) -> str:
        return self.finished.id


@contextmanager
def recorded(
    run: Run, write: Callable[[Run], None], confirm: Callable[[], None]
) -> Iterator[Running]:
    """Write a run as running, and as done or failed when the block ends. `confirm` raises where a
    lease was lost: the run may be another process's by then, and is left as it is."""
    write(run)
    state = Running(run)
    try:
        yield state
        confirm()
    except BaseException as error:
        _write_failed(run, write, confirm, error)
        raise
    ended_at = 0 if state.status == "running" else now_ms()
    ended = replace(run, status=state.status, finished_at=ended_at, report=state.report)
    state.finished = ended
    write(ended)


def _write_failed(
    run: Run, write: Callable[[Run], None], confirm: Callable[[], None], error: BaseException
) -> None:
    """An error in this must not hide the one that ended the run."""
    reason = f"{type(error).__name__}: {error}"
    try:
        confirm()
        write(replace(run, status="failed", report={"error": reason}))
    except Exception as second:  # noqa: BLE001
        log.warning("%s could not be written as failed: %s", run.id, second)
