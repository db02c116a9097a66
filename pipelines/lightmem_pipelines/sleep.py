"""The sleep phase: every user's update queues, decided in parallel, saved, then applied."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from lightmem_core import factory
from lightmem_core.config import Config
from lightmem_core.errors import StoreError
from lightmem_core.long_term.consolidate import apply_decisions
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.schema import to_table
from lightmem_core.types import Decision, Entry, UserEntries, stable_id
from lightmem_pipelines.cluster import ray_session
from lightmem_pipelines.commit import Committers
from lightmem_pipelines.durations import duration
from lightmem_pipelines.files import RunFiles
from lightmem_pipelines.monitor import Progress, shown, start_monitor
from lightmem_pipelines.report import Usage
from lightmem_pipelines.running import running

USERS_PER_TASK = 1_000  # at most: their names stand in one filter


@dataclass(frozen=True, slots=True)
class SleepRequest:
    """Whose memories to consolidate: one user's, or everyone's."""

    user_id: str | None = None
    progress: bool = True


@dataclass
class SleepReport:
    """`entries` were active before; `changed_meanwhile` were left as a later write has them."""

    users: int
    entries: int
    merged: int
    superseded: int
    changed_meanwhile: int
    seconds: float
    decisions: str
    reasons: dict[str, int] = field(default_factory=dict)
    llm: Usage = field(default_factory=Usage)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"llm": self.llm.as_dict()}


def sleep(config: Config, request: SleepRequest) -> Run:
    """Consolidate the memories in the store and return the finished run.

    Raise StoreError if there is no store, or no such user in it.
    """
    factory.check(config.memory)
    store = MemoryStore.open(config.memory.store)
    sizes = _sizes(store, request.user_id)
    with running(store, "sleep", {"user_id": request.user_id}) as run:
        with ray_session(config.pipelines):
            report = _run(config, store, sizes, run.id, request.progress)
        run.report = report.as_dict()
    return run.finished


def _sizes(store: MemoryStore, user_id: str | None) -> list[dict[str, int]]:
    """The active entries of each user, by shard."""
    sizes = [shard.user_sizes() for shard in store.shards]
    if user_id is None:
        return sizes
    number = store.shard_number(user_id)
    if user_id not in sizes[number]:
        raise StoreError(f"there are no memories of user {user_id!r} in this store")
    return [{user_id: s[user_id]} if n == number else {} for n, s in enumerate(sizes)]


def _run(
    config: Config, store: MemoryStore, sizes: list[dict[str, int]], run_id: str, progress: bool
) -> SleepReport:
    started = time.perf_counter()
    monitor = start_monitor()
    entries = sum(sum(shard.values()) for shard in sizes)
    work = [
        (number, users)
        for number, shard in enumerate(sizes)
        for users in _portions(shard, config.pipelines.sleep_entries_per_task)
    ]
    reasons: Counter[tuple[str, str]] = Counter()
    changed: dict[int, list[Any]] = {number: [] for number, _ in work}
    with shown(monitor, partial(_line, entries), progress):
        tasks = [
            consolidate_users.remote(config, number, users, run_id, monitor)
            for number, users in work
        ]
        for (number, _), (tally, table) in zip(work, tasks, strict=True):  # pyright: ignore[reportGeneralTypeIssues]
            reasons.update(ray.get(tally))
            changed[number].append(table)
        meanwhile = Committers(config.memory.store).update(changed)
    actions = Counter()
    for (action, _), count in reasons.items():
        actions[action] += count
    return SleepReport(
        users=sum(len(shard) for shard in sizes),
        entries=entries,
        merged=actions["merge"],
        superseded=actions["supersede"],
        changed_meanwhile=meanwhile,
        seconds=round(time.perf_counter() - started, 3),
        decisions=RunFiles(config.memory.store.uri, run_id).folder("decisions"),
        reasons={reason: count for (_, reason), count in reasons.items()},
    )


def _portions(sizes: dict[str, int], entries: int) -> Iterator[list[str]]:
    """Users of one shard in portions of about equal work."""
    held: list[str] = []
    work = 0
    for user_id in sorted(sizes):
        if held and (work + sizes[user_id] > entries or len(held) == USERS_PER_TASK):
            yield held
            held, work = [], 0
        held.append(user_id)
        work += sizes[user_id]
    if held:
        yield held


@ray.remote(num_cpus=1, num_returns=2, max_retries=3)
def consolidate_users(
    config: Config, number: int, users: list[str], run_id: str, monitor: Any
) -> tuple[Counter[tuple[str, str]], pa.Table]:
    """Decide for some users of a shard and save the decisions; return their tally, and the
    entries as they are to be written. Nothing is changed yet, so the task may be repeated."""
    shard = MemoryStore.open(config.memory.store).shard(number)
    held = _by_user(shard.entries_of(users))
    decided = factory.consolidation(config.memory)(held)
    decisions = [d for of_user in decided for d in of_user]
    if decisions:
        run_files = RunFiles(config.memory.store.uri, run_id)
        run_files.write_rows("decisions", stable_id(*users), to_table(decisions, Decision))
    changed = [
        entry
        for user, of_user in zip(held, decided, strict=True)
        for entry in apply_decisions(user.entries, of_user, run_id)
    ]
    monitor.add.remote(
        users=len(held), entries=sum(len(u.entries) for u in held), decisions=len(decisions)
    )
    return Counter((d.action, d.reason) for d in decisions), to_table(changed, Entry)


def _by_user(entries: list[Entry]) -> list[UserEntries]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.user_id, []).append(entry)
    return [UserEntries(user_id, tuple(group)) for user_id, group in groups.items()]


def _line(entries: int, progress: Progress, seconds: float) -> str:
    counts = progress.counts
    done = counts["entries"]
    text = f"{counts['users']:,} users · {done:,} of {entries:,} entries"
    text += f" · {counts['decisions']:,} decisions · {duration(seconds)}"
    left = seconds * (entries - done) / done if done else 0
    return f"{text} · about {duration(left)} left" if left else text
