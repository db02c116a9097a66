"""The consolidation stage of the sleep phase: an updater judges each entry by its queue."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import get_args

from lightmem_core.errors import ComponentError
from lightmem_core.long_term.embed import vectors_of
from lightmem_core.long_term.queues import update_queues
from lightmem_core.protocols import Updater
from lightmem_core.types import Action, Decision, Entry, UserEntries

Queue = Sequence[tuple[Entry, float]]


class Consolidation:
    """Decide what becomes of each entry of a batch of users. Nothing is changed yet.

    A decision always names a later entry as successor, so that decisions form no cycle and their
    outcome depends neither on order nor on parallelism.
    """

    def __init__(self, updater: Updater, k: int, theta: float):
        self.updater = updater
        self.k = k
        self.theta = theta

    def __call__(
        self, rows: Sequence[UserEntries], new: Collection[str] | None = None
    ) -> list[list[Decision]]:
        """Judge the queues that hold or belong to an entry whose id is in `new`; None: all."""
        return [list(self._decisions(row.entries, new)) for row in rows]

    def _decisions(
        self, entries: Sequence[Entry], new: Collection[str] | None
    ) -> Iterator[Decision]:
        if len(entries) < 2:
            return
        fresh = None if new is None else [e.id in new for e in entries]
        for i, queue in update_queues(vectors_of(entries), self.k, self.theta):
            if fresh is None or fresh[i] or any(fresh[j] for j, _ in queue):
                later = [(entries[j], similarity) for j, similarity in queue]
                if (decision := self._decided(entries[i], later)) is not None:
                    yield decision

    def _decided(self, entry: Entry, queue: Queue) -> Decision | None:
        """The updater's decision with the gens of its two entries, unless all stays as it is."""
        decision = self.updater.decide(entry, queue)
        if decision is None or decision.action == "keep":
            return None
        successor = next((e for e, _ in queue if e.id == decision.successor), None)
        if successor is None or (decision.user_id, decision.entry_id) != (entry.user_id, entry.id):
            raise ComponentError(
                f"{type(self.updater).__name__} decided for {decision.entry_id} with the successor "
                f"{decision.successor}, expected {entry.id} and one of its {len(queue)} later ones"
            )
        self._check(decision)
        if decision.action == "update" and decision.text == entry.text:
            return None
        return replace(decision, gen=entry.gen, successor_gen=successor.gen)

    def _check(self, decision: Decision) -> None:
        updates = decision.action == "update"
        if decision.action not in get_args(Action) or updates != bool(decision.text.strip()):
            raise ComponentError(
                f"{type(self.updater).__name__} decided {decision.action!r} with the text "
                f"{decision.text!r} for {decision.entry_id}, expected one of {get_args(Action)}, "
                "with a text if it is an update and without one if not"
            )


class NoUpdater:
    """Keeps every entry."""

    def decide(self, entry: Entry, queue: Queue) -> Decision | None:
        return None
