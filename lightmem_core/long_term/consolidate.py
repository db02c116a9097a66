"""The consolidation stage of the sleep phase: an updater judges each entry by its queue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lightmem_core.errors import ComponentError
from lightmem_core.long_term.embed import vectors_of
from lightmem_core.long_term.queues import update_queues
from lightmem_core.protocols import Updater
from lightmem_core.types import Decision, Entry, UserEntries


class Consolidation:
    """Decide what becomes of each entry of a batch of users. Nothing is changed yet.

    A decision always names a later entry as successor, so that decisions form no cycle and their
    outcome depends neither on order nor on parallelism.
    """

    def __init__(self, updater: Updater, k: int, theta: float):
        self.updater = updater
        self.k = k
        self.theta = theta

    def __call__(self, rows: Sequence[UserEntries]) -> list[list[Decision]]:
        return [list(self._decisions(row.entries)) for row in rows]

    def _decisions(self, entries: Sequence[Entry]) -> Iterator[Decision]:
        if len(entries) < 2:
            return
        for i, queue in update_queues(vectors_of(entries), self.k, self.theta):
            later = [(entries[j], similarity) for j, similarity in queue]
            decision = self.updater.decide(entries[i], later)
            if decision is not None and decision.action != "keep":
                self._check(decision, entries[i], later)
                yield decision

    def _check(
        self, decision: Decision, entry: Entry, later: Sequence[tuple[Entry, float]]
    ) -> None:
        if decision.entry_id != entry.id or decision.successor not in {e.id for e, _ in later}:
            raise ComponentError(
                f"{type(self.updater).__name__} decided for {decision.entry_id} with the successor "
                f"{decision.successor}, expected {entry.id} and one of its {len(later)} later ones"
            )


class NoUpdater:
    """Keeps every entry."""

    def decide(self, entry: Entry, queue: Sequence[tuple[Entry, float]]) -> Decision | None:
        return None


def apply_decisions(
    entries: Sequence[Entry], decisions: Sequence[Decision], run_id: str
) -> list[Entry]:
    """The entries of one user that change, as they are to be written, with `gen` one higher.

    `entries` are in their order. What is merged hands its sources on, through chains too; what is
    superseded does not, for its sources do not say what its successor says.
    """
    by_id = {d.entry_id: d for d in decisions}
    changed: dict[str, Entry] = {}
    current = {e.id: e for e in entries}
    for entry_id in [e.id for e in entries if e.id in by_id]:
        decision, entry = by_id[entry_id], current[entry_id]
        tombstone = replace(entry, superseded_by=decision.successor)
        changed[entry_id] = current[entry_id] = tombstone
        if decision.action == "merge":
            heir = current[decision.successor]
            absorbed = dict.fromkeys((*heir.absorbed, *entry.absorbed, *entry.sources))
            new = tuple(source for source in absorbed if source not in heir.sources)
            changed[heir.id] = current[heir.id] = replace(heir, absorbed=new)
    return [replace(e, gen=e.gen + 1, changed_by=run_id) for e in changed.values()]
