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
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from lightmem_core.errors import StoreError
from lightmem_core.long_term.portions import portioned
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import now_ms, of_users, quoted, read, read_batches
from lightmem_core.long_term.upkeep import compact_if_crowded
from lightmem_core.long_term.versions import states_of
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Source

UNDOABLE = ("sleep", "undo")
PORTION = 5_000  # entries, or one user's: held and written at a time


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
    """Take back what a run changed, as the run `by`. What an undo that was cut off has restored
    already is passed over. Raise StoreError if the run cannot be undone."""
    check_undoable(store.runs.get(run_id))
    started = time.perf_counter()
    asked, report = Undo(run_id, by, now_ms()), UndoReport()
    for shard in store.shards:
        touched = _touched(shard, run_id)
        for users in portioned(dict(sorted(touched.items())), PORTION):
            _undo_users(shard, users, asked, report)
        if touched:
            compact_if_crowded(shard)
    report.seconds = round(time.perf_counter() - started, 3)
    return report


def check_undoable(run: Run) -> None:
    """Raise StoreError unless a run is a finished sleep or undo."""
    if run.kind not in UNDOABLE:
        raise StoreError(
            f"{run.id} is a {run.kind}: only what a sleep or an undo changed can be undone"
        )
    if run.status != "done":
        again = (
            f"`lightmem undo {run.request['run']}`" if run.kind == "undo" else "the same command"
        )
        raise StoreError(f"{run.id} is not finished ({run.status}): finish it with {again} first")


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
    if users:
        for batch in read_batches(shard.entries, "true", ["user_id"]):
            sizes.update(user for user in batch["user_id"].to_pylist() if user in users)
    return sizes


def _undo_users(shard: Shard, users: Sequence[str], asked: Undo, report: UndoReport) -> None:
    present = {e.id: e for e in shard.entries_of(users, tombstones=True)}
    by_run = f"{of_users(users)} AND changed_by = {quoted(asked.undone)}"
    touched = {e.id for e in present.values() if e.changed_by == asked.undone}
    touched |= {*read(shard.versions, by_run, ["id"])["id"].to_pylist()} & present.keys()
    plan = _Plan(present, states_of(shard, [present[i] for i in sorted(touched)]), asked.undone)
    corrected = plan.corrected()
    changed = {**plan.restored, **corrected}
    written = [asked.written(entry, present[entry.id]) for entry in changed.values()]
    lost: set[str] = set()
    if shard.update(to_table(written, Entry)):
        lost = changed.keys() - _written_by(shard, users, asked.run_id)
    report.changed_meanwhile += len(lost)
    report.restored += len(plan.restored.keys() - lost)
    report.corrected += len(corrected.keys() - lost)
    report.without_version += len(plan.without_version)
    for entry_id in plan.later:
        _count_later(report, plan.states[entry_id], asked)


def _written_by(shard: Shard, users: Sequence[str], run_id: str) -> set[str]:
    """The entries of users that a run has written, also where others have changed them since."""
    where = f"{of_users(users)} AND changed_by = {quoted(run_id)}"
    tables = (shard.entries, shard.versions)
    return {i for table in tables for i in read(table, where, ["id"])["id"].to_pylist()}


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


class _Plan:
    """What becomes of some users' entries. `states` has all states of those that a run changed."""

    def __init__(
        self, present: Mapping[str, Entry], states: Mapping[str, Sequence[Entry]], undone: str
    ):
        self.present = present
        self.undone = undone
        self.restored: dict[str, Entry] = {}
        self.later: dict[str, Entry] = {}
        self.without_version: list[str] = []
        self.states = states
        for entry_id, chain in states.items():
            self._place(entry_id, chain)
        self.after = {**present, **self.restored}

    def _place(self, entry_id: str, chain: Sequence[Entry]) -> None:
        before = [state for state in chain if state.changed_by != self.undone]
        if chain[-1].changed_by == self.undone:
            if before:
                self.restored[entry_id] = before[-1]
            else:
                self.without_version.append(entry_id)
        elif len(before) < len(chain):
            self.later[entry_id] = chain[-1]

    def corrected(self) -> dict[str, Entry]:
        """The entries that are not restored but whose absorbed sources no longer are the same."""
        gave = self._handed_on([self.present[i] for i in self.restored], self.present)
        kept = self._kept(gave)
        back = self._handed_on(self.restored.values(), self.after)
        found = {}
        for entry_id in (gave.keys() | back.keys()) - self.restored.keys():
            entry = self.present[entry_id]
            gone = gave[entry_id] - kept[entry_id]
            again = [s for s in self._taken_out(entry_id) if s in back[entry_id]]
            absorbed = tuple(dict.fromkeys([*(s for s in entry.absorbed if s not in gone), *again]))
            if absorbed != entry.absorbed:
                found[entry_id] = replace(entry, absorbed=absorbed)
        return found

    def _handed_on(
        self, givers: Iterable[Entry], rows: Mapping[str, Entry]
    ) -> defaultdict[str, set[Source]]:
        """What tombstones may have given to each entry that is not restored, directly or through
        others."""
        known: dict[str, Entry | None] = {}
        first: defaultdict[str, set[Source]] = defaultdict(set)
        for giver in givers:
            if (heir := self._first_left(giver, rows, known)) is not None:
                first[heir.id].update(giver.sources, giver.absorbed)
        gave: defaultdict[str, set[Source]] = defaultdict(set)
        for heir_id, sources in first.items():
            for heir in (rows[heir_id], *_heirs(rows[heir_id], rows)):
                if heir.id not in self.restored:
                    gave[heir.id] |= sources
        return gave

    def _first_left(
        self, entry: Entry, rows: Mapping[str, Entry], known: dict[str, Entry | None]
    ) -> Entry | None:
        """The first of an entry's heirs that is not restored. Chains may be long: what is found is
        noted in `known` for all that lie on the way."""
        found, way = None, [entry.id]
        for heir in _heirs(entry, rows):
            if heir.id in known or heir.id not in self.restored:
                found = known.get(heir.id, heir)
                break
            way.append(heir.id)
        known.update(dict.fromkeys(way, found))
        return found

    def _kept(self, gave: Mapping[str, set[Source]]) -> defaultdict[str, set[Source]]:
        """What each entry has from those that are tombstones still."""
        asked = set().union(*gave.values())
        kept: defaultdict[str, set[Source]] = defaultdict(set)
        for entry in self.after.values():
            if not asked.isdisjoint(entry.sources):
                for heir in _heirs(entry, self.after):
                    kept[heir.id].update(entry.sources)
        return kept

    def _taken_out(self, entry_id: str) -> list[Source]:
        """The sources that the undone run took out of an entry that changed again since."""
        steps = pairwise(self.states.get(entry_id, ()))
        return [
            source
            for before, after in steps
            if after.changed_by == self.undone
            for source in before.absorbed
            if source not in after.absorbed
        ]


def _heirs(entry: Entry, rows: Mapping[str, Entry]) -> Iterator[Entry]:
    """Its successor, that one's successor, and so on."""
    seen = {entry.id}
    while (heir := rows.get(entry.superseded_by)) is not None and heir.id not in seen:
        seen.add(heir.id)
        yield heir
        entry = heir
