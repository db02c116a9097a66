"""The report of a run, counted in the store after the last commit: retries cannot skew it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from lightmem_core.config import Prices
from lightmem_core.errors import ReconcileError
from lightmem_core.llm.usage import Usage
from lightmem_core.long_term.store import MemoryStore
from lightmem_pipelines.files import RunFiles
from lightmem_pipelines.monitor import Progress
from lightmem_pipelines.replies import NOTES, reply_counts, usage

COUNTED = ["user_id", "state", "reason", "segment_id", "content_tokens", "compressed_tokens"]


@dataclass
class Messages:
    """What became of the messages: `read` is counted by the readers, the rest in the store."""

    read: int = 0
    stored: int = 0
    no_facts: int = 0
    duplicate: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        return sum(self.quarantined.values())

    def reconcile(self) -> None:
        """Raise ReconcileError unless every message read ended in one state."""
        ended = self.stored + self.no_facts + self.duplicate + self.bad
        if ended != self.read:
            raise ReconcileError(
                f"{self.read} messages were read, but {ended} ended in a state ({self}): run the "
                "same command again; if the numbers still differ this is a defect, please report it"
            )


@dataclass
class BackfillReport:
    messages: Messages
    users: int
    segments: int
    entries: int
    tokens_before: int
    tokens_after: int
    seconds: float
    steps: dict[str, dict[str, float]]
    quarantine: str
    llm: Usage = field(default_factory=Usage)
    replies: dict[str, int] = field(default_factory=dict)
    notes: str = ""

    def as_dict(self, prices: Prices | None = None) -> dict[str, Any]:
        return asdict(self) | {"llm": self.llm.as_dict(prices)}


def backfill_report(
    store: MemoryStore, run_files: RunFiles, duplicates: int, progress: Progress, seconds: float
) -> BackfillReport:
    messages = Messages(duplicate=duplicates)
    quarantined: Counter[str] = Counter()
    for summary in run_files.read_json("read"):
        quarantined.update(summary["rejected"])
        messages.read += summary["messages"] + sum(summary["rejected"].values())
    tally, used = _tally(store, run_files.run_id), usage(run_files)
    messages.stored, messages.no_facts = tally.states["stored"], tally.states["no_facts"]
    messages.quarantined = dict(quarantined + tally.reasons)
    return BackfillReport(
        messages=messages,
        users=tally.users,
        segments=tally.segments,
        entries=sum(s.entries_written(run_files.run_id) for s in store.shards),
        tokens_before=tally.tokens_before,
        tokens_after=tally.tokens_after,
        seconds=round(seconds, 3),
        steps=step_table(progress),
        quarantine=run_files.folder("quarantine"),
        llm=used,
        replies=reply_counts(run_files, used.calls) if used.calls else {},
        notes=run_files.folder(NOTES),
    )


def step_table(progress: Progress) -> dict[str, dict[str, float]]:
    return {
        name: {"rows": rows, "seconds": round(progress.seconds[name], 3)}
        for name, rows in progress.rows.items()
    }


@dataclass
class _Tally:
    states: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    users: int = 0
    segments: int = 0
    tokens_before: int = 0
    tokens_after: int = 0


def _tally(store: MemoryStore, run_id: str) -> _Tally:
    tally = _Tally()
    for shard in store.shards:
        users, segments = set[str](), set[str]()
        for batch in shard.message_batches(run_id, COUNTED):
            columns = batch.to_pydict()
            tally.states.update(columns["state"])
            outcomes = zip(columns["state"], columns["reason"], strict=True)
            tally.reasons.update(r or "unspecified" for s, r in outcomes if s == "quarantined")
            users.update(columns["user_id"])
            segments.update(columns["segment_id"])
            tally.tokens_before += sum(columns["content_tokens"])
            tally.tokens_after += sum(columns["compressed_tokens"])
        # No user and no segment is in two shards.
        tally.users += len(users)
        tally.segments += len(segments)
    return tally
