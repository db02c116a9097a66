"""The sleep phase of one user, while the server runs. It is a run like those of the batch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from lightmem_core import factory
from lightmem_core.fingerprint import sleep_fingerprint
from lightmem_core.llm.usage import Usage
from lightmem_core.long_term.apply import Applied, Phase
from lightmem_core.long_term.carrying_out import Judge, carry_out
from lightmem_core.long_term.consolidate import Consolidation
from lightmem_core.long_term.lease import SLEEPING, Leases
from lightmem_core.long_term.news import MARGIN_MS, covered_before, touched
from lightmem_core.long_term.objects import filesystem
from lightmem_core.long_term.runs import Run, recorded
from lightmem_core.long_term.tables import now_ms
from lightmem_core.online.shared import Shared
from lightmem_core.schema import to_table
from lightmem_core.types import Decision, Entry, Extracted, UserEntries


class Sleeping:
    def __init__(self, shared: Shared):
        self.shared = shared

    @cached_property
    def consolidation(self) -> Consolidation:
        return factory.consolidation(self.shared.config.memory, self.shared.replies)

    def __call__(self, user_id: str) -> dict[str, int]:
        """Consolidate what is new of a user; return how many decisions were applied, by action.
        Raise StoreError while another process changes entries."""
        shared = self.shared
        asked = sleep_fingerprint(shared.store, shared.config.memory)
        request = {"user_id": user_id, "every": False, "dry_run": False, "config": asked}
        with (
            shared.sleeping,
            Leases(shared.store.database).held(SLEEPING, "a sleep") as hold,
            recorded(shared.new_run("sleep", request), shared.write_run, hold.confirm) as state,
        ):
            report = state.report = self._slept(state.finished, user_id)
        shared.count(slept=1)
        names = {"merged": "merge", "superseded": "supersede", "updated": "update"}
        return {action: report[name] for name, action in (names | {"deleted": "delete"}).items()}

    def _slept(self, run: Run, user_id: str) -> dict[str, Any]:
        began = time.perf_counter()
        entries = self.shared.store.shard_for(user_id).entries_of([user_id])
        new = self._new(entries, run)
        (decisions,) = self.consolidation([UserEntries(user_id, tuple(entries))], new)
        self._save(run, user_id, decisions)
        applied = self._applied(run, user_id, decisions)
        usage = self.shared.replies.take([user_id], of_sleep=True)
        self.shared.paid(usage)
        visited = int(new is None or bool(new))
        report = _report(decisions, applied, usage)
        return report | {
            "users": 1,
            "entries": len(entries),
            "visited": visited,
            "seconds": round(time.perf_counter() - began, 3),
            "decisions": f"{self.shared.config.memory.store.uri}/_runs/{run.id}/decisions",
        }

    def _new(self, entries: Sequence[Entry], run: Run) -> set[str] | None:
        """The entries that came or changed since a sleep that judged this user; None: all."""
        covered = covered_before(self.shared.store, run)
        at = covered.users.get(run.request["user_id"], covered.at)
        return {e.id for e in entries if touched(e) >= at - MARGIN_MS} if at else None

    def _save(self, run: Run, user_id: str, decisions: Sequence[Decision]) -> None:
        """Before anything is applied, where the batch keeps them."""
        if not decisions:
            return
        place = self.shared.config.memory.store
        system, root = filesystem(place.uri, place.storage_options)
        folder = f"{root}/_runs/{run.id}/decisions"
        name = f"{self.shared.store.shard_number(user_id):04}-000000.parquet"
        with self.shared.writing():
            system.create_dir(folder, recursive=True)
            pq.write_table(to_table(decisions, Decision), f"{folder}/{name}", filesystem=system)

    def _applied(self, run: Run, user_id: str, decisions: Sequence[Decision]) -> Applied:
        shard = self.shared.store.shard_for(user_id)
        vectors = self._vectors(user_id, decisions)

        def judged(judge: Judge) -> list[Applied]:
            entries = shard.entries_of([user_id], tombstones=True)
            return [judge(entries, decisions, Phase(run.id, now_ms(), vectors))]

        (applied,) = carry_out(shard, judged, partial(self.shared.writing, shard))
        return applied

    def _vectors(self, user_id: str, decisions: Sequence[Decision]) -> Mapping[str, np.ndarray]:
        """Of the new texts."""
        texts = {d.entry_id: d.text for d in decisions if d.action == "update"}
        if not texts:
            return {}
        entries = self.shared.store.shard_for(user_id).entries_of([user_id])
        updated = tuple(replace(e, text=texts[e.id]) for e in entries if e.id in texts)
        embedded = self.shared.stages.embedded(Extracted(user_id, (), updated))
        return {e.id: e.vector for e in embedded.entries if e.vector is not None}


def _report(decisions: Sequence[Decision], applied: Applied, usage: Usage) -> dict[str, Any]:
    """As a sleep of the batch reports."""
    decided: dict[str, Counter[str]] = {}
    for decision in decisions:
        decided.setdefault(decision.action, Counter())[decision.reason] += 1
    undecided = decided.pop("keep", Counter())
    held = applied.held
    return {
        "decided": {action: dict(reasons) for action, reasons in sorted(decided.items())},
        "merged": held["merge"],
        "superseded": held["supersede"],
        "updated": held["update"],
        "deleted": held["delete"],
        "applied": True,
        "dropped": dict(applied.dropped),
        "undecided": dict(undecided),
        "llm": usage.as_dict(),
        "replies": {},
    }
