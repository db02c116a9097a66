"""What the clients send: each call of the HTTP interface as data, and what its answer is."""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

from pydantic import TypeAdapter

from lightmem_serve.models import (
    AddResponse,
    ContextResponse,
    Done,
    Erased,
    Event,
    Flushed,
    Health,
    JobModel,
    JobsResponse,
    LineError,
    MemoriesResponse,
    Memory,
    SearchResponse,
    Slept,
    UpdateResponse,
    UsersResponse,
)

A = TypeVar("A")
Messages = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]
Method = Literal["GET", "POST", "PUT", "DELETE"]
EVENTS = TypeAdapter(list[Event])
LINE_ERRORS = TypeAdapter(list[LineError])


class Owner(TypedDict, total=False):
    """Whose memories: a user's; without one those of an agent, or of a run."""

    user_id: str
    agent_id: str
    run_id: str


class AddOptions(Owner, total=False):
    metadata: dict[str, Any]
    expiration_date: str | date
    infer: bool
    timestamp: float | str
    async_mode: bool


class SearchOptions(Owner, total=False):
    filters: dict[str, Any]
    top_k: int
    limit: int
    threshold: float
    since: str | datetime
    until: str | datetime
    as_of: str | datetime
    rerank: bool
    show_expired: bool
    neighbours: int
    explain: bool


class ListOptions(Owner, total=False):
    top_k: int
    limit: int
    after: str
    show_expired: bool


class Changes(TypedDict, total=False):
    text: str
    data: str
    metadata: dict[str, Any]
    expiration_date: str | date | None


@dataclass(frozen=True, slots=True)
class Call(Generic[A]):
    """A request. One that is `repeatable` may be sent again though it may have arrived: it changes
    nothing, or nothing the second time. A `long` one works on all that a user has, and goes on in
    the server when nobody waits for it any more. The answer to one of `lines` is a list, an item a
    line."""

    method: Method
    path: str
    answer: TypeAdapter[A]
    query: dict[str, Any] = field(default_factory=dict)
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    repeatable: bool = True
    long: bool = False
    lines: bool = False


def added(messages: Messages, options: AddOptions) -> Call[AddResponse]:
    given = [messages] if isinstance(messages, Mapping) else messages
    return _posted("/memories", {"messages": given, **options}, AddResponse)


def searched(query: str, options: SearchOptions) -> Call[SearchResponse]:
    return _posted("/search", {"query": query, **options}, SearchResponse)


def asked_context(query: str, tokens: int, options: SearchOptions) -> Call[ContextResponse]:
    return _posted("/context", {"query": query, "tokens": tokens, **options}, ContextResponse)


def listed(options: ListOptions) -> Call[MemoriesResponse]:
    return Call("GET", "/memories", TypeAdapter(MemoriesResponse), dict(options))


def got(memory_id: str) -> Call[Memory]:
    return Call("GET", _memory(memory_id), TypeAdapter(Memory))


def past(memory_id: str) -> Call[list[Event]]:
    return Call("GET", f"{_memory(memory_id)}/history", EVENTS)


def updated(memory_id: str, changes: Changes) -> Call[UpdateResponse]:
    body, headers = _json(changes)
    path = _memory(memory_id)
    return Call("PUT", path, TypeAdapter(UpdateResponse), body=body, headers=headers)


def deleted(memory_id: str) -> Call[Done]:
    """Sent once: the second time there would be no such memory."""
    return Call("DELETE", _memory(memory_id), TypeAdapter(Done), repeatable=False)


def deleted_all(owner: Owner) -> Call[Erased]:
    return Call("DELETE", "/memories", TypeAdapter(Erased), dict(owner), long=True)


def emptied() -> Call[Erased]:
    return Call("POST", "/reset", TypeAdapter(Erased), {"confirm": "all"}, long=True)


def users(limit: int, after: str) -> Call[UsersResponse]:
    query = {"limit": limit, "after": after}
    return Call("GET", "/users", TypeAdapter(UsersResponse), query)


def slept(user_id: str) -> Call[Slept]:
    return _worked(user_id, "sleep", Slept)


def flushed(user_id: str) -> Call[Flushed]:
    return _worked(user_id, "flush", Flushed)


def _worked(user_id: str, work: str, answer: type[A]) -> Call[A]:
    path = f"/users/{quote(user_id, safe='')}/{work}"
    return Call("POST", path, TypeAdapter(answer), long=True)


def uploaded(messages: Iterable[Mapping[str, Any]]) -> Call[JobModel]:
    """With a key of its own, so that sending it again makes no second job."""
    body = b"".join(_text(message) + b"\n" for message in messages)
    headers = {"content-type": "application/jsonl", "Idempotency-Key": secrets.token_hex(16)}
    return Call("POST", "/jobs", TypeAdapter(JobModel), body=body, headers=headers)


def job(job_id: str) -> Call[JobModel]:
    return Call("GET", f"/jobs/{quote(job_id, safe='')}", TypeAdapter(JobModel))


def jobs(limit: int, after: str) -> Call[JobsResponse]:
    return Call("GET", "/jobs", TypeAdapter(JobsResponse), {"limit": limit, "after": after})


def cancelled(job_id: str) -> Call[JobModel]:
    path = f"/jobs/{quote(job_id, safe='')}/cancel"
    return Call("POST", path, TypeAdapter(JobModel), repeatable=False)


def wrong_lines(job_id: str) -> Call[list[LineError]]:
    return Call("GET", f"/jobs/{quote(job_id, safe='')}/errors", LINE_ERRORS, lines=True)


def asked_health() -> Call[Health]:
    return Call("GET", "/health", TypeAdapter(Health))


def _posted(path: str, fields: Mapping[str, Any], answer: type[A]) -> Call[A]:
    body, headers = _json(fields)
    return Call("POST", path, TypeAdapter(answer), body=body, headers=headers)


def _json(fields: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    return _text(fields), {"content-type": "application/json"}


def _text(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=_time).encode()


def _time(value: Any) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"a request cannot hold a {type(value).__name__}")


def _memory(memory_id: str) -> str:
    if not memory_id:
        raise ValueError("give the id of a memory")
    return f"/memories/{quote(memory_id, safe='')}"
