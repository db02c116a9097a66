"""Try again what a run could not extract: its quarantined messages, and no others."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa
import ray
import ray.data

from lightmem_core import factory
from lightmem_core.config import Config, MemoryConfig, StoreConfig
from lightmem_core.errors import InputError
from lightmem_core.fingerprint import fingerprint
from lightmem_core.history import stored_history
from lightmem_core.long_term.portions import portioned
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.schema import to_table
from lightmem_core.types import History, Segment, SegmentedHistory
from lightmem_pipelines.budget import Budget, prices_of
from lightmem_pipelines.cluster import ray_session
from lightmem_pipelines.durations import duration
from lightmem_pipelines.monitor import Progress
from lightmem_pipelines.operators import STEPS, Step
from lightmem_pipelines.report import BackfillReport, backfill_report
from lightmem_pipelines.running import ADDING, running, varying
from lightmem_pipelines.storing import Storing

MESSAGES_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class RetryRequest:
    """The run whose failed messages are tried again, and the most that this may cost."""

    run_id: str
    progress: bool = True
    budget_tokens: int | None = None
    budget_money: float | None = None


def retry(config: Config, request: RetryRequest) -> Run:
    """Extract the quarantined messages of a run again, and return the finished run of its own.

    Those that fail again are quarantined under it; another retry of the first run finds them too.
    """
    config = factory.shipped(config)
    budget = Budget.asked(request.budget_tokens, request.budget_money, prices_of(config.memory))
    model = VectorModel.of(factory.embedder(config.memory))
    store = MemoryStore.open(config.memory.store, model)
    first = store.runs.get(request.run_id)
    if first.kind not in ADDING or first.status != "done":
        raise InputError(
            f"{first.id} is a {first.kind} that is {first.status}: name a backfill that is done, "
            "or finish this one first"
        )
    asked = {"run": first.id, "config": fingerprint(config.memory)} | varying(config.memory)
    with running(store, "retry", asked) as run:
        with ray_session(config.pipelines):
            storing = Storing.of(config, store, run.id, budget)
            report = _run(storing, request, _runs_of(store, first, run.id))
        run.report = report.as_dict(prices_of(config.memory))
    return run.finished


def _runs_of(store: MemoryStore, first: Run, own: str) -> list[str]:
    """A run and the earlier retries of it, under whose names the messages may be by now."""
    found = {first.id}
    for run in reversed(store.runs.latest(None)):
        if run.kind == "retry" and run.request.get("run") in found and run.id != own:
            found.add(run.id)
    return sorted(found)


def _run(storing: Storing, request: RetryRequest, run_ids: Sequence[str]) -> BackfillReport:
    started = time.perf_counter()
    store, files = storing.store, storing.files
    tried = sum(len(b) for s in store.shards for b in s.message_batches(files.run_id, ["id"]))
    left = sum(sum(s.quarantined_sizes(run_ids).values()) for s in store.shards)
    files.write_json("read", "messages", {"messages": tried + left, "rejected": {}})
    duplicates = 0
    if left:
        steps = STEPS | {"segment": Step(_regrouping, reads=History, writes=SegmentedHistory)}
        line = partial(_line, left) if request.progress else None
        duplicates = storing.run(_histories(store, storing, run_ids), steps, line=line)
    progress: Progress = ray.get(storing.monitor.read.remote())  # pyright: ignore[reportAssignmentType]
    seconds = time.perf_counter() - started
    report = backfill_report(store, files, duplicates, progress, seconds)
    report.messages.reconcile()
    return report


def _histories(store: MemoryStore, storing: Storing, run_ids: Sequence[str]) -> ray.data.Dataset:
    shards = [{"shard": number} for number in range(store.shard_count)]
    data = ray.data.from_items(shards, override_num_blocks=len(shards))
    return data.map_batches(
        Quarantined(storing.config.memory.store, tuple(run_ids)), batch_size=1, num_cpus=1
    )


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Reads what runs could not extract in a shard: a history of each user, of these messages."""

    store: StoreConfig
    run_ids: tuple[str, ...]

    def __call__(self, batch: Any) -> Iterator[pa.Table]:
        for number in batch["shard"]:
            shard = MemoryStore.open(self.store).shard(int(number))
            sizes = shard.quarantined_sizes(self.run_ids)
            for users in portioned(sizes, MESSAGES_AT_ONCE):
                rows = shard.quarantined(self.run_ids, users)
                by_user = groupby(rows, lambda m: m.user_id)
                yield to_table([stored_history(messages) for _, messages in by_user], History)


def _regrouping(config: MemoryConfig) -> Regrouping:
    return Regrouping()


class Regrouping:
    """The segmentation stage for messages that were cut into segments before."""

    def __call__(self, rows: Sequence[History]) -> list[SegmentedHistory]:
        return [
            SegmentedHistory(row.user_id, tuple(self._segments(row)), row.duplicates)
            for row in rows
        ]

    def _segments(self, row: History) -> Iterator[Segment]:
        for _, messages in groupby(row.messages, lambda m: m.segment_id):
            yield Segment(tuple(messages))


def _line(messages: int, progress: Progress, seconds: float) -> str:
    done, calls = progress.counts["messages"], progress.counts["calls"]
    text = f"{done:,} of {messages:,} messages · {progress.counts['entries']:,} entries"
    return f"{text} · {calls:,} LLM calls · {duration(seconds)}"
