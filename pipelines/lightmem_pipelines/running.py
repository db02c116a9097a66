"""A run in the ledger: there while it runs, done or failed when it ends, found again if it died."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lightmem_core import factory
from lightmem_core.config import MemoryConfig
from lightmem_core.errors import InputError
from lightmem_core.long_term.compaction import drop_versions
from lightmem_core.long_term.lease import ERASING, SLEEPING, Leases
from lightmem_core.long_term.runs import Run, Running, new_run_id, recorded
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import now_ms
from lightmem_core.types import stable_id

log = logging.getLogger(__name__)

WORK = {  # what the others are told is under way
    "backfill": "a backfill of the same input",
    "retry": "a retry of the same run",
    "sleep": "a sleep",
    "undo": "an undo",
    "reembed": "a reembed",
    "import": "an import",
}

ADDING = ("backfill", "retry")
VARIES = "varies"  # in the request of a run that adds entries which differ from attempt to attempt
VARYING = "those whose generator may answer differently each time"  # one at once


@contextmanager
def running(
    store: MemoryStore, kind: str, request: dict[str, Any], resume: str | None = None
) -> Iterator[Running]:
    """Keep a run in the ledger. One that was interrupted is gone on with under its own name: the
    one that `resume` names, or the last of the same request.

    Raise StoreError while another process is at the same work, or if one may have begun it because
    the hold on the store was lost; InputError if `resume` names a run of another request.
    """
    with Leases(store.database).held(*_lease(kind, request)) as hold:
        run = _resumed(store, kind, request, resume) or _new(kind, request)
        if request.get(VARIES):
            _drop_orphans(store)
        try:
            with recorded(run, store.runs.write, hold.confirm) as state:
                yield state
        except BaseException as error:
            error.add_note(_note(run))
            raise
        drop_versions(store.runs.table)


def _note(run: Run) -> str:
    if run.kind == "erase":
        return f"what {run.id} has erased is gone, what it has not may be left; erase again"
    return f"what {run.id} has stored is kept; the same command finishes it"


def _lease(kind: str, request: dict[str, Any]) -> tuple[str, str]:
    """The name of a lease, and what others are told. Backfills of different input may run at once,
    unless each may write other texts for the same messages; all else that changes entries may not.
    """
    if kind == "erase":
        return ERASING, ERASING
    if kind not in ADDING:
        return SLEEPING, WORK.get(kind, kind)
    if request.get(VARIES):
        return VARYING, f"{WORK[kind]}, or another one of {VARYING},"
    return f"{kind} {stable_id(request)[:12]}", WORK[kind]


def varying(memory: MemoryConfig) -> dict[str, Any]:
    """What the request of a run says where its texts may differ from attempt to attempt."""
    return {VARIES: True} if factory.varies(memory) else {}


def _drop_orphans(store: MemoryStore) -> None:
    """Remove what runs of VARYING, of which none is under way, wrote and did not finish: it is
    written again."""
    left = [
        run.id
        for run in store.runs.latest(None)
        if run.kind in ADDING and run.status != "done" and run.request.get(VARIES)
    ]
    for shard in store.shards:
        shard.drop_orphans(left)


def _new(kind: str, request: dict[str, Any]) -> Run:
    started = now_ms()
    run_id = new_run_id(kind, started, request)
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
    was = run.status if run.status in ("planned", "done") else "interrupted"
    log.warning("going on with %s, which was %s", run.id, was)
    return replace(run, status="running", report={})
