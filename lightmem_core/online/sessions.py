"""What a message is: new, or one that its session has already.

- A message with a time is (session, time, role, name, content).
- One with a position is (session, position, content), as in the batch.
- One with a key, of a request that may be sent again, is (session, key, role, name, content).
- Of those with none of these, a request may bring some again: what was sent before, the whole
  conversation with each turn, or the end of it. They can be taken only for what was said in the
  last `span` ms: later, the same words are said anew. If all of them are there, the last ones of
  the same role, name and content, or most are, they are taken for those. Else what the request
  begins with and the session ends with is the same if its last message was said in that time, and
  the rest is new: an answer is not lost because it was given before.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightmem_core.errors import RequestError
from lightmem_core.formats import fields
from lightmem_core.history import UNPLACED, identified
from lightmem_core.online.service import Accepted, Incoming
from lightmem_core.types import Message, stable_id

SOURCE = "online"
FIRST_MS, LAST_MS = -62_135_596_800_000, 253_402_300_799_999  # the years 1 to 9999
NO_TIME = FIRST_MS - 1
CHAINED_MS = 60_000  # times that were given out lie ahead of the clock by less

Words = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Posted:
    """A request to add messages, checked and cleaned as the batch cleans rows. A message of
    `NO_TIME` was said when it is accepted."""

    user_id: str
    session_id: str
    messages: tuple[Message, ...]
    infer: tuple[bool, ...]

    @property
    def name(self) -> tuple[str, str]:
        return self.user_id, self.session_id

    @property
    def plain(self) -> int:
        """How many of the messages can be told apart by their words alone."""
        return sum(map(is_plain, self.messages))


def posted(user_id: str, session_id: str, messages: Sequence[Incoming]) -> Posted:
    """Raise RequestError for what can be no message."""
    ids = {"user_id": user_id, "session_id": session_id}
    try:
        user, session = (fields.identifier(ids, name) for name in ids)
        cleaned = tuple(_message(user, session, message) for message in messages)
    except fields.BadField as error:
        raise RequestError(error.detail) from None
    return Posted(user, session, cleaned, tuple(m.infer for m in messages))


def _message(user_id: str, session_id: str, given: Incoming) -> Message:
    names = ("role", "content", "name", "position", "agent_id")
    row = {name: getattr(given, name) for name in names}
    words = given.role, given.name, given.content
    if given.said_at is not None and not FIRST_MS <= given.said_at <= LAST_MS:
        raise RequestError(f"said_at is {given.said_at} ms, not within the years 1 to 9999")
    return Message(
        user_id=user_id,
        session_id=session_id,
        position=fields.position(row),
        role=fields.role(row),
        content=fields.content(row),
        said_at=NO_TIME if given.said_at is None else given.said_at,
        name=fields.optional_text(row, "name"),
        agent_id=fields.identifier(row, "agent_id") if given.agent_id else "",
        metadata=fields.metadata(given.metadata),
        source=f"{SOURCE}:{stable_id(given.key, *words)}" if given.key else SOURCE,
    )


class Session:
    """A part of the messages that a session has, in which all are that `messages` can be taken for,
    and those that it takes in; the next one follows at `following`. A message of the store whose
    extraction failed is taken in again, as it was."""

    def __init__(
        self,
        stored: Sequence[Message],
        waiting: Sequence[Message],
        following: int = 0,
        span: float = float("inf"),
    ):
        failed = {m.id for m in stored if m.state == "quarantined"}
        self.failed = failed - {m.id for m in waiting}
        self.by_id: dict[str, Message] = {}
        self.by_time: dict[tuple[int, str, str, str], Message] = {}
        self.by_key: dict[str, Message] = {}
        self.alike: defaultdict[Words, list[Message]] = defaultdict(list)
        self.sequence: list[Message] = []
        self.following, self.span, self.latest = following, span, FIRST_MS
        present = {m.id: m for m in (*stored, *waiting)}
        for message in sorted(present.values(), key=lambda m: (m.position, m.said_at, m.id)):
            self._note(message)

    def take(self, messages: Sequence[Message], now: int) -> list[tuple[Message, Accepted]]:
        """For each message of a request the one that it is, and what became of it."""
        plain = [_words(m) for m in messages if is_plain(m)]
        recognised = iter(self._recognised(plain, now))
        taken = []
        for message in messages:
            known = next(recognised) if is_plain(message) else self._known(message)
            held = known or self._new(message, now)
            accepted = known is None or held.id in self.failed
            self.failed.discard(held.id)
            state = "accepted" if accepted else "duplicate"
            taken.append((held, Accepted(held.id, state, held.position)))
        return taken

    def _known(self, message: Message) -> Message | None:
        if is_keyed(message):
            return self.by_key.get(message.source)
        found = self.by_id.get(identified(message).id)
        if found or message.position != UNPLACED:
            return found
        return self.by_time.get((message.said_at, *_words(message)))

    def _recognised(self, words: Sequence[Words], now: int) -> list[Message | None]:
        """Which of the session's messages those of a request are that name no time and place."""
        times, counted = Counter(words), Counter[Words]()
        found: list[Message | None] = []
        for said in words:
            alike = [m for m in self.alike[said] if self._is_recent(m, now)][-times[said] :]
            found.append(alike[counted[said]] if counted[said] < len(alike) else None)
            counted[said] += 1
        known = sum(message is not None for message in found)
        if known == len(words):
            return found
        again = self._overlap(words, now)
        if again:
            return [*self.sequence[-again:], *[None] * (len(words) - again)]
        return found if 2 * known > len(words) else [None] * len(words)

    def _is_recent(self, message: Message, now: int) -> bool:
        return message.said_at >= now - self.span

    def _overlap(self, words: Sequence[Words], now: int) -> int:
        """How many messages the session ends with, and the request begins with."""
        if not self.sequence or not self._is_recent(self.sequence[-1], now):
            return 0
        last = [_words(m) for m in self.sequence[-len(words) :]]
        lengths = range(len(last), 0, -1)
        return next((n for n in lengths if list(words[:n]) == last[-n:]), 0)

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
        if message.source.startswith(f"{SOURCE}:"):
            self.by_key.setdefault(message.source, message)
        self.sequence.append(message)
        self.following = max(self.following, message.position + 1)
        self.latest = max(self.latest, message.said_at)


def is_plain(message: Message) -> bool:
    """Whether a posted message can be told apart by its words alone."""
    return _is_unplaced(message) and message.source == SOURCE


def is_keyed(message: Message) -> bool:
    """Whether a posted message can be told apart by the key of its request."""
    return _is_unplaced(message) and message.source != SOURCE


def _is_unplaced(message: Message) -> bool:
    return message.position == UNPLACED and message.said_at == NO_TIME


def _words(message: Message) -> Words:
    return message.role, message.name, message.content
