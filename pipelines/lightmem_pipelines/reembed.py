"""Move a store to the configured embedder, while it is searched and written to."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import ray
from ray.util import ActorPool

from lightmem_core import factory
from lightmem_core.config import Config, Pool, StoreConfig
from lightmem_core.long_term.reembed import (
    Embedded,
    Reembedding,
    drop_generations,
    next_generation,
    pending,
    portions,
    previous_generation,
    remove_gone,
    store_embedded,
    switch,
)
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import Manifest, MemoryStore, VectorModel, connect
from lightmem_core.long_term.upkeep import COMPACT_AFTER
from lightmem_pipelines.cluster import ray_session
from lightmem_pipelines.commit import RETRIES
from lightmem_pipelines.durations import duration
from lightmem_pipelines.monitor import Progress, shown, start_monitor
from lightmem_pipelines.running import running

RECYCLE_AFTER = 100  # commits: a process that writes to the store never gives all memory back
PASSES = 10  # at most before the switch: where writers are always at work, none finds nothing


@dataclass(frozen=True, slots=True)
class ReembedRequest:
    """`drop_old` removes the old vectors at the end: servers that still read them will fail."""

    drop_old: bool = False
    progress: bool = True


@dataclass
class ReembedReport:
    """`entries` and `versions` were embedded by this run, in `passes`; `dropped` counts tables."""

    old_embedder: str
    old_dim: int
    embedder: str
    dim: int
    generation: int
    entries: int = 0
    versions: int = 0
    passes: int = 0
    dropped: int = 0
    seconds: float = 0


def reembed(config: Config, request: ReembedRequest) -> Run:
    """Give every entry a vector of the configured embedder and return the finished run.

    What an interrupted run has embedded is not embedded again. On a store that has been moved
    already this brings over what may have been left, and drops the old vectors if asked to. Raise
    StoreError if there is no store.
    """
    factory.check(config.memory)
    model = VectorModel.of(factory.embedder(config.memory))
    store = MemoryStore.open(config.memory.store)
    with running(store, "reembed", {"embedder": model.name, "dim": model.dim}) as run:
        with ray_session(config.pipelines):
            report = _run(config, store, model, request)
        run.report = asdict(report)
    return run.finished


def _run(
    config: Config, store: MemoryStore, model: VectorModel, request: ReembedRequest
) -> ReembedReport:
    started = time.perf_counter()
    moved = store.model == model
    old = previous_generation(store) if moved else store
    new = store if moved else next_generation(store, model)
    report = ReembedReport(
        store.model.name, store.model.dim, model.name, model.dim, new.manifest.generation
    )
    if old is not None:
        with _move(config, old, new, request.progress) as move:
            if not moved:
                move.until_nothing_is_left()
                switch(old, new)
            move.bring_over()
        report.entries, report.versions, report.passes = move.entries, move.versions, move.passes
    if request.drop_old:
        present = new.manifest.generation
        report.dropped = drop_generations(new, lambda generation: generation != present)
    report.seconds = round(time.perf_counter() - started, 3)
    return report


@dataclass(frozen=True, slots=True)
class Generations:
    """Where rows come from and where they go. Can be passed to tasks."""

    config: StoreConfig
    old: Manifest
    new: Manifest

    def open(self) -> tuple[MemoryStore, MemoryStore]:
        database = connect(self.config)
        return MemoryStore(database, self.old), MemoryStore(database, self.new)


@ray.remote(num_cpus=1, max_retries=3)
def plan(generations: Generations, number: int, switched: bool) -> list[tuple[list[str], int]]:
    """What a shard's next generation lacks: users in portions, and the rows of each portion.
    Before the switch what is gone from the present one is removed."""
    old, new = generations.open()
    ours, theirs = old.shard(number), new.shard(number)
    if not switched:
        remove_gone(ours, theirs, old.confirm)
    sizes = pending(ours, theirs)
    return [(users, sum(sizes[user] for user in users)) for users in portions(sizes)]


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=RETRIES)
class Writer:
    """The one writer of a shard's next generation. Each of its calls may be repeated."""

    def __init__(self, generations: Generations, number: int):
        self.shard = generations.open()[1].shard(number)
        self.commits = 0

    def write(self, rows: Embedded) -> None:
        if self.commits == RECYCLE_AFTER:
            os._exit(0)  # Ray starts a fresh process and repeats this call in it
        store_embedded(self.shard, rows)
        self.commits += 1
        if self.commits % COMPACT_AFTER == 0:
            self.shard.compact()

    def compact(self) -> None:
        self.shard.compact()


@ray.remote(max_restarts=-1, max_task_retries=RETRIES)
class Embedder:
    """One copy of the model, which is built on the actor."""

    def __init__(
        self, config: Config, generations: Generations, writers: Sequence[Any], monitor: Any
    ):
        self.embedding = Reembedding(factory.embedder(config.memory))
        self.old, self.new = generations.open()
        self.writers = writers
        self.monitor = monitor

    def move(self, number: int, users: Sequence[str]) -> tuple[int, int]:
        """Embed and commit what is lacking of some users; return how many entries and versions."""
        entries = versions = 0
        for rows in self.embedding(self.old.shards[number], self.new.shards[number], users):
            ray.get(self.writers[number].write.remote(rows))
            entries += len(rows.entries)
            versions += len(rows.versions)
            self.monitor.add.remote(rows=len(rows.entries) + len(rows.versions))
        return entries, versions


class Move:
    """Passes over all shards, on embedders and writers that stay from pass to pass."""

    def __init__(
        self, generations: Generations, embedders: list[Any], writers: list[Any], monitor: Any
    ):
        self.generations = generations
        self.pool = ActorPool(embedders)
        self.writers = writers
        self.monitor = monitor
        self.entries = self.versions = self.passes = 0

    def until_nothing_is_left(self) -> None:
        """Before the switch. What arrives after the last pass follows after the switch."""
        first = True
        while self.bring_over(switched=False) and self.passes < PASSES:
            if first:
                ray.get([writer.compact.remote() for writer in self.writers])
            first = False

    def bring_over(self, switched: bool = True) -> int:
        """One pass: all that the next generation lacks when it begins. Return how many rows."""
        self.passes += 1
        shards = range(self.generations.old.shards)
        plans = ray.get([plan.remote(self.generations, number, switched) for number in shards])
        work = [
            (n, users) for n, of_shard in zip(shards, plans, strict=True) for users, _ in of_shard
        ]
        rows = sum(count for of_shard in plans for _, count in of_shard)
        self.monitor.add.remote(found=rows, passes=1)
        for entries, versions in self.pool.map_unordered(_moved, work):
            self.entries += entries
            self.versions += versions
        return rows


def _moved(embedder: Any, portion: tuple[int, list[str]]) -> Any:
    return embedder.move.remote(*portion)


@contextmanager
def _move(config: Config, old: MemoryStore, new: MemoryStore, progress: bool) -> Iterator[Move]:
    generations = Generations(config.memory.store, old.manifest, new.manifest)
    monitor = start_monitor()
    writers: list[Any] = [
        Writer.remote(generations, number)  # pyright: ignore[reportAttributeAccessIssue]
        for number in range(old.shard_count)
    ]
    pool = next(pool for pool in config.pipelines.pools if "embed" in pool.steps)
    embedder: Any = Embedder
    sized = embedder.options(num_cpus=pool.cpus, num_gpus=pool.gpus or None)
    embedders = [sized.remote(config, generations, writers, monitor) for _ in range(_actors(pool))]
    with shown(monitor, partial(_line, new.model), progress):
        yield Move(generations, embedders, writers, monitor)


def _actors(pool: Pool) -> int:
    """As many as have room now: the pool's least on a busy cluster, its most on an idle one."""
    low, high = pool.actors
    room = ray.available_resources()
    needs = {"CPU": pool.cpus, "GPU": pool.gpus}
    # One CPU stays free for the plans.
    fit = [int((room.get(k, 0) - (k == "CPU")) / need) for k, need in needs.items() if need]
    return max(low, min(high, *fit)) if fit else high


def _line(model: VectorModel, progress: Progress, seconds: float) -> str:
    counts = progress.counts
    found, done = counts["found"], counts["rows"]
    text = f"{done:,} of {found:,} entries and versions have vectors of {model.name}"
    text += f" · pass {counts['passes']} · {duration(seconds)}"
    if 0 < done < found:
        return f"{text} · about {duration(seconds * (found - done) / done)} left"
    return text
