"""The undo of a run, as a run of its own."""

from __future__ import annotations

from dataclasses import asdict

from lightmem_core.config import Config
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.undo import check_undoable, undo
from lightmem_pipelines.running import running


def undo_run(config: Config, run_id: str) -> Run:
    """Undo a sleep, also an interrupted one, or a finished undo, and return the finished run that
    did. Small work: no Ray."""
    store = MemoryStore.open(config.memory.store)
    check_undoable(store.runs.get(run_id))
    with running(store, "undo", {"run": run_id}) as run:
        run.report = asdict(undo(store, run_id, run.id))
    return run.finished
