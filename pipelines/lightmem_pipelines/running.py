"""A run in the ledger: there while it runs, done or failed when it ends, found again if it died."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from lightmem_core.errors import InputError
from lightmem_core.long_term.lease import ERASING, SLEEPING, Leases
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import drop_versions, now_ms
from lightmem_core.types import stable_id

log = logging.getLogger(__name__)

WORK = {  # what the others are told is under way
    "backfill": "a backfill of the same input",
    "retry": "a retry of the same run",
    "sleep": "a sleep",
    "undo": "an undo",
    "reembed": "a reembed",
    "import": "an import",
    "erase": ERASING,
}


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
def running(
    store: MemoryStore, kind: str, request: dict[str, Any], resume: str | None = None
) -> Iterator[Running]:
    """Keep a run in the ledger. One that was interrupted is gone on with under its own name: the
    one that `resume` names, or the last of the same request.

    Raise StoreError while another process is at the same work, or if one may have begun it because
    the hold on the store was lost; InputError if `resume` names a run of another request.
    """
    with Leases(store.database).held(_lease(kind, request), WORK.get(kind, kind)) as hold:
        run = _resumed(store, kind, request, resume) or _new(kind, request)
        store.runs.write(run)
        state = Running(run)
        try:
            yield state
            hold.confirm()
        except BaseException as error:
            error.add_note(_note(run))
            if not hold.lost:  # else the run may be another process's by now
                _write_failed(store, run, error)
            raise
        ended = replace(run, status=state.status, finished_at=now_ms(), report=state.report)
        state.finished = ended
        store.runs.write(ended)
        drop_versions(store.runs.table)


def _note(run: Run) -> str:
    if run.kind == "erase":
        return f"what {run.id} has erased is gone, what it has not may be left; erase again"
    return f"what {run.id} has stored is kept; the same command finishes it"


def _write_failed(store: MemoryStore, run: Run, error: BaseException) -> None:
    """An error in this must not hide the one that ended the run."""
    reason = f"{type(error).__name__}: {error}"
    try:
        store.runs.write(replace(run, status="failed", report={"error": reason}))
    except Exception as second:  # noqa: BLE001
        log.warning("%s could not be written as failed: %s", run.id, second)


def _lease(kind: str, request: dict[str, Any]) -> str:
    """Backfills of different input may run at once; all else that changes entries may not."""
    if kind == "erase":
        return ERASING
    adds = kind in ("backfill", "retry")
    return f"{kind} {stable_id(request)[:12]}" if adds else SLEEPING


def _new(kind: str, request: dict[str, Any]) -> Run:
    """The name sorts by time, and differs for different work that is started together."""
    started = now_ms()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(started / 1000))
    run_id = f"{kind}-{stamp}-{stable_id(started, request)[:6]}"
    return Run(run_id, kind, "running", started, request=request)


def _resumed(
    store: MemoryStore, kind: str, request: dict[str, Any], run_id: str | None
) -> Run | None:
    run = store.runs.get(run_id) if run_id else store.runs.last_of(kind, request)
    if run is None or (not run_id and run.status not in ("running", "failed")):
        return None
    if (run.kind, run.request) != (kind, request):
        raise InputError(
            f"{run.id} is a {run.kind} of {run.request}: resume it with the same, or start a new "
            "run, which skips what is stored"
        )
    log.warning("going on with %s, which was interrupted", run.id)
    return replace(run, status="running", report={})
