"""The store's edge of a run: what is known is not admitted, what is new is committed once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray

from lightmem_core import factory
from lightmem_core.config import Config, StoreConfig
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore, VectorModel, shard_number
from lightmem_core.types import History

RECYCLE_AFTER = 25_000  # buffers: a process that writes to the store never gives all memory back
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
    """The one writer of its shards in a run. Ray may restart it and repeat its calls: each is
    idempotent. Other runs may write at once: the primary key and repeated commits keep them apart.

    The store is opened by the first call, whose error reaches the user as it is.
    """

    def __init__(self, config: StoreConfig, model: VectorModel):
        self.place = (config, model)
        self.store: MemoryStore | None = None
        self.opened: dict[int, Shard] = {}
        self.written = 0

    def shard(self, number: int) -> Shard:
        if number not in self.opened:
            self.store = self.store or MemoryStore.open(*self.place)
            self.opened[number] = self.store.shard(number)
        return self.opened[number]

    def insert(self, number: int, extracted: pa.Table, run_id: str, varies: bool) -> int:
        if self.written >= RECYCLE_AFTER:
            os._exit(0)  # Ray starts a fresh process and repeats this call in it
        self.written += len(extracted)
        return self.shard(number).insert(extracted, run_id, varies)

    def apply(self, number: int, change: Callable[[Shard], Any]) -> Any:
        """Make a change that reads the shard as it now is; to make it again is harmless."""
        return change(self.shard(number))


class Committers:
    """A run's committers, for the vectors of one model: a committer that starts again after the
    store was switched to others refuses. A shard has one committer, which may have several shards.
    Can be passed to tasks. What the calls return is to be waited for."""

    def __init__(self, config: Config, model: VectorModel):
        place = config.memory.store
        self.shard_count = MemoryStore.open(place, model).shard_count
        self.varies = factory.varies(config.memory)
        self.actors: list[Any] = [
            Committer.remote(place, model)  # pyright: ignore[reportAttributeAccessIssue]
            for _ in range(min(config.pipelines.committers, self.shard_count))
        ]

    def insert(self, number: int, extracted: pa.Table, run_id: str) -> Any:
        return self._of(number).insert.remote(number, extracted, run_id, self.varies)

    def apply(self, number: int, change: Callable[[Shard], Any]) -> Any:
        return self._of(number).apply.remote(number, change)

    def compact(self) -> None:
        ray.get([self.apply(number, Shard.compact) for number in range(self.shard_count)])

    def _of(self, number: int) -> Any:
        return self.actors[number % len(self.actors)]


class Commit:
    """The last step of a backfill: hand each row to the committer of its user's shard, and wait.
    What comes out is the number of messages that turned out to be duplicates."""

    def __init__(self, committers: Committers, run_id: str, monitor: Any):
        self.committers = committers
        self.run_id = run_id
        self.monitor = monitor

    def __call__(self, batch: pa.Table) -> pa.Table:
        started = time.perf_counter()
        duplicates = sum(batch["duplicates"].to_pylist()) + sum(self._inserted(batch))
        self.monitor.step.remote("commit", len(batch), time.perf_counter() - started)
        return pa.table({"duplicates": [duplicates]})

    def _inserted(self, batch: pa.Table) -> Iterator[int]:
        """The duplicates of each shard. Rows on their way are copies: they are those of one shard
        more than there are committers."""
        shards = self.committers.shard_count
        numbers = [shard_number(user_id, shards) for user_id in batch["user_id"].to_pylist()]
        waiting: list[Any] = []
        for number in sorted(set(numbers)):
            if len(waiting) > len(self.committers.actors):
                yield ray.get(waiting.pop(0))
            part = batch.filter(pa.array([n == number for n in numbers]))
            waiting.append(self.committers.insert(number, part, self.run_id))
        yield from ray.get(waiting)
