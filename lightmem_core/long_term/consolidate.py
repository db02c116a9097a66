"""The consolidation stage of the sleep phase: an updater judges each entry by its queue."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import get_args

import numpy as np
import pyarrow as pa

from lightmem_core.errors import ComponentError
from lightmem_core.long_term.embed import vectors_of
from lightmem_core.long_term.queues import update_queues
from lightmem_core.protocols import UpdateQueue, Updater
from lightmem_core.schema import from_table
from lightmem_core.schema import vectors_of as stored_vectors
from lightmem_core.types import Action, Decision, Entry, UserEntries

QUEUES = 2_000  # that are judged together, where stored rows become entries
LARGE = 30_000  # entries of one user from which it pays to move them to a GPU
ORDER = ("user_id", "said_at", "session_id", "position", "ordinal")  # Entry.order, by user

_Queue = tuple[int, list[tuple[int, float]]]


class Consolidation:
    """Decide what becomes of each entry of a batch of users. Nothing is changed yet.

    A decision always names a later entry as successor, so that decisions form no cycle and their
    outcome depends neither on order nor on parallelism. Where a decision could not be had there is
    one to keep the entry, with the reason and without a successor.
    """

    def __init__(self, updater: Updater, k: int, theta: float, device: str | None = None):
        """The queues of LARGE users are made on the torch device that is given."""
        self.updater, self.k, self.theta, self.device = updater, k, theta, device

    def __call__(
        self, rows: Sequence[UserEntries], new: Collection[str] | None = None
    ) -> list[list[Decision]]:
        """Judge the queues that hold or belong to an entry whose id is in `new`; None: all."""
        asked = [self._of_user(row.entries, new) for row in rows]
        answers = iter(self._answers([queue for queues in asked for queue in queues]))
        decided = ([self._decided(queue, next(answers)) for queue in queues] for queues in asked)
        return [[d for d in decisions if d is not None] for decisions in decided]

    def _of_user(self, entries: Sequence[Entry], new: Collection[str] | None) -> list[UpdateQueue]:
        fresh = None if new is None else np.array([e.id in new for e in entries], bool)
        vectors = vectors_of(entries) if len(entries) > 1 else np.zeros((0, 0), np.float32)
        return [_queue(entries, found) for found in self._queues(vectors, fresh)]

    def of_rows(self, rows: pa.Table, new: Collection[str] | None = None) -> Iterator[Decision]:
        """The same for stored rows of some users, in any order. Only those that stand in a queue
        become entries: most of the work is not done for the others."""
        rows = rows.sort_by([(name, "ascending") for name in ORDER])
        queues = self._queues_of_rows(rows, new)
        entries: dict[int, Entry] = {}
        while chunk := list(islice(queues, QUEUES)):
            places = {place for i, queue in chunk for place in (i, *(j for j, _ in queue))}
            missing = sorted(places - entries.keys())
            found = from_table(rows.take(pa.array(missing, pa.int64())), Entry)
            entries |= zip(missing, found, strict=True)
            entries = {place: e for place, e in entries.items() if place >= chunk[0][0]}
            asked = [_queue(entries, queue) for queue in chunk]
            decided = map(self._decided, asked, self._answers(asked))
            yield from (decision for decision in decided if decision is not None)

    def _queues_of_rows(self, rows: pa.Table, new: Collection[str] | None) -> Iterator[_Queue]:
        """The queues of all users, by place in `rows`, which are in their order."""
        if not len(rows):
            return
        fresh = None if new is None else np.array([i in new for i in rows["id"].to_pylist()], bool)
        vectors = stored_vectors(rows["vector"])
        start = 0
        for user in rows["user_id"].value_counts().to_pylist():
            mine = slice(start, start + user["counts"])
            for i, queue in self._queues(vectors[mine], None if fresh is None else fresh[mine]):
                yield i + start, [(j + start, similarity) for j, similarity in queue]
            start = mine.stop

    def _queues(self, vectors: np.ndarray, fresh: np.ndarray | None) -> Iterator[_Queue]:
        """The queues to judge of one user, whose entries are in their order."""
        if len(vectors) < 2 or (fresh is not None and not fresh.any()):
            return
        device = self.device if len(vectors) >= LARGE else None
        for i, queue in update_queues(vectors, self.k, self.theta, device):
            if fresh is None or fresh[i] or any(fresh[j] for j, _ in queue):
                yield i, queue

    def _answers(self, queues: Sequence[UpdateQueue]) -> Sequence[Decision | str | None]:
        answers = self.updater.decide(queues) if queues else []
        if len(answers) != len(queues):
            raise ComponentError(
                f"{type(self.updater).__name__}.decide returned {len(answers)} answers for "
                f"{len(queues)} queues, expected as many"
            )
        return answers

    def _decided(self, queue: UpdateQueue, decision: Decision | str | None) -> Decision | None:
        """The updater's decision with the gens of its two entries, unless all stays as it is."""
        entry = queue.entry
        if isinstance(decision, str):
            return Decision(entry.user_id, entry.id, "keep", "", 0.0, decision, gen=entry.gen)
        if decision is None or decision.action == "keep":
            return None
        successor = next((e for e, _ in queue.later if e.id == decision.successor), None)
        if successor is None or (decision.user_id, decision.entry_id) != (entry.user_id, entry.id):
            raise ComponentError(
                f"{type(self.updater).__name__} decided for an entry and a successor, expected the "
                f"entry of the queue and one of its {len(queue.later)} later ones"
            )
        self._check(decision)
        if decision.action == "update" and decision.text == entry.text:
            return None
        return replace(decision, gen=entry.gen, successor_gen=successor.gen)

    def _check(self, decision: Decision) -> None:
        updates = decision.action == "update"
        if decision.action not in get_args(Action) or updates != bool(decision.text.strip()):
            raise ComponentError(
                f"{type(self.updater).__name__} decided {decision.action!r} with a text of "
                f"{len(decision.text)} characters, expected one of {get_args(Action)}, with a text "
                "if it is an update and without one if not"
            )


def _queue(entries: Sequence[Entry] | Mapping[int, Entry], queue: _Queue) -> UpdateQueue:
    place, later = queue
    return UpdateQueue(entries[place], tuple((entries[j], similarity) for j, similarity in later))


class NoUpdater:
    """Keeps every entry."""

    def decide(self, queues: Sequence[UpdateQueue]) -> list[Decision | None]:
        return [None] * len(queues)
