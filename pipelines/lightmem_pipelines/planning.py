"""What a sleep phase has to look at: users with something new since the last one, in portions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lightmem_core.config import Config
from lightmem_core.long_term.news import HOUSEKEEPING, MARGIN_MS, Covered, covered_before
from lightmem_core.long_term.portions import portioned
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import of_users, read_batches
from lightmem_pipelines.deciding import portion_entries
from lightmem_pipelines.files import RunFiles

SQUARE = 4_000  # entries of a user at which the queues cost as much as all the rest
COLUMNS = ["user_id", "id", "stored_at", "changed_at", "changed_by"]
PLAN = pa.schema(
    [
        ("portion", pa.int32()),
        ("user_id", pa.string()),
        ("new", pa.list_(pa.string())),  # the ids of new entries; null: all are
    ]
)
SEEN = pa.schema([("user_id", pa.string()), ("state", pa.string())])

compute: Any = pc


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose entries a phase looks at, everyone's or one user's, and which of them are known."""

    run: Run
    user_id: str | None
    covered: Covered

    @classmethod
    def of(cls, store: MemoryStore, run: Run) -> Scope:
        user_id = run.request["user_id"]
        nothing = Covered(0, "")
        covered = nothing if run.request["every"] else covered_before(store, run)
        return cls(run, user_id, covered)


def plan_shard(config: Config, scope: Scope, number: int) -> int:
    """Save what is to be judged in a shard, and what is seen of what came in shortly before; return
    how many entries it holds."""
    shard = MemoryStore.open(config.memory.store).shard(number)
    place, name = config.memory.store, f"{number:04}"
    known = _seen(RunFiles.of(place, scope.covered.run_id), name)
    found = _Found(scope, known)
    for batch in _batches(shard, scope.user_id):
        found.add(batch)
    plan = _plan(found, portion_entries(config))
    files = RunFiles.of(place, scope.run.id)
    files.write_rows("plan", name, plan)
    files.write_rows("seen", name, found.seen)
    counts = {"users": len(found.entries), "entries": sum(found.entries.values())}
    files.write_json("planned", name, counts | {"visited": len(plan)})  # last: the plan is whole
    return counts["entries"]


def _batches(shard: Shard, user_id: str | None) -> Iterator[pa.RecordBatch]:
    whose = "true" if user_id is None else of_users([user_id])
    return read_batches(shard.entries, f"{whose} AND superseded_by = ''", COLUMNS)


def _seen(files: RunFiles, name: str) -> pa.Array:
    if files.run_id and name in files.names("seen"):
        return files.rows_of("seen", name)["state"].combine_chunks()
    return pa.array([], pa.string())


class _Found:
    """The active entries of a shard, counted by user, and the new ones among them."""

    def __init__(self, scope: Scope, known: pa.Array):
        self.scope = scope
        self.known = known
        self.entries: dict[str, int] = {}
        self.new: dict[str, list[str]] = {}
        self.states: list[pa.RecordBatch] = []

    def add(self, batch: pa.RecordBatch) -> None:
        for item in batch["user_id"].value_counts().to_pylist():
            user = item["values"]
            self.entries[user] = self.entries.get(user, 0) + item["counts"]
        touched = _touched(batch)
        recent = compute.greater_equal(touched, self.scope.run.started_at - MARGIN_MS)
        shown = batch.filter(recent)
        columns = [shown["user_id"], _states(shown, touched.filter(recent))]
        self.states.append(pa.record_batch(columns, schema=SEEN))
        if not self.scope.covered.at and not self.scope.covered.users:
            return
        late = compute.greater_equal(touched, self._since(batch["user_id"]))
        batch, touched = batch.filter(late), touched.filter(late)
        known = compute.is_in(_states(batch, touched), value_set=self.known)
        batch = batch.filter(compute.invert(known))
        for user, entry_id in zip(*map(pa.Array.to_pylist, batch.columns[:2]), strict=True):
            self.new.setdefault(user, []).append(entry_id)

    def _since(self, users: pa.Array) -> Any:
        """From when on entries of users are new, unless they were seen."""
        covered = self.scope.covered
        own = pa.array([at - MARGIN_MS for at in covered.users.values()], pa.int64())
        place = compute.index_in(users, value_set=pa.array(list(covered.users), pa.string()))
        return compute.fill_null(own.take(place), covered.at - MARGIN_MS if covered.at else 0)

    @property
    def seen(self) -> pa.Table:
        return pa.Table.from_batches(self.states, SEEN)

    def visited(self) -> dict[str, list[str] | None]:
        """The users who have anything new, with its ids; None where all is."""
        if self.scope.covered.at or self.scope.covered.users:
            return dict(self.new)
        return dict.fromkeys(self.entries)


def _touched(batch: pa.RecordBatch) -> Any:
    """When each entry was written, or changed by other than the housekeeping of the store."""
    own = compute.match_substring_regex(batch["changed_by"], f"^({'|'.join(HOUSEKEEPING)})")
    changed = compute.if_else(own, 0, batch["changed_at"])
    return compute.max_element_wise(batch["stored_at"], changed)


def _states(batch: pa.RecordBatch, touched: pa.Array) -> pa.Array:
    """An entry as of a time: if it is touched again, it is news again."""
    return compute.binary_join_element_wise(batch["id"], touched.cast(pa.string()), "@")


def _plan(found: _Found, limit: int) -> pa.Table:
    """The users to visit in portions, the most work first."""
    visited = found.visited()
    sizes = {user: found.entries[user] for user in sorted(visited)}
    portions = sorted(portions_of(sizes, limit), key=lambda p: -sum(_work(sizes[u]) for u in p))
    rows = [(number, user) for number, users in enumerate(portions) for user in users]
    columns = {
        "portion": [number for number, _ in rows],
        "user_id": [user for _, user in rows],
        "new": [visited[user] for _, user in rows],
    }
    return pa.table(columns, schema=PLAN)


def _work(entries: int) -> float:
    """What a user costs, as the number of entries of small users that cost the same."""
    return entries * (1 + entries / SQUARE)


def portions_of(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Users of one shard in portions of about equal work."""
    return portioned(sizes, limit, _work)
