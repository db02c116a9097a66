"""The extraction of what waits, each step of which can be the last one of a process.

1. The messages of a user that are extracted together are marked, so that they stay together. Those
   that failed before go together, apart from the others.
2. They go through the stages; replies of a language model are kept. What fails is tried again in
   halves, so that a message that cannot be extracted keeps no others waiting.
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

from lightmem_core.errors import STOPS, StoreError
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.tables import now_ms
from lightmem_core.online.inbox import Inbox, Waiting
from lightmem_core.online.shared import Shared
from lightmem_core.online.stages import history_of
from lightmem_core.schema import to_table
from lightmem_core.types import Extracted, History, Message, stable_id

FIRST_PAUSE_MS = 30_000
LONGEST_PAUSE_MS = 3_600_000
MOST_PARTS = 8  # that are tried at once of what failed: where all fails there are no more calls
REASON_LIMIT = 300

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

    def take(self, found: Iterable[Extracted]) -> None:
        """Keep what was extracted; messages that failed are left out, with the reason."""
        for row in found:
            bad = {m.id: m.reason or "failed" for m in row.messages if m.state == "quarantined"}
            self.failed |= bad
            kept = tuple(m for m in row.messages if m.id not in bad)
            self.found.append(replace(row, messages=kept))

    def halves(self) -> list[Batch]:
        """What failed, in two parts that stand for themselves; none where it is one message."""
        bad = sorted((row for row in self.rows if row.id in self.failed), key=_place)
        middle = len(bad) // 2
        parts = (bad[:middle], bad[middle:]) if middle else ()
        return [Batch(self.user_id, part) for part in parts]

    def settle(self, part: Batch) -> None:
        """Take over what became of a part of what failed."""
        for row in part.rows:
            self.failed.pop(row.id, None)
        self.failed |= part.failed
        self.found += part.found

    @property
    def entries(self) -> int:
        return sum(len(row.entries) for row in self.found)


class Flushing:
    def __init__(self, shared: Shared):
        self.shared = shared

    def all_of(self, user_id: str) -> int:
        """Extract all that waits of a user, also what failed before and is not due."""
        entries = self([user_id], every=True)
        rows = self.shared.inbox_for(user_id).rows([user_id])
        if any(row.retry_at <= now_ms() for row in rows):  # what stood behind a batch cut off
            entries += self([user_id], every=True)
        return entries

    def __call__(self, user_ids: Sequence[str], every: bool = False) -> int:
        """Extract what waits of users, also what is to be tried later if `every`; return how many
        entries were written. Raise an error of one of STOPS or StoreError where nothing can be
        done now: all of it waits on."""
        with self.shared.users.held(user_ids):
            due = None if every else now_ms()
            parts = self._by_shard(user_ids)
            batches = [b for number, users in parts for b in self._begun(number, users, due)]
            self._extract(batches)
            for number, users in parts:
                self._store(number, users, [b for b in batches if b.user_id in set(users)])
            self.shared.paid(self.shared.replies.take(user_ids))
        return sum(batch.entries for batch in batches)

    def _by_shard(self, user_ids: Sequence[str]) -> list[tuple[int, list[str]]]:
        return sorted(self.shared.store.by_shard(user_ids).items())

    def _begun(self, number: int, users: list[str], due: int | None) -> list[Batch]:
        """The batches of each user: those that were begun before, or else what waits, or is due."""
        shard, inbox = self.shared.store.shards[number], self.shared.inboxes[number]
        with self.shared.writing(inbox):
            rows = inbox.rows(users)
            known = shard.known(users) if rows else {}
            inbox.remove(row.id for row in rows if row.id in known)
            rows = [row for row in rows if row.id not in known]
            begun = [row for row in rows if row.batch]
            cut_off = {row.user_id for row in begun}
            fresh = [row for row in rows if row.user_id not in cut_off]
            groups = self._grouped(row for row in fresh if due is None or row.retry_at <= due)
            for name, part in groups.items():
                inbox.mark([row.id for row in part], batch=name)
        new = [batch for part in groups.values() for batch in _batches(part)]
        going_on = _batches(begun)
        for batch in going_on:
            batch.stored = _with_entries(shard, batch.rows)
        return [*new, *going_on]

    def _grouped(self, rows: Iterable[Waiting]) -> dict[str, list[Waiting]]:
        """Under a name for each group: what is tried the first time, and what failed before."""
        names = [stable_id(self.shared.run_id, now_ms(), again) for again in (False, True)]
        groups: dict[str, list[Waiting]] = {}
        for row in rows:
            groups.setdefault(names[row.attempts > 0], []).append(row)
        return groups

    def _extract(self, batches: Sequence[Batch]) -> None:
        """All together, so that the models see full batches; what fails of each in halves."""
        self._tried(batches)
        for batch in batches:
            parts = batch.halves()
            while parts and len(parts) <= MOST_PARTS:
                self._tried(parts)
                for part in parts:
                    batch.settle(part)
                parts = [half for part in parts for half in part.halves()]

    def _tried(self, batches: Sequence[Batch]) -> None:
        """All together; where that fails, one by one."""
        try:
            for infer in (True, False):
                self._through(batches, infer)
        except (*STOPS, StoreError):  # no message is at fault
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
                self._tried([batch])

    def _through(self, batches: Sequence[Batch], infer: bool) -> None:
        fresh = [(b, h) for b in batches if not b.stored for h in b.histories(infer)]
        found = self.shared.stages.extracted([h for _, h in fresh], infer) if fresh else []
        for batch in {id(batch): batch for batch, _ in fresh}.values():
            ids = {row.id for row in batch.rows}
            batch.take(row for row in found if any(m.id in ids for m in row.messages))
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


def _place(row: Waiting) -> tuple[str, int]:
    return row.session_id, row.position


def _batches(rows: Iterable[Waiting]) -> list[Batch]:
    """One for each user and mark."""
    groups: dict[tuple[str, str], list[Waiting]] = {}
    for row in rows:
        groups.setdefault((row.user_id, row.batch), []).append(row)
    return [Batch(user, part) for (user, _), part in groups.items()]


def _with_entries(shard: Shard, rows: Sequence[Waiting]) -> frozenset[str]:
    """Which of a user's messages have entries, though they wait."""
    entries = shard.entries_of([rows[0].user_id], tombstones=True)
    sources = {source.message_id for entry in entries for source in entry.sources}
    return frozenset(row.id for row in rows if row.id in sources)
