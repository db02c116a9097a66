"""Whose messages are to be extracted next. A note of what is in the inboxes, in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace

from lightmem_core.online.inbox import Waiting


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits of a user: `messages` with `tokens`, the oldest since `since`. Where an extraction
    failed it is tried again at `retry_at`; one that was cut off, or need not infer, is `urgent`."""

    messages: int = 0
    tokens: int = 0
    since: int = 0
    retry_at: int = 0
    urgent: bool = False
    reason: str = ""

    def with_row(self, row: Waiting) -> Backlog:
        return Backlog(
            self.messages + 1,
            self.tokens + row.tokens,
            min(self.since, row.accepted_at) if self.messages else row.accepted_at,
            max(self.retry_at, row.retry_at),
            self.urgent or not row.infer or bool(row.batch),
            row.reason or self.reason,
        )


class Backlogs:
    """Users are due once their compressed messages fill a buffer, as far as can be told before
    these are compressed, or the oldest has waited for `after_ms`."""

    def __init__(self, buffer_tokens: int, after_ms: float):
        self.buffer_tokens = buffer_tokens
        self.after_ms = after_ms
        self._before = self._after = 1  # tokens that were compressed so far, and what was left
        self._users: dict[str, Backlog] = {}
        self._lock = threading.Lock()

    def add(self, rows: Iterable[Waiting]) -> None:
        with self._lock:
            for row in rows:
                self._users[row.user_id] = self._users.get(row.user_id, Backlog()).with_row(row)

    def set(self, user_ids: Iterable[str], rows: Iterable[Waiting]) -> None:
        """Note anew what waits of some users."""
        with self._lock:
            for user_id in user_ids:
                self._users.pop(user_id, None)
        self.add(rows)

    def pause(self, user_ids: Iterable[str], until: int) -> None:
        with self._lock:
            for user_id in user_ids:
                if user_id in self._users:
                    self._users[user_id] = replace(self._users[user_id], retry_at=until)

    def compressed(self, before: int, after: int) -> None:
        """Learn from an extraction what compression leaves."""
        with self._lock:
            self._before, self._after = self._before + before, self._after + after

    def due(self, now: int, limit: int) -> list[str]:
        """Some users, those who have waited longest first."""
        with self._lock:
            ready = [(b.since, user) for user, b in self._users.items() if self._is_due(b, now)]
        return [user for _, user in sorted(ready)[:limit]]

    def _is_due(self, backlog: Backlog, now: int) -> bool:
        if backlog.retry_at > now:
            return False
        full = backlog.tokens * self._after / self._before >= self.buffer_tokens
        return backlog.urgent or full or now - backlog.since >= self.after_ms

    def all(self) -> dict[str, Backlog]:
        with self._lock:
            return dict(self._users)
