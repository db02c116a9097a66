"""Requests of the HTTP interface: mem0's fields under mem0's names, and those of ours."""

from dataclasses import replace
from datetime import UTC, date
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator

from lightmem_core.errors import RequestError
from lightmem_core.formats.fields import clean, content, metadata
from lightmem_core.formats.timestamps import parse_time
from lightmem_core.metadata import EXPIRATION
from lightmem_core.online.service import Incoming
from lightmem_core.online.tenants import LONGEST_ID

DEFAULT_SESSION = "default"  # of messages that name no run, as in the batch
MEM0S_TOP_K = 20
MOST_MESSAGES = 10_000  # whatever the server's own limit is
Id = Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]
Metadata = dict[str, JsonValue]
Text = Annotated[str, Field(min_length=1, max_length=8_000)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Owned(Request):
    """Whose memories: a user's; without one those of the agent, or else of the run. A `run_id` is
    a session."""

    user_id: Id | None = None
    agent_id: Id | None = None
    run_id: Id | None = None


class MessageIn(Request):
    """A message as OpenAI has it. `timestamp` is when it was said: Unix seconds or ISO 8601."""

    role: str = Field(min_length=1, max_length=64)
    content: str | list[JsonValue] = Field(min_length=1)
    name: str | None = Field(default=None, max_length=LONGEST_ID)
    timestamp: int | float | str | None = None


class AddRequest(Owned):
    """Messages to remember. With `infer` they are extracted, else each becomes a memory word for
    word; `async_mode: false` waits for that. `timestamp` is that of messages that have none; who
    gives none says them now. `expiration_date` is the last day of the memories."""

    messages: Annotated[list[MessageIn], Field(min_length=1, max_length=MOST_MESSAGES)] | Text
    metadata: Metadata | None = None
    expiration_date: date | None = None
    infer: bool = True
    timestamp: int | float | str | None = None
    async_mode: bool = True
    memory_type: str | None = Field(default=None, description="Only null is supported.")
    prompt: str | None = Field(default=None, description="Only null is supported.")

    @property
    def session(self) -> str:
        return self.run_id or DEFAULT_SESSION

    def incoming(self, key: str = "") -> list[Incoming]:
        """With the `key` of a request that may be sent again. Raise BadField or RequestError for a
        message that cannot be stored."""
        if self.memory_type or self.prompt:
            raise RequestError(
                "memory_type and prompt cannot be given: the configuration says how is extracted"
            )
        given = self.messages
        messages = [MessageIn(role="user", content=given)] if isinstance(given, str) else given
        said = metadata_text(self.metadata, self.expiration_date) or ""
        found = [self._incoming(message, said) for message in messages]
        if not key:
            return found
        return [replace(one, key=f"{at} {key}") for at, one in enumerate(found)]

    def _incoming(self, message: MessageIn, said: str) -> Incoming:
        time = message.timestamp if message.timestamp is not None else self.timestamp
        return Incoming(
            role=clean(message.role),
            content=content({"content": message.content}),
            said_at=None if time is None else asked_time(time),
            name=clean(message.name or ""),
            agent_id=self.agent_id or "",
            metadata=said,
            infer=self.infer,
        )


class Selection(Owned):
    """What to look for. `filters` are mem0's; times bound when it was said, `as_of` asks what was
    known then. `limit` and `top_k` mean the same."""

    query: Text
    filters: Metadata | None = None
    limit: int | None = Field(default=None, ge=1, le=1_000)
    top_k: int | None = Field(default=None, ge=1, le=1_000)
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    as_of: AwareDatetime | None = None
    rerank: bool = False
    show_expired: bool = False


class SearchRequest(Selection):
    """`neighbours` is how many messages before and after its sources each result brings along. The
    parts of a score are always told, with or without `explain`."""

    neighbours: int = Field(default=0, ge=0, le=20)
    explain: bool = False

    @property
    def wanted(self) -> int:
        return self.limit or self.top_k or MEM0S_TOP_K


class ContextRequest(Selection):
    """The best memories as text for a prompt, at most `tokens` long."""

    tokens: int = Field(default=1_000, ge=1, le=100_000)

    @property
    def wanted(self) -> int:
        return self.limit or self.top_k or 100


class UpdateRequest(Request):
    """What to change of a memory; `data` is an older name of `text`."""

    text: Text | None = None
    data: Text | None = None
    metadata: Metadata | None = None
    expiration_date: date | None = None

    @model_validator(mode="after")
    def _something(self) -> "UpdateRequest":
        if self.text and self.data and self.text != self.data:
            raise ValueError("text and data are two names of the same: give one")
        if self.model_fields_set <= {"text", "data"} and not (self.text or self.data):
            raise ValueError("nothing to change: give text, metadata or expiration_date")
        return self


def metadata_text(given: Metadata | None, expires: date | None) -> str | None:
    """Metadata as it is stored, None if nothing is said of it."""
    if given is None and expires is None:
        return None
    own = {EXPIRATION: expires.isoformat()} if expires else {}
    return metadata({**(given or {}), **own})


def asked_time(given: float | str) -> int:
    """Raise RequestError for what is no time."""
    try:
        return parse_time(given, UTC)
    except ValueError as error:
        raise RequestError(str(error)) from error


def milliseconds(time: AwareDatetime | None) -> int | None:
    return None if time is None else int(time.timestamp() * 1000)
