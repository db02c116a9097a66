"""What an agent may do over MCP: the tools, what they take and what they give.

Whose memories they work on is said by the key and the headers of the request. No tool takes a
user, so no model can be talked into naming another one.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator

from lightmem_core.long_term.render import moment
from lightmem_core.long_term.retrieve import Query
from lightmem_core.metadata import parsed
from lightmem_core.online.filters import parse
from lightmem_core.online.keys import Scope
from lightmem_core.online.tenants import stored_user
from lightmem_core.types import Entry
from lightmem_serve.access import Caller
from lightmem_serve.backend import Server, searched
from lightmem_serve.errors import NO_MEMORY, refused
from lightmem_serve.models import Slept
from lightmem_serve.results import state_of
from lightmem_serve.routes_memories import check_limits
from lightmem_serve.schemas import (
    MOST_MESSAGES,
    AddRequest,
    MessageIn,
    Metadata,
    Text,
    milliseconds,
)

MOST = 100
MemoryId = Annotated[str, Field(min_length=1, max_length=64, description="Of a memory.")]


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks, on whose memories, in which session."""

    server: Server
    caller: Caller
    owner: str
    session: str


class Takes(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Nothing(Takes):
    pass


class Add(Takes):
    text: Text | None = Field(None, description="What to remember.")
    messages: list[MessageIn] | None = Field(
        None, min_length=1, max_length=MOST_MESSAGES, description="Or messages of a conversation."
    )
    user_input: Text | None = Field(None, description="Or what the user said,")
    assistant_reply: str | None = Field(None, description="and what was replied.")
    timestamp: int | float | str | None = Field(None, description="When, if not now.")
    metadata: Metadata | None = None
    force_segment: bool = Field(False, description="Extract at once.")
    force_extract: bool = Field(False, description="Extract at once.")

    @model_validator(mode="after")
    def _one(self) -> "Add":
        if sum(given is not None for given in (self.text, self.messages, self.user_input)) != 1:
            raise ValueError("give one of text, messages and user_input")
        return self

    @property
    def said(self) -> list[MessageIn]:
        if self.messages is not None:
            return self.messages
        said = MessageIn(role="user", content=self.text or self.user_input or "")
        replied = self.assistant_reply if self.user_input else None
        return [said, *([MessageIn(role="assistant", content=replied)] if replied else [])]


class Search(Takes):
    query: Text
    limit: int = Field(10, ge=1, le=MOST)
    filters: dict[str, JsonValue] | None = Field(
        None, description='Such as {"topic": "food"}; AND, OR, NOT, eq, gte, contains and others.'
    )
    since: AwareDatetime | None = Field(None, description="Said at this time or later.")
    until: AwareDatetime | None = None


class Listing(Takes):
    limit: int = Field(20, ge=1, le=MOST)
    after: str = Field("", max_length=64, description="The `next` of the page before.")


class ById(Takes):
    memory_id: MemoryId


class Offline(Takes):
    """What the reference takes; here the configuration says how similar memories must be."""

    top_k: int | None = Field(None, description="Not used.")
    keep_top_n: int | None = Field(None, description="Not used.")
    score_threshold: float | None = Field(None, description="Not used.")


class Noted(BaseModel):
    id: str
    state: Literal["new", "known"]


class Remembered(BaseModel):
    results: list[Noted]
    extracted: int | None = Field(None, description="Memories that were written at once.")


class Recalled(BaseModel):
    id: str
    text: str
    speaker: str
    topic: str
    said_at: str
    event_at: str | None = Field(None, description="When what it speaks of happens.")
    score: float | None = None


class Memories(BaseModel):
    memories: list[Recalled]
    next: str | None = None


class Details(Recalled):
    state: Literal["stored", "waiting", "superseded", "deleted"]
    sources: list[str] = Field(description="Session and position of the messages it came from.")
    superseded_by: str | None = None
    metadata: dict[str, JsonValue] | None = None


class Deleted(BaseModel):
    deleted: str


class Now(BaseModel):
    timestamp: str


class Instance(BaseModel):
    version: str
    embedder: str
    shards: int


@dataclass(frozen=True, slots=True)
class Tool:
    """Something that an agent may do. One that takes `long` works on all that a user has."""

    name: str
    scope: Scope
    run: Callable[[Asked, Any], Awaitable[BaseModel]]
    takes: type[Takes]
    gives: type[BaseModel]
    destroys: bool = False
    long: bool = False

    @property
    def about(self) -> str:
        return " ".join((self.run.__doc__ or "").split())


async def add(asked: Asked, given: Add) -> Remembered:
    """Remember something that was said. It is found from now on. Sent again it is stored once."""
    request = AddRequest(messages=given.said, timestamp=given.timestamp, metadata=given.metadata)
    messages = request.incoming()
    check_limits(messages, asked.server.config.limits)
    accepted = await asked.server.writer.add(asked.owner, asked.session, messages)
    for outcome in accepted:
        asked.server.metrics.messages.labels(outcome.state).inc()
    at_once = given.force_segment or given.force_extract
    written = await asked.server.writer.flush(asked.owner) if at_once else None
    noted = [
        Noted(id=one.message_id, state="new" if one.state == "accepted" else "known")
        for one in accepted
    ]
    return Remembered(results=noted, extracted=written)


async def search(asked: Asked, given: Search) -> Memories:
    """What is remembered that bears on a text, best first. Ask before you say that you do not
    know."""
    tenant = asked.caller.tenant
    named = parse(given.filters, lambda user: stored_user(tenant, user)) if given.filters else None
    query = Query(
        user_id=asked.owner,
        text=given.query,
        limit=given.limit,
        since=milliseconds(given.since),
        until=milliseconds(given.until),
        wanted=named,
    )
    found = await searched(asked.server, query)
    hits = [Recalled(**_of(hit.entry), score=round(hit.score, 4)) for hit in found.hits]
    return Memories(memories=hits)


async def list_all(asked: Asked, given: Listing) -> Memories:
    """All that is remembered, newest first."""
    found = await asked.server.reader.list(asked.owner, given.limit + 1, given.after)
    page = [Recalled(**_of(entry)) for entry in found[: given.limit]]
    return Memories(memories=page, next=page[-1].id if len(found) > given.limit else None)


async def get(asked: Asked, given: ById) -> Details:
    """A memory, with where it came from and what took its place."""
    entry = await _own(asked, given.memory_id)
    places = (*entry.sources, *entry.absorbed)
    state = state_of(entry)
    return Details(
        **_of(entry),
        state=state,
        sources=[f"{place.session_id} {place.position}" for place in places],
        superseded_by=entry.superseded_by if state == "superseded" else None,
        metadata=dict(parsed(entry.metadata)) or None,
    )


async def delete(asked: Asked, given: ById) -> Deleted:
    """Forget a memory: no search and no list shows it any more."""
    await _own(asked, given.memory_id)
    await asked.server.writer.delete(asked.owner, given.memory_id)
    return Deleted(deleted=given.memory_id)


async def sleep(asked: Asked, given: Takes) -> Slept:
    """Tidy up: merge what was said again, and supersede what has changed. It may take a while."""
    return Slept(decisions=await asked.server.writer.sleep(asked.owner))


async def now(asked: Asked, given: Nothing) -> Now:
    """The time now, in UTC."""
    return Now(timestamp=datetime.now(UTC).isoformat(timespec="milliseconds"))


async def show(asked: Asked, given: Nothing) -> Instance:
    """What this memory runs on."""
    own = asked.server
    return Instance(version=version("lightmem-ray"), embedder=own.embedder, shards=own.shards)


TOOLS = (
    Tool("add_memory", "write", add, Add, Remembered),
    Tool("search_memories", "read", search, Search, Memories),
    Tool("list_memories", "read", list_all, Listing, Memories),
    Tool("get_memory", "read", get, ById, Details),
    Tool("delete_memory", "write", delete, ById, Deleted, destroys=True),
    Tool("sleep", "write", sleep, Nothing, Slept, long=True),
    # the names that LightMem's own server has
    Tool("retrieve_memory", "read", search, Search, Memories),
    Tool("offline_update", "write", sleep, Offline, Slept, long=True),
    Tool("get_timestamp", "read", now, Nothing, Now),
    Tool("show_lightmem_instance", "read", show, Nothing, Instance),
)


async def _own(asked: Asked, memory_id: str) -> Entry:
    """The user's memory. Another user's is as if there were none, also within a tenant."""
    entry = await asked.server.reader.get(memory_id, asked.owner)
    if entry is None or entry.user_id != asked.owner:
        raise refused(404, NO_MEMORY)
    return entry


def _of(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "text": entry.text,
        "speaker": entry.speaker,
        "topic": entry.topic,
        "said_at": moment(entry.said_at),
        "event_at": None if entry.event_at is None else moment(entry.event_at),
    }
