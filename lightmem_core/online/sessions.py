"""What a message is: new, or one that its session has already.

- A message with a time is (session, time, role, name, content).
- One with a position is (session, position, content), as in the batch.
- With neither, the k-th of the same role, name and content in a request is the k-th of them that
  the session has. So a request can be sent again, and each turn can bring the whole conversation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightmem_core.formats import fields
from lightmem_core.history import UNPLACED, identified
from lightmem_core.online.service import Accepted, Incoming
from lightmem_core.types import Message

SOURCE = "online"
FIRST_MS, LAST_MS = -62_135_596_800_000, 253_402_300_799_999  # the years 1 to 9999
CHAINED_MS = 60_000  # times that were given out lie ahead of the clock by less


@dataclass(frozen=True, slots=True)
class Posted:
    """A request to add messages, checked and cleaned as the batch cleans rows. A message of
    `NO_TIME` was said when it is accepted."""

    user_id: str
    session_id: str
    messages: tuple[Message, ...]
    infer: tuple[bool, ...]


NO_TIME = FIRST_MS - 1


def posted(user_id: str, session_id: str, messages: Sequence[Incoming]) -> Posted:
    """Raise ValueError for what can be no message."""
    ids = {"user_id": user_id, "session_id": session_id}
    try:
        row = {name: fields.identifier(ids, name) for name in ids}
        cleaned = tuple(_message(row, message) for message in messages)
    except fields.BadField as error:
        raise ValueError(error.detail) from None
    return Posted(row["user_id"], row["session_id"], cleaned, tuple(m.infer for m in messages))


def _message(ids: dict[str, str], given: Incoming) -> Message:
    names = ("role", "content", "name", "position", "agent_id")
    row = {name: getattr(given, name) for name in names}
    if given.said_at is not None and not FIRST_MS <= given.said_at <= LAST_MS:
        raise ValueError(f"said_at is {given.said_at} ms, not within the years 1 to 9999")
    return Message(
        **ids,
        position=fields.position(row),
        role=fields.role(row),
        content=fields.content(row),
        said_at=NO_TIME if given.said_at is None else given.said_at,
        name=fields.optional_text(row, "name"),
        agent_id=fields.identifier(row, "agent_id") if given.agent_id else "",
        metadata=fields.metadata(given.metadata),
        source=SOURCE,
    )


class Session:
    """The messages that a session has, and those that it takes in. A message of the store whose
    extraction failed is taken in again, as it was."""

    def __init__(self, stored: Sequence[Message], waiting: Sequence[Message]):
        failed = {m.id for m in stored if m.state == "quarantined"}
        self.failed = failed - {m.id for m in waiting}
        self.by_id: dict[str, Message] = {}
        self.by_time: dict[tuple[int, str, str, str], Message] = {}
        self.alike: defaultdict[tuple[str, str, str], list[Message]] = defaultdict(list)
        self.following, self.latest = 0, FIRST_MS
        present = {m.id: m for m in (*stored, *waiting)}
        for message in sorted(present.values(), key=lambda m: (m.position, m.said_at, m.id)):
            self._note(message)

    def take(self, messages: Sequence[Message], now: int) -> list[tuple[Message, Accepted]]:
        """For each message of a request the one that it is, and what became of it."""
        counted: Counter[tuple[str, str, str]] = Counter()
        taken = []
        for message in messages:
            key = _words(message)
            known = self._known(message, counted[key])
            counted[key] += 1
            held = known or self._new(message, now)
            accepted = known is None or held.id in self.failed
            self.failed.discard(held.id)
            state = "accepted" if accepted else "duplicate"
            taken.append((held, Accepted(held.id, state, held.position)))
        return taken

    def _known(self, message: Message, before: int) -> Message | None:
        """`before` of the same words came earlier in the request."""
        if message.position != UNPLACED:
            return self.by_id.get(identified(message).id)
        if message.said_at != NO_TIME:
            found = self.by_time.get((message.said_at, *_words(message)))
            return found or self.by_id.get(identified(message).id)
        alike = self.alike[_words(message)]
        return alike[before] if before < len(alike) else None

    def _new(self, message: Message, now: int) -> Message:
        if message.said_at == NO_TIME:
            message = replace(message, said_at=self._next_time(now))
        new = identified(message)
        while new.id in self.by_id:  # of the same words at the same time
            new = identified(replace(new, said_at=new.said_at + 1))
        if new.position == UNPLACED:
            new = replace(new, position=self.following)
        self._note(new)
        return new

    def _next_time(self, now: int) -> int:
        """A time for each message of its own, in their order."""
        return self.latest + 1 if now <= self.latest < now + CHAINED_MS else now

    def _note(self, message: Message) -> None:
        self.by_id[message.id] = message
        self.by_time.setdefault((message.said_at, *_words(message)), message)
        self.alike[_words(message)].append(message)
        self.following = max(self.following, message.position + 1)
        self.latest = max(self.latest, message.said_at)


def _words(message: Message) -> tuple[str, str, str]:
    return message.role, message.name, message.content
