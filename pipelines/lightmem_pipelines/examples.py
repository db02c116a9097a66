"""What decisions would change, shown on some of each kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lightmem_core.config import StoreConfig
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.types import Decision, Entry
from lightmem_pipelines.deciding import read_decisions, rows_of
from lightmem_pipelines.files import RunFiles


@dataclass(frozen=True, slots=True)
class Example:
    """A decision and its two entries as they now are."""

    decision: Decision
    entry: Entry
    successor: Entry


def examples_of(config: StoreConfig, run: Run, limit: int) -> list[Example]:
    """The first decisions of each action, at most `limit` of each."""
    store = MemoryStore.open(config)
    found = [e for d in _first(RunFiles.of(config, run.id), limit) if (e := _example(store, d))]
    return sorted(found, key=lambda e: e.decision.action)


def _first(files: RunFiles, limit: int) -> list[Decision]:
    taken: Counter[str] = Counter()
    first: list[Decision] = []
    for name in files.names("decisions") if limit else []:
        actions = set(files.rows_of("decisions", name, ["action"])["action"].to_pylist())
        if all(taken[action] >= limit for action in actions):
            continue
        for decision in read_decisions(files, name):
            if taken[decision.action] < limit:
                taken[decision.action] += 1
                first.append(decision)
    return first


def _example(store: MemoryStore, decision: Decision) -> Example | None:
    """None where one of the entries was erased meanwhile."""
    rows = {e.id: e for e in rows_of(store.shard_for(decision.user_id), [decision])}
    if not rows.keys() >= {decision.entry_id, decision.successor}:
        return None
    return Example(decision, rows[decision.entry_id], rows[decision.successor])
