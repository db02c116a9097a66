"""What becomes of the entries of some users when a run is undone, by the rule of undo.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from lightmem_core.types import Entry, Source


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of some users' `entries`, by id: those that are `restored` and those that are
    corrected, with their `present` states; and all states of those that changed `later`."""

    entries: dict[str, Entry]
    present: dict[str, Entry]
    restored: set[str]
    later: list[Sequence[Entry]]
    without_version: int


class UndoPlan:
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

    def change(self) -> Change:
        entries = {**self.restored, **self.corrected()}
        later = [self.states[entry_id] for entry_id in self.later]
        present = {entry_id: self.present[entry_id] for entry_id in entries}
        return Change(entries, present, {*self.restored}, later, len(self.without_version))

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
