"""Undo of a sleep phase, or of another undo. What was written later is kept.

The rule, for the undone run R:

- An entry that R changed last goes back to what it was before R, tombstone or not.
- An entry that another run changed after R keeps that change. What R hid inside it comes out,
  though: sources that it absorbed only from tombstones which are now restored are taken out of
  `absorbed`, however many tombstones they came through. Where R was itself an undo that had taken
  sources out, those of the tombstones that are now back are put in again.
- Entries that were stored later, and those that R did not touch, stay as they are.

Each entry is written with the undo as its last change, so that the undo stands in the history and
can be undone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from lightmem_core.errors import StoreError
from lightmem_core.long_term.portions import portioned
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import now_ms, of_users, quoted, read, read_batches
from lightmem_core.long_term.undo_plan import Change, UndoPlan
from lightmem_core.long_term.upkeep import compact_if_crowded
from lightmem_core.long_term.versions import states_of
from lightmem_core.schema import to_table
from lightmem_core.types import Entry

UNDOABLE = ("sleep", "undo")
INTERRUPTED = ("running", "failed")
UNDONE = "undone"  # the status of an interrupted sleep that is not to be gone on with
PORTION = 5_000  # entries, or one user's: read, or written, at a time


@dataclass
class UndoReport:
    """`restored` entries are as before the run. `later` counts those that another run has changed
    since, by that run; `corrected` were left but for the sources of what was restored.

    `without_version` entries cannot be restored, and `changed_meanwhile` were left to a write that
    came in between.
    """

    restored: int = 0
    corrected: int = 0
    changed_meanwhile: int = 0
    without_version: int = 0
    later: dict[str, int] = field(default_factory=dict)
    seconds: float = 0


@dataclass(frozen=True, slots=True)
class Undo:
    """A run to undo, and the run that undoes it from `at` on."""

    undone: str
    run_id: str
    at: int

    def written(self, entry: Entry, present: Entry) -> Entry:
        """An entry as it takes the place of the present one."""
        return replace(entry, gen=present.gen + 1, changed_by=self.run_id, changed_at=self.at)


def undo(store: MemoryStore, run_id: str, by: str) -> UndoReport:
    """Take back what a run changed, as the run `by`, under the lease of what changes entries. What
    an undo that was cut off has restored already is passed over. A sleep that was interrupted does
    not go on. Raise StoreError if the run cannot be undone."""
    undone = store.runs.get(run_id)
    check_undoable(undone)
    if undone.status in INTERRUPTED:
        store.runs.write(replace(undone, status=UNDONE))
    started = time.perf_counter()
    asked, report = Undo(run_id, by, now_ms()), UndoReport()
    for shard in store.shards:
        touched = dict(sorted(_touched(shard, run_id).items()))
        plans = (_plan(shard, users, run_id) for users in portioned(touched, PORTION))
        for part in _portions(plans):
            _write(shard, part, asked, report)
        if touched:
            compact_if_crowded(shard)
    report.seconds = round(time.perf_counter() - started, 3)
    return report


def check_undoable(run: Run) -> None:
    """Raise StoreError unless a run is a sleep that has begun to change entries, or an undo that
    has ended. One that is under way holds the lease."""
    if run.kind not in UNDOABLE:
        raise StoreError(
            f"{run.id} is a {run.kind}: only what a sleep or an undo changed can be undone"
        )
    if run.kind == "undo" and run.status != "done":
        again = f"`lightmem undo {run.request['run']}`"
        raise StoreError(f"{run.id} is not finished ({run.status}): finish it with {again} first")
    if run.status == "planned":
        raise StoreError(f"{run.id} has changed nothing: it was planned alone")


def _touched(shard: Shard, run_id: str) -> dict[str, int]:
    """How many entries, tombstones too, each user has of whom a run changed any."""
    by_run = f"changed_by = {quoted(run_id)}"
    users = {
        user
        for table in (shard.entries, shard.versions)
        for batch in read_batches(table, by_run, ["user_id"])
        for user in batch["user_id"].to_pylist()
    }
    sizes: Counter[str] = Counter()
    for some in portioned(dict.fromkeys(sorted(users), 1), PORTION):
        for batch in read_batches(shard.entries, of_users(some), ["user_id"]):
            sizes.update(batch["user_id"].to_pylist())
    return sizes


def _plan(shard: Shard, users: Sequence[str], undone: str) -> UndoPlan:
    present = {e.id: e for e in shard.entries_of(users, tombstones=True)}
    by_run = f"{of_users(users)} AND changed_by = {quoted(undone)}"
    touched = {e.id for e in present.values() if e.changed_by == undone}
    touched |= {*read(shard.versions, by_run, ["id"])["id"].to_pylist()} & present.keys()
    return UndoPlan(present, states_of(shard, [present[i] for i in sorted(touched)]), undone)


def _portions(plans: Iterable[UndoPlan]) -> Iterator[list[Change]]:
    """What is to be written, or counted, of users, so many changed entries at a time as a commit
    should have."""
    held: list[Change] = []
    for plan in plans:
        held.append(plan.change())
        if sum(len(change.entries) for change in held) >= PORTION:
            yield held
            held = []
    if held:
        yield held


def _write(shard: Shard, changes: Sequence[Change], asked: Undo, report: UndoReport) -> None:
    written = [
        asked.written(entry, change.present[entry_id])
        for change in changes
        for entry_id, entry in change.entries.items()
    ]
    lost: set[str] = set()
    if shard.update(to_table(written, Entry)):
        users = sorted({entry.user_id for entry in written})
        lost = {entry.id for entry in written} - _written_by(shard, users, asked.run_id)
    report.changed_meanwhile += len(lost)
    for change in changes:
        report.restored += len(change.restored - lost)
        report.corrected += len(change.entries.keys() - change.restored - lost)
        report.without_version += change.without_version
        for chain in change.later:
            _count_later(report, chain, asked)


def _written_by(shard: Shard, users: Sequence[str], run_id: str) -> set[str]:
    """The entries of users that a run has written, also where others have changed them since."""
    return {
        found
        for some in portioned(dict.fromkeys(users, 1), PORTION)
        for table in (shard.entries, shard.versions)
        for found in read(table, f"{of_users(some)} AND changed_by = {quoted(run_id)}", ["id"])[
            "id"
        ].to_pylist()
    }


def _count_later(report: UndoReport, chain: Sequence[Entry], asked: Undo) -> None:
    """Count an entry that changed after the undone run. The undo itself may have changed it, before
    it was cut off."""
    own = chain[-1].changed_by == asked.run_id
    last = next(s.changed_by for s in reversed(chain) if s.changed_by != asked.run_id)
    if last == asked.undone:
        report.restored += own
    else:
        report.later[last] = report.later.get(last, 0) + 1
        report.corrected += own
