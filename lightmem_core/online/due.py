"""Whose messages are to be extracted next. A note of what is in the inboxes, in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from lightmem_core.online.inbox import Waiting


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits of a user: `messages` with `tokens`, the oldest since `since`. What was cut off,
    or need not infer, or is to be tried again, is `urgent`; `reason` is why one failed."""

    messages: int = 0
    tokens: int = 0
    since: int = 0
    urgent: bool = False
    reason: str = ""

    def with_row(self, row: Waiting) -> Backlog:
        return self.joined(
            Backlog(
                1,
                row.tokens,
                row.accepted_at,
                not row.infer or bool(row.batch) or row.attempts > 0,
                row.reason,
            )
        )

    def joined(self, other: Backlog) -> Backlog:
        if not self.messages:
            return other
        return Backlog(
            self.messages + other.messages,
            self.tokens + other.tokens,
            min(self.since, other.since),
            self.urgent or other.urgent,
            other.reason or self.reason,
        )


class Backlogs:
    """Users are due once their compressed messages fill a buffer, as far as can be told before
    these are compressed, or the oldest has waited for `after_ms`. A message that failed keeps no
    other one waiting: it does not count until its own time has come."""

    def __init__(self, buffer_tokens: int, after_ms: float):
        self.buffer_tokens = buffer_tokens
        self.after_ms = after_ms
        self._before = self._after = 1  # tokens that were compressed so far, and what was left
        self._users: dict[str, dict[int, Backlog]] = {}  # by the time from which it counts
        self._messages = 0
        self._lock = threading.Lock()

    @property
    def messages(self) -> int:
        """How many wait of all users."""
        return self._messages

    def add(self, rows: Iterable[Waiting]) -> None:
        with self._lock:
            self._add(rows)

    def _add(self, rows: Iterable[Waiting]) -> None:
        for row in rows:
            parts = self._users.setdefault(row.user_id, {})
            parts[row.retry_at] = parts.get(row.retry_at, Backlog()).with_row(row)
            self._messages += 1

    def set(self, user_ids: Iterable[str], rows: Iterable[Waiting]) -> None:
        """Note anew what waits of some users."""
        with self._lock:
            for user_id in user_ids:
                gone = self._users.pop(user_id, {})
                self._messages -= sum(part.messages for part in gone.values())
            self._add(rows)

    def compressed(self, before: int, after: int) -> None:
        """Learn from an extraction what compression leaves."""
        with self._lock:
            self._before, self._after = self._before + before, self._after + after

    def due(self, now: int, limit: int) -> list[str]:
        """Some users, those who have waited longest first."""
        with self._lock:
            counting = [(_joined(parts, now), user) for user, parts in self._users.items()]
            ready = [(b.since, user) for b, user in counting if self._is_due(b, now)]
        return [user for _, user in sorted(ready)[:limit]]

    def _is_due(self, backlog: Backlog, now: int) -> bool:
        if not backlog.messages:
            return False
        full = backlog.tokens * self._after / self._before >= self.buffer_tokens
        return backlog.urgent or full or now - backlog.since >= self.after_ms

    def all(self) -> dict[str, Backlog]:
        with self._lock:
            return {user: _joined(parts) for user, parts in self._users.items()}


def _joined(parts: dict[int, Backlog], now: int | None = None) -> Backlog:
    """What counts at a time; None: all."""
    found = Backlog()
    for retry_at, part in parts.items():
        if now is None or retry_at <= now:
            found = found.joined(part)
    return found
