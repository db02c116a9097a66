"""Erase a user while the server runs: nothing else is written meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightmem_core.long_term.lease import ERASING, Leases
from lightmem_core.long_term.mentions import pseudonym
from lightmem_core.long_term.run_files import Erasure, erase_user
from lightmem_core.long_term.runs import Run, recorded
from lightmem_core.online.shared import Shared


def erase(shared: Shared, user_id: str) -> dict[str, int]:
    """Erase all that the store holds of a user; return the rows that are gone, by table. Raise
    StoreError while another run is under way, or naming what is left.

    The files are read again after the others may write: what is left in them does not change.
    """
    run = shared.new_run("erase", {"user": pseudonym(user_id, shared.store.salt)})
    with shared.sleeping, shared.users.held([user_id]):
        with _alone(shared, user_id):
            erased = _erased(shared, user_id, run)
        with recorded(run, shared.write_run, shared.hold.confirm) as state:
            erased.prove()
            state.report = erased.report
    shared.count(erased=1)
    return {table["name"]: table["rows"] for table in erased.report["tables"]}


@contextmanager
def _alone(shared: Shared, user_id: str) -> Iterator[None]:
    """Keep all writers out, and give the store up to the erase."""
    with shared.gate.alone():
        shared.hold.confirm()
        shared.hold.release()
        try:
            yield
        finally:
            shared.hold.take()
            rows = shared.inbox_for(user_id).rows([user_id])
            shared.backlogs.set([user_id], rows)


def _erased(shared: Shared, user_id: str, run: Run) -> Erasure:
    store = shared.store
    with (
        Leases(store.database).held(ERASING, ERASING) as hold,
        recorded(run, store.runs.write, hold.confirm) as state,
    ):
        state.status = "running"  # until it is proved
        return erase_user(store, shared.config.memory.store, user_id)
