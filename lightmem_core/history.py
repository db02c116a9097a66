"""From a user's messages, in whatever order they were read, to a history."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby

from lightmem_core.types import History, Message, stable_id

UNPLACED = -1  # the position of a message whose source names none


def ordered_history(messages: Iterable[Message]) -> History:
    """Sessions by their first time, messages by their position; each message once, with its id.

    Positions that the source does not name are counted by time within the session. They order
    only: the id of such a message comes from its speaker, time and text, so that it stays the same
    when another part of its session is read, and a repeat of all three is a duplicate.
    """
    read = list(messages)
    by_session = sorted(read, key=lambda m: (m.session_id, m.said_at, m.position, _place(m.source)))
    sessions = [_placed(list(group)) for _, group in groupby(by_session, lambda m: m.session_id)]
    sessions.sort(key=lambda s: (min(m.said_at for m in s), s[0].session_id))
    kept = tuple(message for session in sessions for message in session)
    return History(read[0].user_id, kept, duplicates=len(read) - len(kept))


def stored_history(messages: Iterable[Message]) -> History:
    """The same order for messages of a user that were in a history before: they keep their ids."""
    read = sorted(messages, key=lambda m: (m.session_id, m.position, m.said_at, m.id))
    sessions = [list(group) for _, group in groupby(read, lambda m: m.session_id)]
    sessions.sort(key=lambda s: (min(m.said_at for m in s), s[0].session_id))
    return History(read[0].user_id, tuple(m for session in sessions for m in session))


def _placed(session: list[Message]) -> list[Message]:
    """The messages of a session, in order, with position and id; repeats are dropped."""
    found = {m.id: m for m in map(identified, session)}
    placed = [m for m in found.values() if m.position != UNPLACED]
    unplaced = (m for m in found.values() if m.position == UNPLACED)
    following = max((m.position for m in placed), default=UNPLACED) + 1
    unique = {
        m.id: m
        for m in (*placed, *(replace(m, position=p) for p, m in enumerate(unplaced, following)))
    }
    return sorted(unique.values(), key=lambda m: (m.position, m.said_at, m.id))


def _place(source: str) -> tuple[str, int, str]:
    """Sorts "file:9" before "file:10"."""
    path, _, line = source.rpartition(":")
    return path, len(line), line


def identified(message: Message) -> Message:
    """The message with its id."""
    place: tuple[object, ...] = (message.position,)
    if message.position == UNPLACED:
        place = (message.said_at, message.role, message.name)
    parts = (message.user_id, message.session_id, *place, message.content)
    return replace(message, id=stable_id("message", *parts))
