"""What people look at: a user's memories in time, where one came from, and what runs changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from typing import Literal

from lightmem_core.long_term.neighbours import neighbours
from lightmem_core.long_term.provenance import Provenance
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.versions import EntryHistory, states_of
from lightmem_core.types import Entry, Message

Outcome = Literal["merged", "superseded", "updated", "deleted", "restored"]


@dataclass(frozen=True, slots=True)
class Point:
    """A memory in time; `gone` if another one took its place, or it was deleted."""

    id: str
    said_at: int
    topic: str
    gone: bool


@dataclass(frozen=True, slots=True)
class TimeLine:
    """All memories of a user as points, oldest first, and a page of those that were asked for,
    newest first. `older`: the page is not the last one."""

    points: list[Point]
    page: list[Entry]
    older: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """Which page of a time line: behind the entry `before`, of one topic or of all."""

    limit: int = 100
    before: str = ""
    topic: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What a run did to a memory, which was `before` and became `after`. `successor` took its
    place; `similarity` is the cosine of the two."""

    outcome: Outcome
    before: Entry
    after: Entry
    successor: Entry | None = None
    similarity: float | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """The newest changes of a user's memories, and how many there are by the run that made them,
    newest first."""

    newest: list[Change]
    by_run: dict[str, int]


@dataclass(frozen=True)
class Story:
    """All about a memory. `around` are its messages with those before and after, in order."""

    provenance: Provenance
    history: EntryHistory
    around: tuple[Message, ...]

    @cached_property
    def sources(self) -> set[str]:
        """The ids of the messages that it came from."""
        return self.provenance.entry.message_ids


def time_line(entries: Sequence[Entry], asked: Asked, start: int = 0) -> TimeLine:
    """Of all that a user has, in order; its page begins at the place `start` of the newest. A
    topic without entries gives an empty page."""
    points = [Point(e.id, e.said_at, e.topic, not e.active) for e in entries]
    older = (entries[i] for i in range(len(entries) - 1 - start, -1, -1))
    wanted = (entry for entry in older if asked.topic in (None, entry.topic))
    page = list(islice(wanted, asked.limit + 1))
    return TimeLine(points, page[: asked.limit], len(page) > asked.limit)


def changes(shard: Shard, entries: Sequence[Entry], limit: int, run_id: str = "") -> Changes:
    """What happened to a user's entries after they were written; of one run, or of all. That an
    entry took in another one's sources is told with what became of the other."""
    present = {entry.id: entry for entry in entries}
    changed = [entry for entry in entries if entry.gen > 0]
    chains = states_of(shard, changed).values() if changed else ()
    found = [
        change
        for chain in chains
        for old, new in pairwise(chain)
        for change in _change(old, new, present)
    ]
    found.sort(key=lambda change: (-change.after.changed_at, change.after.order))
    by_run = dict(Counter(change.after.changed_by for change in found))
    wanted = [change for change in found if run_id in ("", change.after.changed_by)]
    return Changes(wanted[:limit], by_run)


def story(
    shard: Shard, known: Provenance, history: EntryHistory, reach: int, waiting: Sequence[Message]
) -> Story:
    """With the messages at most `reach` places from one that it came from."""
    entry = known.entry
    placed = replace(entry, sources=(*entry.sources, *entry.absorbed))
    (around,) = neighbours(shard, [placed], reach, waiting)
    return Story(known, history, around)


def _change(old: Entry, new: Entry, present: dict[str, Entry]) -> Iterator[Change]:
    outcome = _outcome(old, new, present)
    if outcome is None:
        return
    successor = present.get(new.superseded_by)
    near = None
    if successor and successor.vector is not None and old.vector is not None:
        near = float(old.vector @ successor.vector)
    yield Change(outcome, old, new, successor, near)


def _outcome(old: Entry, new: Entry, present: dict[str, Entry]) -> Outcome | None:
    """None where an entry only took in the sources of another one."""
    if not new.active:
        if new.superseded_by == old.superseded_by:
            return None
        if new.deleted:
            return "deleted"
        heir = present.get(new.superseded_by)
        merged = heir is not None and {*new.sources} <= {*heir.sources, *heir.absorbed}
        return "merged" if merged else "superseded"
    if not old.active:
        return "restored"
    return "updated" if (old.text, old.metadata) != (new.text, new.metadata) else None
