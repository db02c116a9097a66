"""The store's edge of a run: what is known is not admitted, what is new is committed once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray

from lightmem_core.config import StoreConfig
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore, VectorModel, shard_number
from lightmem_core.types import History

RECYCLE_AFTER = 100  # commits: a process that writes to the store never gives all memory back
RETRIES = 20  # of a call whose committer dies: a restart is no reason to fail, a deadly call is


class Admission:
    """Drop the messages that are stored. Those of another run, or of another place in the input,
    are counted as duplicates; those that this run stored before it was interrupted are not.

    A history of which this run stored only a part is admitted whole: cut and filled as it was the
    first time, it gives the same entries again, and the commit leaves out those that are there.
    """

    def __init__(self, config: StoreConfig, run_id: str):
        self.store = MemoryStore.open(config)
        self.run_id = run_id

    def __call__(self, rows: Sequence[History]) -> list[History]:
        known: dict[str, tuple[str, str]] = {}
        for number, users in self.store.by_shard({row.user_id for row in rows}).items():
            known |= self.store.shards[number].known(users)
        return [self._admitted(row, known) for row in rows] if known else list(rows)

    def _admitted(self, row: History, known: dict[str, tuple[str, str]]) -> History:
        own = [m for m in row.messages if known.get(m.id) in (None, (self.run_id, m.source))]
        new = () if all(m.id in known for m in own) else tuple(own)
        return replace(row, messages=new, duplicates=row.duplicates + len(row.messages) - len(own))


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=RETRIES)
class Committer:
    """The one writer of a shard in a run. Ray may restart it and repeat its calls: each is
    idempotent. Other runs may write at once: the primary key and repeated commits keep them apart.

    The store is opened by the first call, whose error reaches the user as it is.
    """

    def __init__(self, config: StoreConfig, number: int, model: VectorModel):
        self.place = (config, number, model)
        self.opened: Shard | None = None
        self.commits = 0

    def shard(self) -> Shard:
        if self.opened is None:
            config, number, model = self.place
            self.opened = MemoryStore.open(config, model).shard(number)
        return self.opened

    def insert(self, extracted: pa.Table, run_id: str) -> int:
        if self.commits == RECYCLE_AFTER:
            os._exit(0)  # Ray starts a fresh process and repeats this call in it
        self.commits += 1
        return self.shard().insert(extracted, run_id)

    def apply(self, change: Callable[[Shard], Any]) -> Any:
        """Make a change that reads the shard as it now is; to make it again is harmless."""
        return change(self.shard())

    def compact(self) -> None:
        self.shard().compact()


class Committers:
    """A run's committers, one for each shard, for the vectors of one model: a committer that starts
    again after the store was switched to others refuses. Can be passed to tasks."""

    def __init__(self, config: StoreConfig, model: VectorModel):
        store = MemoryStore.open(config, model)
        self.actors: list[Any] = [
            Committer.remote(config, number, store.model)  # pyright: ignore[reportAttributeAccessIssue]
            for number in range(store.shard_count)
        ]

    def compact(self) -> None:
        ray.get([actor.compact.remote() for actor in self.actors])


class Commit:
    """The last step of a backfill: hand each row to the committer of its user's shard, and wait.
    What comes out is the number of messages that turned out to be duplicates."""

    def __init__(self, committers: Committers, run_id: str):
        self.committers = committers
        self.run_id = run_id

    def __call__(self, batch: pa.Table) -> pa.Table:
        actors = self.committers.actors
        numbers = [shard_number(user_id, len(actors)) for user_id in batch["user_id"].to_pylist()]
        waiting = []
        for number in set(numbers):
            part = batch.filter(pa.array([n == number for n in numbers]))
            waiting.append(actors[number].insert.remote(part, self.run_id))
        duplicates = sum(batch["duplicates"].to_pylist()) + sum(ray.get(waiting))
        return pa.table({"duplicates": [duplicates]})
