"""A run in the ledger: there while it runs, done or failed when it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from lightmem_core.errors import InputError
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import now_ms
from lightmem_core.types import stable_id

RETRY = {
    "backfill": "finish it with the same command and --resume {}",
    "sleep": "run it again, only what is left will change",
}


@dataclass
class Running:
    """A run under way. What is put into `report` is kept when the block ends."""

    finished: Run
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.finished.id


@contextmanager
def running(
    store: MemoryStore, kind: str, request: dict[str, Any], resume: str | None = None
) -> Iterator[Running]:
    """Keep a new run in the ledger, or go on with an interrupted one under its own name."""
    run = _resumed(store, kind, request, resume) if resume else _new(kind, request)
    store.runs.write(run)
    state = Running(run)
    try:
        yield state
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        error.add_note(f"what {run.id} has stored is kept; {RETRY[kind].format(run.id)}")
        store.runs.write(replace(run, status="failed", report={"error": reason}))
        raise
    state.finished = replace(run, status="done", finished_at=now_ms(), report=state.report)
    store.runs.write(state.finished)


def _new(kind: str, request: dict[str, Any]) -> Run:
    """The name sorts by time, and differs for different work that is started together."""
    started = now_ms()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(started / 1000))
    run_id = f"{kind}-{stamp}-{stable_id(started, request)[:6]}"
    return Run(run_id, kind, "running", started, request=request)


def _resumed(store: MemoryStore, kind: str, request: dict[str, Any], run_id: str) -> Run:
    run = store.runs.get(run_id)
    if (run.kind, run.request) != (kind, request):
        raise InputError(
            f"{run.id} is a {run.kind} of {run.request}: resume it with the same, or start a new "
            "run, which skips what is stored"
        )
    return replace(run, status="running")
