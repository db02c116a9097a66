"""What is new for a sleep phase: entries that came or changed since one that judged them."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.types import Entry

MARGIN_MS = 600_000  # a row may be seen so long after its time: commits take, clocks differ
HOUSEKEEPING = ("sleep-", "undo-")  # runs that bring no news: what was undone is not done again


@dataclass(frozen=True, slots=True)
class Covered:
    """What earlier phases of the same configuration have judged: all that was there at `at`, by
    the run `run_id`; of some users, by runs of their own, all that was there at a later time."""

    at: int
    run_id: str
    users: dict[str, int] = field(default_factory=dict)


def covered_before(store: MemoryStore, run: Run) -> Covered:
    """What the finished phases before a run have judged of whom it looks at."""
    user_id = run.request["user_id"]
    runs = store.runs.latest(None)
    imports = (max(r.started_at, r.finished_at) for r in runs if r.kind == "import")
    imported = max(imports, default=0)
    done = [
        r
        for r in reversed(runs)  # the latest last
        if r.started_at >= imported  # what is imported is new, though it was stored long ago
        and (r.kind, r.status, r.request.get("config")) == ("sleep", "done", run.request["config"])
    ]
    whole = [(r.started_at, r.id) for r in done if r.request["user_id"] in (None, user_id)]
    at, run_id = whole[-1] if whole else (0, "")
    own = {r.request["user_id"]: r.started_at for r in done if r.started_at > at}
    return Covered(at, run_id, own)


def touched(entry: Entry) -> int:
    """When an entry was written, or changed by other than the housekeeping of the store."""
    own = entry.changed_by.startswith(HOUSEKEEPING)
    return max(entry.stored_at, 0 if own else entry.changed_at)
