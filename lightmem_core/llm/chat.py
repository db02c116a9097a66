"""One request to a language model and its reply. Every client and every engine is a `Chat`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, Protocol

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


class Chat(Protocol):
    """A model that can be asked. `name` is the model's, and stored with what it writes.

    All requests of a process come from one event loop. The client limits how many are in flight
    and waits out what passes: it raises TooLong, Rejected, BudgetError or LLMUnavailableError.
    """

    name: str

    async def complete(self, request: ChatRequest) -> Reply: ...


class SavedReplies(Protocol):
    """Keeps every reply before it is read, so that none is paid for twice. Both methods are called
    from several threads at once."""

    def get(self, user_id: str, key: str) -> Reply | None: ...

    def put(self, user_id: str, stage: str, key: str, reply: Reply) -> None: ...


class NoReplies:
    """Keeps nothing: every request is asked."""

    def get(self, user_id: str, key: str) -> Reply | None:
        return None

    def put(self, user_id: str, stage: str, key: str, reply: Reply) -> None:
        pass
