"""What entries were before they changed: the history of one, and a user's memories as of a time.

An entry's states follow each other by `gen`. Each held from when it was stored or changed until the
next one. A row of the versions that is not older than the entry itself was left by a commit that
was cut off: it is passed over. So is what a row says of its replacement, for the run that it names
may be one that was cut off: the next state knows better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa

from lightmem_core.long_term.provenance import find_entry
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import of_users, read_batches, twice
from lightmem_core.schema import from_table
from lightmem_core.types import Entry


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """An entry as it was until `replaced_by`, a run, changed it at `replaced_at`."""

    entry: Entry
    replaced_at: int
    replaced_by: str


@dataclass(frozen=True, slots=True)
class EntryHistory:
    """An entry as it is, and what it was before, oldest first."""

    entry: Entry
    versions: list[Version]

    @property
    def states(self) -> list[Entry]:
        return [*(version.entry for version in self.versions), self.entry]

    @property
    def since(self) -> list[int]:
        """When each of the states began to hold."""
        return [held_since(state) for state in self.states]


def history(store: MemoryStore, entry_id: str) -> EntryHistory:
    """Find an entry as `find_entry` does, with all that it was."""
    return history_of(*find_entry(store, entry_id))


def history_of(shard: Shard, entry: Entry) -> EntryHistory:
    """An entry that was just read, with all that it was."""
    states = states_of(shard, [entry])[entry.id]
    versions = [Version(old, new.changed_at, new.changed_by) for old, new in pairwise(states)]
    return EntryHistory(entry, versions)


def entries_as_of(shard: Shard, user_id: str, at: int) -> list[Entry]:
    """A user's entries as they were at a time, tombstones too, in their order."""
    present = shard.entries_of([user_id], tombstones=True)
    chains = states_of(shard, present).values()
    held = ([state for state in chain if held_since(state) <= at] for chain in chains)
    return [states[-1] for states in held if states]


def held_since(state: Entry) -> int:
    """When an entry, or what it was, began to hold."""
    return max(state.stored_at, state.changed_at)


def states_of(shard: Shard, present: Sequence[Entry]) -> dict[str, list[Entry]]:
    """All states of some entries by id, oldest first; the last is the present one that is given.

    The entries must have been read before this is called, and be of a thousand users at most.
    """
    chains: dict[str, list[Entry]] = {entry.id: [] for entry in present}
    users = sorted({e.user_id for e in present})
    for version in twice(lambda: list(_versions(shard, users, set(chains)))):
        chains[version.id].append(version)
    for entry in present:
        older = (version for version in chains[entry.id] if version.gen < entry.gen)
        chains[entry.id] = [*sorted(older, key=lambda version: version.gen), entry]
    return chains


def _versions(shard: Shard, user_ids: Sequence[str], ids: set[str]) -> Iterator[Entry]:
    """What entries were, in any order. A batch at a time is held, not all versions of the users."""
    columns = shard.entries.schema.names
    for batch in read_batches(shard.versions, of_users(user_ids), columns):
        wanted = pa.array([entry_id in ids for entry_id in batch["id"].to_pylist()], pa.bool_())
        yield from from_table(pa.Table.from_batches([batch]).filter(wanted), Entry)
