"""A chat's turns: what the user said last, and what the model replied, each stored once.

Only the latest turn is stored: what a client sends before it was stored when it was said, or never
said here. A turn is known by the conversation up to what the user said, so a client may send all of
it each time, or ask once more. Its messages carry that as metadata, so that it is known after a
restart of the server too.
"""

import asyncio
import json
import logging
from asyncio import Task
from collections import OrderedDict
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from lightmem_core.errors import LightMemError
from lightmem_core.formats.fields import BadField, content
from lightmem_core.long_term.tables import now_ms
from lightmem_core.metadata import parsed
from lightmem_core.online.service import Incoming
from lightmem_core.online.sessions import posted
from lightmem_core.types import Entry, stable_id
from lightmem_serve.backend import Server
from lightmem_serve.block import Message, without_block
from lightmem_serve.errors import refused, told

SPOKEN = ("user", "assistant")
MOST_TIMES = 20_000
MOST_PARTS = 1_000
TURN, REPLY = "turn", "reply"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user `said`, "" for nothing, to which a reply is asked for."""

    owner: str
    session: str
    said: str
    name: str
    key: str
    at: int

    @property
    def message(self) -> Incoming:
        noted = json.dumps({TURN: self.key})
        return Incoming("user", self.said, said_at=self.at, name=self.name, metadata=noted)

    def replied(self, reply: str, at: int) -> Incoming:
        noted = json.dumps({TURN: self.key, REPLY: stable_id(self.key, reply)})
        return Incoming("assistant", reply, said_at=at, metadata=noted)


@dataclass(frozen=True, slots=True)
class Unsaid:
    """A filter: what the conversation itself says is no memory to tell the model of."""

    texts: frozenset[str]

    def matches(self, entry: Entry) -> bool:
        return entry.text not in self.texts


@dataclass(frozen=True, slots=True)
class OfTurn:
    """A filter: what was said in a turn."""

    key: str

    def matches(self, entry: Entry) -> bool:
        return self.key in entry.metadata and parsed(entry.metadata).get(TURN) == self.key


@dataclass(slots=True)
class Turns:
    """The turns of a server's chats, and when the latest of them were said: said again, it is the
    same message."""

    server: Server
    times: OrderedDict[str, int] = field(default_factory=OrderedDict)
    underway: set[Task[bool]] = field(default_factory=set)

    async def begin(self, owner: str, session: str, messages: Sequence[Message]) -> Turn:
        """The turn that a conversation has come to. Raise HTTPException if it cannot be stored."""
        last = max((at for at, m in enumerate(messages) if m["role"] == "user"), default=-1)
        spoken = [_words(m) for m in messages[: last + 1] if m["role"] in SPOKEN]
        key = stable_id("turn", owner, session, *(part for words in spoken for part in words))
        _, name, said = spoken[-1] if spoken else ("", "", "")
        limit = self.server.config.limits.characters
        if len(said) > limit:
            raise refused(422, f"a message has at most {limit:,} characters")
        if said and key not in self.times:
            await self._recall(owner, key)
        turn = Turn(owner, session, said, name, key, self._time(key, 0))
        with told():
            posted(owner, session, [turn.message] if said else [])
        return turn

    async def keep(self, turn: Turn, reply: str) -> bool:
        """Store a turn; return whether it is. It is also stored when the caller is cancelled: what
        is asked in a request's context Ray Serve would cancel together with the request."""
        kept = asyncio.get_running_loop().create_task(self._keep(turn, reply), context=Context())
        self.underway.add(kept)
        kept.add_done_callback(self._ended)
        return await asyncio.shield(kept)

    async def aclose(self) -> None:
        """Wait for what is being stored."""
        await asyncio.gather(*self.underway, return_exceptions=True)

    def _ended(self, kept: Task[bool]) -> None:
        """Nobody may be there any more who would be told of an error."""
        self.underway.discard(kept)
        if not kept.cancelled() and (error := kept.exception()) is not None:
            log.error("a turn of a chat is not stored", exc_info=error)

    async def _keep(self, turn: Turn, reply: str) -> bool:
        reply = without_block(reply, "assistant")[: self.server.config.limits.characters]
        if not turn.said:
            return False
        messages = [turn.message]
        if reply.strip():
            at = self._time(stable_id(turn.key, reply), turn.at + 1)
            messages.append(turn.replied(reply, at))
        try:
            accepted = await self.server.writer.add(turn.owner, turn.session, messages)
        except (LightMemError, ValueError, TimeoutError) as error:
            log.error("a turn of a chat is not stored: %s", error)
            return False
        for outcome in accepted:
            self.server.metrics.messages.labels(outcome.state).inc()
        return True

    async def _recall(self, owner: str, key: str) -> None:
        """When the parts of a turn were said, if the store has them."""
        with told():
            found = await self.server.reader.list(owner, MOST_PARTS, "", OfTurn(key))
        for entry in found:
            part = parsed(entry.metadata).get(REPLY, key)
            self.times[part] = min(entry.said_at, self.times.get(part, entry.said_at))

    def _time(self, key: str, earliest: int) -> int:
        """When something was said: now, unless it is known since when."""
        at = self.times.setdefault(key, max(now_ms(), earliest))
        self.times.move_to_end(key)
        if len(self.times) > MOST_TIMES:
            self.times.popitem(last=False)
        return at


def texts_of(messages: Sequence[Message]) -> frozenset[str]:
    """What a conversation says, as messages are stored."""
    return frozenset(_text(m.get("content")) for m in messages)


def _words(message: Message) -> tuple[str, str, str]:
    name = message.get("name")
    said = _text(message.get("content"))
    return message["role"], name if isinstance(name, str) else "", said


def _text(given: Any) -> str:
    """What can be stored of a message's content, "" if nothing can."""
    try:
        return content({"content": given})
    except BadField:
        return ""
