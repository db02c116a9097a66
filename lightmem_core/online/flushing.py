"""The extraction of what waits, each step of which can be the last one of a process.

1. The messages of a user that are extracted together are marked, so that they stay together.
2. They go through the stages; replies of a language model are kept.
3. Those whose extraction failed are set free again, with the reason.
4. The entries of the others are stored in one commit, then the messages themselves.
5. They leave the inbox.

Whoever finds marked messages goes on with them: if one of their entries is there all are, and only
steps 4 and 5 are left of it. So nothing is lost and nothing is stored twice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from lightmem_core.errors import BudgetError, ConfigError, LLMUnavailableError, StoreError
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.tables import now_ms
from lightmem_core.online.inbox import Inbox, Waiting
from lightmem_core.online.shared import Shared
from lightmem_core.online.stages import history_of
from lightmem_core.schema import to_table
from lightmem_core.types import Extracted, History, Message, stable_id

FIRST_PAUSE_MS = 30_000
LONGEST_PAUSE_MS = 3_600_000
REASON_LIMIT = 300
STOPS = (LLMUnavailableError, BudgetError, ConfigError, StoreError)  # no message is at fault

log = logging.getLogger(__name__)


@dataclass
class Batch:
    """Messages of a user that are extracted together, and what came of them. `stored` are those
    that have entries already."""

    user_id: str
    rows: list[Waiting]
    stored: frozenset[str] = frozenset()
    found: list[Extracted] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def histories(self, infer: bool) -> list[History]:
        return history_of([row.message for row in self.rows if row.infer == infer])

    def take(self, found: Sequence[Extracted]) -> None:
        """Keep what was extracted; messages that failed are left out, with the reason."""
        for row in found:
            bad = {m.id: m.reason or "failed" for m in row.messages if m.state == "quarantined"}
            self.failed |= bad
            kept = tuple(m for m in row.messages if m.id not in bad)
            self.found.append(replace(row, messages=kept))

    @property
    def entries(self) -> int:
        return sum(len(row.entries) for row in self.found)


class Flushing:
    def __init__(self, shared: Shared):
        self.shared = shared

    def __call__(self, user_ids: Sequence[str]) -> int:
        """Extract what waits of users; return how many entries were written. Raise an error of
        STOPS where nothing can be done now: all of it waits on."""
        with self.shared.users.held(user_ids):
            batches = [b for part in self._by_shard(user_ids) for b in self._begun(*part)]
            self._extract(batches)
            for number, users in self._by_shard(user_ids):
                self._store(number, users, [b for b in batches if b.user_id in set(users)])
            self.shared.paid(self.shared.replies.take(user_ids))
        return sum(batch.entries for batch in batches)

    def _by_shard(self, user_ids: Sequence[str]) -> list[tuple[int, list[str]]]:
        return sorted(self.shared.store.by_shard(user_ids).items())

    def _begun(self, number: int, users: list[str]) -> list[Batch]:
        """A batch of each user: the one that was begun before, or else all that waits."""
        shard, inbox = self.shared.store.shards[number], self.shared.inboxes[number]
        with self.shared.writing(inbox):
            rows = inbox.rows(users)
            known = shard.known(users)
            inbox.remove(row.id for row in rows if row.id in known)
            rows = [row for row in rows if row.id not in known]
            cut_off = {row.user_id for row in rows if row.batch}
            new = [row.id for row in rows if row.user_id not in cut_off]
            inbox.mark(new, batch=stable_id(self.shared.run_id, now_ms()))
        held = [row for row in rows if row.batch or row.user_id not in cut_off]
        batches = [Batch(user, [row for row in held if row.user_id == user]) for user in users]
        for batch in batches:
            if batch.user_id in cut_off:
                batch.stored = _with_entries(shard, batch.rows)
        return batches

    def _extract(self, batches: Sequence[Batch]) -> None:
        """All together, so that the models see full batches; where that fails, one by one."""
        try:
            for infer in (True, False):
                self._through(batches, infer)
        except STOPS:
            raise
        except Exception as error:
            if len(batches) == 1:
                log.exception("the extraction of a user's messages failed")
                reason = f"{type(error).__name__}: {error}"[:REASON_LIMIT]
                batches[0].failed = {row.id: reason for row in batches[0].rows}
                batches[0].found = []
                return
            for batch in batches:
                batch.found, batch.failed = [], {}
                self._extract([batch])

    def _through(self, batches: Sequence[Batch], infer: bool) -> None:
        fresh = [(b, h) for b in batches if not b.stored for h in b.histories(infer)]
        found = self.shared.stages.extracted([h for _, h in fresh], infer) if fresh else []
        for batch, _ in fresh:
            batch.take([row for row in found if row.user_id == batch.user_id])
        for batch in batches:
            if batch.stored:
                histories = batch.histories(infer)
                batch.take(self.shared.stages.settled(histories, infer, batch.stored))

    def _store(self, number: int, users: Sequence[str], batches: Sequence[Batch]) -> None:
        shard, inbox = self.shared.store.shards[number], self.shared.inboxes[number]
        found = [row for batch in batches for row in batch.found]
        with self.shared.writing(inbox):
            for batch in batches:
                self._set_free(inbox, batch)
        if any(row.messages for row in found):
            with self.shared.writing(shard):
                shard.insert(to_table(found, Extracted), self.shared.run_id)
        with self.shared.writing(inbox):
            inbox.remove(m.id for row in found for m in row.messages)
            self.shared.backlogs.set(users, inbox.rows(users))
        self._count(found)

    def _set_free(self, inbox: Inbox, batch: Batch) -> None:
        """Messages that failed wait for longer each time."""
        by_reason: dict[tuple[str, int], list[str]] = {}
        for row in batch.rows:
            if row.id in batch.failed:
                key = (batch.failed[row.id], row.attempts + 1)
                by_reason.setdefault(key, []).append(row.id)
        for (reason, attempts), ids in by_reason.items():
            pause = min(FIRST_PAUSE_MS * 2 ** (attempts - 1), LONGEST_PAUSE_MS)
            values = {"batch": "", "reason": reason, "attempts": attempts}
            inbox.mark(ids, **values, retry_at=now_ms() + pause)

    def _count(self, found: Sequence[Extracted]) -> None:
        messages = list(_messages(found))
        before = sum(m.content_tokens for m in messages)
        after = sum(m.compressed_tokens for m in messages)
        self.shared.backlogs.compressed(before, after)
        entries = sum(len(row.entries) for row in found)
        self.shared.count(extracted=len(messages), entries=entries)


def _messages(found: Iterable[Extracted]) -> Iterator[Message]:
    return (message for row in found for message in row.messages)


def _with_entries(shard: Shard, rows: Sequence[Waiting]) -> frozenset[str]:
    """Which of a user's messages have entries, though they wait."""
    entries = shard.entries_of([rows[0].user_id], tombstones=True)
    sources = {source.message_id for entry in entries for source in entry.sources}
    return frozenset(row.id for row in rows if row.id in sources)
