"""Erase a user while the server runs: nothing else is written meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightmem_core.long_term.lease import ERASING, Leases
from lightmem_core.long_term.mentions import pseudonym
from lightmem_core.long_term.run_files import erase_user
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.tables import now_ms
from lightmem_core.online.shared import Shared, new_run_id


def erase(shared: Shared, user_id: str) -> dict[str, int]:
    """Erase all that the store holds of a user; return the rows that are gone, by table. Raise
    StoreError while another run is under way, or naming what is left."""
    with shared.sleeping, shared.users.held([user_id]), shared.gate.alone():
        shared.hold.confirm()
        shared.hold.release()
        try:
            report = _erased(shared, user_id)
        finally:
            shared.hold.take()
            rows = shared.inbox_for(user_id).rows([user_id])
            shared.backlogs.set([user_id], rows)
    shared.count(erased=1)
    return {table["name"]: table["rows"] for table in report["tables"]}


def _erased(shared: Shared, user_id: str) -> dict[str, Any]:
    store, started = shared.store, now_ms()
    run = Run(new_run_id("erase", started), "erase", "running", started)
    run = replace(run, request={"user": pseudonym(user_id)})
    with Leases(store.database).held(ERASING, ERASING):
        store.runs.write(run)
        try:
            report = erase_user(store, shared.config.memory.store, user_id)
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {error}"}
            store.runs.write(replace(run, status="failed", report=told))
            raise
        store.runs.write(replace(run, status="done", finished_at=now_ms(), report=report))
    return report
