"""Erase a user from a store: its tables, its ledger and the files that runs left beside it."""

from __future__ import annotations

from lightmem_core.config import Config
from lightmem_core.long_term.mentions import pseudonym
from lightmem_core.long_term.run_files import erase_user
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore
from lightmem_pipelines.running import running


def erase(config: Config, user_id: str) -> Run:
    """Erase all that the store holds of a user, and return the finished run.

    No other run may be under way, and what cut-off ones left unfinished goes as well. What an
    interrupted erase left is finished by another one. Raise StoreError naming what is left.
    """
    store = MemoryStore.open(config.memory.store)
    with running(store, "erase", {"user": pseudonym(user_id, store.salt)}) as run:
        erased = erase_user(store, config.memory.store, user_id)
        erased.prove()
        run.report = erased.report
    return run.finished
