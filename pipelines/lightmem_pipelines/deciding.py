"""The work of a sleep phase: portions are decided and saved, then a shard is changed at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.exceptions import RayError

from lightmem_core import factory
from lightmem_core.config import Config
from lightmem_core.long_term.apply import Applied, Phase
from lightmem_core.long_term.carrying_out import Judge, carry_out
from lightmem_core.long_term.consolidate import Consolidation
from lightmem_core.long_term.shard import IDS_PER_FILTER, USERS_PER_FILTER, Shard
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.long_term.tables import among, now_ms, of_users, read
from lightmem_core.long_term.upkeep import compact_if_crowded
from lightmem_core.schema import from_table, to_table
from lightmem_core.types import Decision, Entry, Extracted
from lightmem_pipelines.cluster import check_room
from lightmem_pipelines.files import RunFiles
from lightmem_pipelines.replies import RunReplies, shared_out

compute: Any = pc


@dataclass(frozen=True, slots=True)
class Portion:
    """Users of a shard, and the ids of what is new of them; None: all is."""

    shard: int
    number: int
    users: list[str]
    new: frozenset[str] | None

    @property
    def name(self) -> str:
        return f"{self.shard:04}-{self.number:06}"


@dataclass(frozen=True, slots=True)
class Deciding:
    """What all that decide in a run share."""

    config: Config
    files: RunFiles
    monitor: Any
    capped: bool = False

    def consolidation(self) -> Consolidation:
        memory = shared_out(self.config.memory, self.config.pipelines.decide.actors)
        replies = RunReplies.of(memory, self.files, self.monitor, self.capped)
        device = "cuda" if ray.get_gpu_ids() else None  # Ray hides no GPU from those without one
        return factory.consolidation(memory, replies, device)

    def decide(self, portion: Portion, consolidation: Consolidation) -> None:
        """Decide for some users and save that, even if it is nothing: then it need not be
        repeated."""
        started = time.perf_counter()
        shard = MemoryStore.open(self.config.memory.store).shard(portion.shard)
        rows = read(shard.entries, f"{of_users(portion.users)} AND superseded_by = ''")
        decisions = list(consolidation.of_rows(rows, portion.new))
        self.files.write_rows("decisions", portion.name, to_table(decisions, Decision))
        counts = {"users": len(portion.users), "entries": len(rows), "decisions": len(decisions)}
        self.monitor.add.remote(**counts)
        self.monitor.step.remote("decide", len(rows), time.perf_counter() - started)


@ray.remote(num_cpus=1, max_retries=3)
def decide_portion(deciding: Deciding, portion: Portion) -> None:
    deciding.decide(portion, deciding.consolidation())


@ray.remote(max_restarts=-1, max_task_retries=3)
class Decider:
    """Decides through an LLM, some portions at once: what it asks with is built once."""

    def __init__(self, deciding: Deciding):
        self.deciding = deciding
        self.consolidation = deciding.consolidation()

    def decide(self, portion: Portion) -> None:
        self.deciding.decide(portion, self.consolidation)


def decide_through(deciding: Deciding, portions: Iterable[Portion]) -> None:
    """Decide portions on actors that ask an LLM. After an error no more are begun, those that are
    end, and it is raised."""
    pool = deciding.config.pipelines.decide
    check_room("pipelines.decide", CPU=pool.actors * pool.cpus, GPU=pool.actors * pool.gpus)
    options = {"num_cpus": pool.cpus, "num_gpus": pool.gpus, "max_concurrency": pool.batches}
    actors: list[Any] = [
        Decider.options(**options).remote(deciding)  # pyright: ignore[reportAttributeAccessIssue]
        for _ in range(pool.actors)
    ]
    free = [actor for _ in range(pool.batches) for actor in actors]
    busy: dict[Any, Any] = {}
    errors: list[RayError] = []
    for portion in portions:
        if not free:
            errors += _ended(busy, free)
        if errors:
            break
        actor = free.pop()
        busy[actor.decide.remote(portion)] = actor
    while busy:
        errors += _ended(busy, free)
    if errors:
        raise errors[0]


def _ended(busy: dict[Any, Any], free: list[Any]) -> list[RayError]:
    """Wait until a call ends; its actor is free then. Return the error it ended with, if any."""
    (ended,), _ = ray.wait(list(busy))
    free.append(busy.pop(ended))
    try:
        ray.get(ended)
    except RayError as error:
        return [error]
    return []


def asks_llm(config: Config) -> bool:
    """Whether the sleep phase decides through an LLM."""
    return factory.asks_llm("updater", config.memory.updater)


def portion_entries(config: Config) -> int:
    """At most so many entries are in a portion: few where they are paid for one by one."""
    pipelines = config.pipelines
    if asks_llm(config):
        return pipelines.decide.entries_per_portion
    return pipelines.sleep_entries_per_task


@ray.remote(num_cpus=1, max_retries=3)
def embed_updates(config: Config, run_id: str, name: str) -> dict[str, np.ndarray]:
    """The vectors of a portion's new texts, by entry. Raise StoreError if the configured embedder
    is not the store's."""
    embedding = factory.embedding(config.memory)
    store = MemoryStore.open(config.memory.store, VectorModel.of(embedding.embedder))
    decisions = read_decisions(RunFiles.of(config.memory.store, run_id), name)
    updates = {d.entry_id: d.text for d in decisions if d.action == "update"}
    shard = store.shard(int(name.partition("-")[0]))
    asked = [d for d in decisions if d.entry_id in updates]
    rows = [replace(e, text=updates[e.id]) for e in rows_of(shard, asked) if e.id in updates]
    (embedded,) = embedding([Extracted("", (), tuple(rows))])
    return {e.id: e.vector for e in embedded.entries if e.vector is not None}


def read_decisions(files: RunFiles, name: str) -> list[Decision]:
    return from_table(files.rows_of("decisions", name), Decision)


def rows_of(shard: Shard, decisions: Iterable[Decision]) -> list[Entry]:
    """The present rows of the entries that decisions name, tombstones too."""
    asked: dict[str, set[str]] = {}
    for decision in decisions:
        asked.setdefault(decision.user_id, set()).update((decision.entry_id, decision.successor))
    found: list[Entry] = []
    users: list[str] = []
    ids: list[str] = []
    for user in sorted(asked):
        users.append(user)
        ids += sorted(asked[user])
        if len(ids) >= IDS_PER_FILTER or len(users) == USERS_PER_FILTER:
            found += _rows(shard, users, ids)
            users, ids = [], []
    return found + _rows(shard, users, ids)


def _rows(shard: Shard, users: list[str], ids: list[str]) -> list[Entry]:
    """The database looks for a few ids faster than it hands over all rows; for many it does not."""
    if len(ids) <= 2 * IDS_PER_FILTER:
        where = f"{of_users(users)} AND {among('id', ids)}"
        return from_table(read(shard.entries, where), Entry)
    rows = read(shard.entries, of_users(users))
    return from_table(rows.filter(compute.is_in(rows["id"], value_set=pa.array(ids))), Entry)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many decisions hold, by action, and how many were dropped, by reason."""

    held: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, parts: Iterable[Applied]) -> Outcome:
        outcome = cls()
        for part in parts:
            outcome.add(part)
        return outcome

    def add(self, other: Applied | Outcome) -> None:
        self.held.update(other.held)
        self.dropped.update(other.dropped)


@dataclass(frozen=True, slots=True)
class ApplyPortions:
    """The change that a run makes to a shard: the decisions of some of its portions, in one commit.
    `vectors` refer to those of updated texts, by portion. `monitor` is told what that took."""

    files: RunFiles
    names: list[str]
    vectors: Mapping[str, Any]
    monitor: Any = None

    def __call__(self, shard: Shard) -> Outcome:
        started = time.perf_counter()
        outcome = Outcome.of(carry_out(shard, partial(self._judged, shard)))
        compact_if_crowded(shard)
        if self.monitor is not None:
            rows = outcome.held.total() + outcome.dropped.total()
            self.monitor.step.remote("apply", rows, time.perf_counter() - started)
        return outcome

    def _judged(self, shard: Shard, judge: Judge) -> Iterator[Applied]:
        """What a function makes of each portion's decisions and the present rows."""
        at = now_ms()
        for name in self.names:
            decisions = read_decisions(self.files, name)
            vectors: Any = ray.get(self.vectors[name]) if name in self.vectors else {}
            phase = Phase(self.files.run_id, at, vectors)
            yield judge(rows_of(shard, decisions), decisions, phase)
