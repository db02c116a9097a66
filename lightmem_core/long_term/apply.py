"""How the decisions of a sleep phase change the entries as they now are.

The rule, for the decisions of one phase:

- A decision holds only if neither its entry nor its successor was changed since it was decided,
  but by the phase itself. Online changes win; such a decision is dropped as changed meanwhile.
- A tombstone's successor may be a tombstone too: a chain is followed from one to the next. A
  successor is always later in the total order of the entries (equal times are ordered by place),
  so there are no cycles, and two entries never replace each other.
- What is merged hands its sources on, to the last entry of a chain of merges. What is superseded
  or deleted does not: its sources do not say what its successor says.
- An update holds if its successor is kept, updated itself, or merged, and the entry then takes the
  successor's sources too. It is dropped, and the entry kept, if the successor is deleted or
  superseded in the same phase: its text would be drawn from what no longer holds.

So the outcome depends on the set of decisions alone. Applied to its own outcome it changes nothing,
and applied to one that was written in part, it gives the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lightmem_core.types import Action, Decision, Entry

CHANGED_MEANWHILE = "changed meanwhile"
SOURCE_GONE = "drawn from an entry that goes"
OBSOLETE = ("delete", "supersede")


@dataclass(frozen=True, slots=True)
class Phase:
    """The run that changes entries, at the time `at`; `vectors` are of updated texts, by entry."""

    run_id: str
    at: int = 0
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Applied:
    """The entries that change, as they are to be written, `gen` one higher, in their order; how
    many decisions hold, by action; and how many were dropped, by reason."""

    changed: list[Entry]
    held: Counter[Action]
    dropped: Counter[str]


def apply_decisions(
    entries: Sequence[Entry], decisions: Sequence[Decision], phase: Phase
) -> Applied:
    """`entries` are the present rows that the decisions name, of any users, tombstones too."""
    before = {e.id: e for e in entries}
    held, dropped = _standing(before, decisions, phase.run_id)
    held.sort(key=lambda d: (d.user_id, before[d.entry_id].order))
    after = dict(before)
    for decision in held:
        after[decision.entry_id] = _carried_out(decision, before[decision.entry_id], phase)
    for heir, givers in _handed_on(held):
        if heir in after:
            after[heir] = _with_sources(after[heir], [after[g] for g in givers if g in after])
    changed = [
        replace(e, gen=e.gen + 1, changed_by=phase.run_id, changed_at=phase.at)
        for e in after.values()
        if _differ(e, before[e.id])
    ]
    changed.sort(key=lambda e: (e.user_id, e.order))
    return Applied(changed, Counter(d.action for d in held), dropped)


def landed(entries: Sequence[Entry], decisions: Sequence[Decision], phase: Phase) -> Applied:
    """What has come of decisions that are not tried again. Those that would still change their
    entry, or the one that takes its sources, count as changed meanwhile."""
    rows = {e.id: e for e in entries}
    held, dropped = _standing(rows, decisions, phase.run_id)
    due = {e.id for e in apply_decisions(entries, decisions, phase).changed}
    for heir, givers in _handed_on([d for d in held if d.action == "merge"]):
        if heir in due:
            due.update(givers)
    done = [
        d
        for d in held
        if d.entry_id not in due or (d.action in OBSOLETE and _landed(d, rows, phase.run_id))
    ]
    lost = +Counter({CHANGED_MEANWHILE: len(held) - len(done)})
    return Applied([], Counter(d.action for d in done), Counter(dropped) + lost)


def _standing(
    rows: Mapping[str, Entry], decisions: Sequence[Decision], run_id: str
) -> tuple[list[Decision], Counter[str]]:
    """The decisions that hold, and how many do not, by reason. To keep an entry is neither."""
    decisions = [d for d in decisions if d.action != "keep"]
    valid = [d for d in decisions if _landed(d, rows, run_id) or _unchanged(d, rows, run_id)]
    gone = {d.entry_id for d in valid if d.action in OBSOLETE}
    held = [d for d in valid if d.action != "update" or d.successor not in gone]
    dropped = {
        CHANGED_MEANWHILE: len(decisions) - len(valid),
        SOURCE_GONE: len(valid) - len(held),
    }
    return held, +Counter(dropped)


def _landed(decision: Decision, rows: Mapping[str, Entry], run_id: str) -> bool:
    """Whether it was applied before, and the entry not changed since."""
    entry = rows.get(decision.entry_id)
    if entry is None or entry.changed_by != run_id:
        return False
    if decision.action == "update":
        return entry.text == decision.text
    return entry.superseded_by == decision.successor


def _unchanged(decision: Decision, rows: Mapping[str, Entry], run_id: str) -> bool:
    """Whether both entries are those that were judged, or have taken this phase's one change."""
    judged = ((decision.entry_id, decision.gen), (decision.successor, decision.successor_gen))
    return all(
        (entry := rows.get(entry_id)) is not None
        and (entry.gen == gen or (entry.gen == gen + 1 and entry.changed_by == run_id))
        for entry_id, gen in judged
    )


def _carried_out(decision: Decision, entry: Entry, phase: Phase) -> Entry:
    if decision.action != "update":
        return replace(entry, superseded_by=decision.successor)
    if entry.text == decision.text:
        return entry
    writer = decision.writer or entry.writer
    return replace(entry, text=decision.text, writer=writer, vector=phase.vectors[entry.id])


def _handed_on(held: Sequence[Decision]) -> Iterator[tuple[str, list[str]]]:
    """Who takes the sources of whom, in the order in which it is to be done: the last entry of a
    chain of merges takes those of all the others, then updates, the latest first, take theirs."""
    last: dict[str, str] = {}
    givers: dict[str, list[str]] = {}
    merges = [d for d in held if d.action == "merge"]
    for decision in reversed(merges):
        last[decision.entry_id] = last.get(decision.successor, decision.successor)
    for decision in merges:
        givers.setdefault(last[decision.entry_id], []).append(decision.entry_id)
    yield from givers.items()
    for decision in reversed(held):
        if decision.action == "update":
            yield decision.entry_id, [decision.successor]


def _with_sources(heir: Entry, givers: Sequence[Entry]) -> Entry:
    given = (s for giver in givers for s in (*giver.absorbed, *giver.sources))
    own = set(heir.sources)
    absorbed = tuple(s for s in dict.fromkeys((*heir.absorbed, *given)) if s not in own)
    return replace(heir, absorbed=absorbed)


def _differ(entry: Entry, other: Entry) -> bool:
    fields = ("text", "writer", "superseded_by", "absorbed")
    return any(getattr(entry, name) != getattr(other, name) for name in fields)
