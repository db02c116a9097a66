"""A run of the sleep phase, step by step, and its report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from lightmem_core.config import Config, Prices
from lightmem_core.llm.usage import Usage
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore
from lightmem_pipelines.budget import Budget
from lightmem_pipelines.cluster import check_room
from lightmem_pipelines.commit import Committers
from lightmem_pipelines.deciding import (
    ApplyPortions,
    Deciding,
    Outcome,
    Portion,
    asks_llm,
    decide_portion,
    decide_through,
    embed_updates,
)
from lightmem_pipelines.durations import duration
from lightmem_pipelines.files import RunFiles
from lightmem_pipelines.monitor import Progress, shown, start_monitor
from lightmem_pipelines.planning import Scope, plan_shard
from lightmem_pipelines.replies import NOTES, reply_counts, usage
from lightmem_pipelines.report import step_table

DECISIONS_A_COMMIT = 50_000  # whose entries are held in memory; of one portion at least
TASKS_A_CPU = 2  # that are handed to Ray at a time: what they are given is held in memory


@dataclass
class SleepReport:
    """`entries` of `users` were active before; `visited` users had anything new.

    `decided` counts decisions by action and reason. Once these are `applied`, the counts by action
    are of those that held, and `dropped` of the others, by reason. `undecided` entries are kept
    because no decision could be had, by reason. `steps` are those of this attempt of the run.
    """

    users: int
    entries: int
    visited: int
    decided: dict[str, dict[str, int]]
    merged: int
    superseded: int
    updated: int
    deleted: int
    seconds: float
    decisions: str
    applied: bool = False
    dropped: dict[str, int] = field(default_factory=dict)
    undecided: dict[str, int] = field(default_factory=dict)
    llm: Usage = field(default_factory=Usage)
    replies: dict[str, int] = field(default_factory=dict)
    steps: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: str = ""

    def as_dict(self, prices: Prices | None = None) -> dict[str, Any]:
        return asdict(self) | {"llm": self.llm.as_dict(prices)}


class SleepPhase:
    """A run of the sleep phase. Every step leaves files, and is skipped where these are."""

    def __init__(self, config: Config, store: MemoryStore, run: Run):
        self.config = config
        self.store = store
        self.run = run
        self.files = RunFiles.of(config.memory.store, run.id)
        self.outcome: Outcome | None = None
        self.monitor: Any = None
        self.started = time.perf_counter()

    @property
    def decided(self) -> bool:
        """Whether every portion of every shard is."""
        planned = len(self.files.names("planned"))
        return planned == self.store.shard_count and next(self._undecided(), None) is None

    def decide(self, progress: bool, budget: Budget | None = None) -> None:
        """Raise LLMUnavailableError or BudgetError after what else is under way is decided."""
        budget = budget or Budget()
        scope = Scope.of(self.store, self.run)
        planned = set(self.files.names("planned"))
        missing = [n for n in range(self.store.shard_count) if f"{n:04}" not in planned]
        self.monitor = monitor = start_monitor(budget=budget, usage=usage(self.files))
        plan = ray.remote(num_cpus=1, max_retries=3)(_planned)
        _in_turn(partial(plan.remote, self.config, scope, number, monitor) for number in missing)
        deciding = Deciding(self.config, self.files, monitor, budget.capped)
        entries = sum(shard["entries"] for shard in self.files.read_json("planned"))
        with shown(monitor, partial(_line, entries), progress):
            if asks_llm(self.config):
                decide_through(deciding, self._undecided())
            else:
                gpus = self.config.pipelines.sleep_gpus_per_task
                check_room("pipelines.sleep_gpus_per_task", GPU=gpus)
                task = decide_portion.options(num_gpus=gpus)  # pyright: ignore[reportFunctionMemberAccess]
                _in_turn(partial(task.remote, deciding, portion) for portion in self._undecided())

    def _undecided(self) -> Iterator[Portion]:
        """The portions to decide, shard by shard."""
        saved = set(self.files.names("decisions"))
        for name in self.files.names("plan"):
            plan = self.files.rows_of("plan", name)
            ends = plan["portion"].value_counts().to_pylist()
            start = 0
            for item in ends:
                rows = plan.slice(start, item["counts"])
                start += item["counts"]
                portion = _portion(int(name), item["values"], rows)
                if portion.name not in saved:
                    yield portion

    def apply(self) -> None:
        """Each shard's committer makes the changes of its shard, in one commit unless they are
        more than it should hold."""
        committers = Committers(self.config, self.store.model)
        self.monitor = monitor = self.monitor or start_monitor()
        commits: list[tuple[int, list[str]]] = []
        vectors: dict[str, Any] = {}
        held = 0
        for name, tally in self._tallies():
            number = int(name.partition("-")[0])
            if tally:
                held += tally.total()
                if not commits or commits[-1][0] != number or held > DECISIONS_A_COMMIT:
                    commits.append((number, []))
                    held = tally.total()
                commits[-1][1].append(name)
            if any(action == "update" for action, _ in tally):
                vectors[name] = embed_updates.remote(self.config, self.run.id, name)  # pyright: ignore[reportFunctionMemberAccess]
        self.outcome = Outcome()
        calls = (
            partial(committers.apply, n, ApplyPortions(self.files, names, vectors, monitor))
            for n, names in commits
        )
        for outcome in _in_turn(calls):
            self.outcome.add(outcome)

    def _tallies(self) -> Iterator[tuple[str, Counter[tuple[str, str]]]]:
        """What was decided, by portion: how often each action for each reason."""
        for name in self.files.names("decisions"):
            rows = self.files.rows_of("decisions", name, ["action", "reason"])
            columns = (rows["action"].to_pylist(), rows["reason"].to_pylist())
            yield name, Counter(zip(*columns, strict=True))

    def report(self) -> SleepReport:
        decided: dict[str, dict[str, int]] = {}
        total = sum((tally for _, tally in self._tallies()), Counter())
        for (action, reason), count in sorted(total.items()):
            decided.setdefault(action, {})[reason] = count
        undecided = decided.pop("keep", {})
        counts = {action: sum(reasons.values()) for action, reasons in decided.items()}
        held = counts if self.outcome is None else self.outcome.held
        planned, used = list(self.files.read_json("planned")), usage(self.files)
        progress: Progress = ray.get(self.monitor.read.remote())
        return SleepReport(
            users=sum(shard["users"] for shard in planned),
            entries=sum(shard["entries"] for shard in planned),
            visited=sum(shard["visited"] for shard in planned),
            decided=decided,
            merged=held.get("merge", 0),
            superseded=held.get("supersede", 0),
            updated=held.get("update", 0),
            deleted=held.get("delete", 0),
            seconds=round(time.perf_counter() - self.started, 3),
            decisions=self.files.folder("decisions"),
            applied=self.outcome is not None,
            dropped=dict(self.outcome.dropped) if self.outcome else {},
            undecided=undecided,
            llm=used,
            replies=reply_counts(self.files, used.calls) if used.calls else {},
            notes=self.files.folder(NOTES),
            steps=step_table(progress),
        )


def _planned(config: Config, scope: Scope, number: int, monitor: Any) -> None:
    started = time.perf_counter()
    entries = plan_shard(config, scope, number)
    monitor.step.remote("plan", entries, time.perf_counter() - started)


def _portion(shard: int, number: int, rows: pa.Table) -> Portion:
    new = rows["new"]
    ids = None if new.null_count else frozenset(i for of_user in new.to_pylist() for i in of_user)
    return Portion(shard, number, rows["user_id"].to_pylist(), ids)


def _in_turn(calls: Iterable[Callable[[], Any]]) -> list[Any]:
    """Start remote calls, a few at a time, and return what they gave."""
    at_once = TASKS_A_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
    results, waiting = [], []
    for call in calls:
        waiting.append(call())
        while len(waiting) >= at_once:
            done, waiting = ray.wait(waiting)
            results += ray.get(done)
    return results + ray.get(waiting)


def _line(entries: int, progress: Progress, seconds: float) -> str:
    counts = progress.counts
    done = counts["entries"]
    text = f"{counts['users']:,} users · {done:,} of {entries:,} entries"
    text += f" · {counts['decisions']:,} decisions · {duration(seconds)}"
    left = seconds * (entries - done) / done if done else 0
    return f"{text} · about {duration(left)} left" if left else text
