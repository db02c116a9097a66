"""One request to a language model and its reply. Every client and every engine is a `Chat`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from lightmem_core.types import stable_id


class TooLong(Exception):
    """The request does not fit the model's context, or its reply does not fit `max_tokens`."""


class Rejected(Exception):
    """The model's server refuses this one request for good. Says why, in one line."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """`messages` have a role (system, user, assistant) and a content. `schema` is the JSON schema
    that the reply must fit, as text; `max_tokens` bounds the reply."""

    messages: tuple[dict[str, str], ...]
    schema: str
    max_tokens: int
    temperature: float = 0.0

    @property
    def key(self) -> str:
        """The same for the same request, in every process. Whoever saves adds the model."""
        said = json.dumps([[m["role"], m["content"]] for m in self.messages])
        return stable_id("request", said, self.schema, self.max_tokens, self.temperature)


@dataclass(frozen=True, slots=True)
class Reply:
    """`cached_tokens` are those of the prompt that the server had read before, `seconds` the time
    of the call that succeeded. `finish` is "length" where `max_tokens` cut the text."""

    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    seconds: float = 0.0
    finish: Literal["stop", "length"] = "stop"


@dataclass(frozen=True, slots=True)
class Note:
    """What a run is to know beside its replies, `about` messages or entries with these ids.

    A `reply` has problems, or something in it was rejected, by kind. A request `failed`, or what
    was taken in the end is good `in_part`: `replies` are the keys of what the model said. Or it was
    `split`. `key` is that of the reply or of the request.
    """

    kind: Literal["reply", "failed", "in_part", "split"]
    key: str
    about: tuple[str, ...]
    reason: str = ""
    problems: tuple[str, ...] = ()
    rejected: Mapping[str, int] = field(default_factory=dict)
    replies: tuple[str, ...] = ()


class Chat(Protocol):
    """A model that can be asked. `name` is the model's, and stored with what it writes. A client
    whose options shape replies too has a `key` that differs where these do.

    All requests of a process come from one event loop. The client limits how many are in flight
    and waits out what passes: it raises TooLong, Rejected or one of STOPS. It gives RECORD the
    replies that it had asked for on its own.
    """

    name: str

    async def complete(self, request: ChatRequest) -> Reply: ...


def identity(chat: Chat) -> tuple[str, str]:
    """What tells clients apart that reply differently to the same request."""
    return chat.name, getattr(chat, "key", "")


Recorder = Callable[[Reply], Awaitable[None]]
# What keeps a reply that is paid for beside the one that was asked for.
RECORD: ContextVar[Recorder | None] = ContextVar("RECORD", default=None)


class SavedReplies(Protocol):
    """Keeps every reply before it is read, so that none is paid for twice. The methods are called
    from several threads at once, `paying` on the event loop: around a call and its `put`."""

    def get(self, user_id: str, key: str) -> Reply | None: ...

    def put(self, user_id: str, stage: str, key: str, reply: Reply) -> None: ...

    def note(self, user_id: str, stage: str, note: Note) -> None: ...

    def paying(self) -> AbstractAsyncContextManager[Any]: ...


class NoReplies:
    """Keeps nothing: every request is asked."""

    def get(self, user_id: str, key: str) -> Reply | None:
        return None

    def put(self, user_id: str, stage: str, key: str, reply: Reply) -> None:
        pass

    def note(self, user_id: str, stage: str, note: Note) -> None:
        pass

    def paying(self) -> AbstractAsyncContextManager[Any]:
        return nullcontext()
