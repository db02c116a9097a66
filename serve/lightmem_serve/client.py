"""Clients of a running server, with mem0's method names and typed answers.

    memories = MemoryClient("http://127.0.0.1:8000", api_key="lm_...")
    memories.add("I moved to Porto", user_id="ada")
    for found in memories.search("where does she live?", user_id="ada").results:
        print(found.memory, found.sources)

What can be sent again without harm is, where the server was busy or the connection broke: messages
too, for the server knows those that it has.
"""

import asyncio
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2

from lightmem_core.errors import LightMemError
from lightmem_serve import calls, models
from lightmem_serve.calls import Call

A = TypeVar("A")
BUSY = (429, 503)  # the server has done nothing, or nothing that cannot be done again
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0


class ApiError(LightMemError):
    """The server refused a request: `status`, why, and the id under which its log has it. Status 0:
    it could not be reached."""

    def __init__(self, status: int, detail: str, request_id: str = ""):
        where = f" (request {request_id})" if request_id else ""
        super().__init__(f"{f'{status}: ' if status else ''}{detail}{where}")
        self.status, self.detail, self.request_id = status, detail, request_id


class AccessError(ApiError):
    """The key is missing, revoked, or does not open this."""


class NotFoundError(ApiError):
    """There is no such memory or job that this key opens."""


class BusyError(ApiError):
    """Too many requests, or a server that cannot do it now, also after all retries."""


KINDS = {401: AccessError, 403: AccessError, 404: NotFoundError, 429: BusyError, 503: BusyError}


@dataclass(frozen=True, slots=True)
class Settings:
    """`retries` after the first try. A request may take `timeout_s`, work on all that a user has
    may take longer."""

    host: str
    api_key: str | None
    timeout_s: float
    retries: int

    @property
    def headers(self) -> dict[str, str]:
        return {"X-API-Key": self.api_key} if self.api_key else {}


class MemoryClient:
    """A client for code that waits. Safe for many threads; close it, or use it in a `with`."""

    def __init__(
        self,
        host: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 4,
    ):
        self.settings = Settings(host, api_key, timeout_s, retries)
        self.http = httpx2.Client(
            base_url=host, headers=self.settings.headers, timeout=timeout_s, trust_env=False
        )

    def add(
        self, messages: calls.Messages, **options: Unpack[calls.AddOptions]
    ) -> models.AddResponse:
        return self._send(calls.added(messages, options))

    def search(self, query: str, **options: Unpack[calls.SearchOptions]) -> models.SearchResponse:
        return self._send(calls.searched(query, options))

    def context(
        self, query: str, tokens: int = 1_000, **options: Unpack[calls.SearchOptions]
    ) -> models.ContextResponse:
        return self._send(calls.asked_context(query, tokens, options))

    def get_all(self, **options: Unpack[calls.ListOptions]) -> models.MemoriesResponse:
        return self._send(calls.listed(options))

    def get(self, memory_id: str) -> models.Memory:
        return self._send(calls.got(memory_id))

    def history(self, memory_id: str) -> list[models.Event]:
        return self._send(calls.past(memory_id))

    def update(self, memory_id: str, **changes: Unpack[calls.Changes]) -> models.UpdateResponse:
        return self._send(calls.updated(memory_id, changes))

    def delete(self, memory_id: str) -> models.Done:
        return self._send(calls.deleted(memory_id))

    def delete_all(self, **owner: Unpack[calls.Owner]) -> models.Erased:
        return self._send(calls.deleted_all(owner))

    def users(self, limit: int = 100, after: str = "") -> models.UsersResponse:
        return self._send(calls.users(limit, after))

    def sleep(self, user_id: str) -> models.Slept:
        return self._send(calls.slept(user_id))

    def flush(self, user_id: str) -> models.Flushed:
        return self._send(calls.flushed(user_id))

    def create_job(self, messages: Iterable[Mapping[str, Any]]) -> models.JobModel:
        return self._send(calls.uploaded(messages))

    def get_job(self, job_id: str) -> models.JobModel:
        return self._send(calls.job(job_id))

    def list_jobs(self, limit: int = 20, after: str = "") -> models.JobsResponse:
        return self._send(calls.jobs(limit, after))

    def cancel_job(self, job_id: str) -> models.JobModel:
        return self._send(calls.cancelled(job_id))

    def health(self) -> models.Health:
        return self._send(calls.asked_health())

    def close(self) -> None:
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, call: Call[A]) -> A:
        for tried in range(self.settings.retries + 1):
            try:
                reply = self.http.request(**_request(call))
            except httpx2.TransportError as error:
                _raise_unless_again(error, call, self.settings, tried)
                time.sleep(_pause(tried))
                continue
            if reply.status_code not in BUSY or tried == self.settings.retries:
                return _answer(call, reply)
            time.sleep(_pause(tried, reply))
        raise AssertionError("the last try answers or raises")


class AsyncMemoryClient:
    """The same for code that is awaited."""

    def __init__(
        self,
        host: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 4,
    ):
        self.settings = Settings(host, api_key, timeout_s, retries)
        self.http = httpx2.AsyncClient(
            base_url=host, headers=self.settings.headers, timeout=timeout_s, trust_env=False
        )

    async def add(
        self, messages: calls.Messages, **options: Unpack[calls.AddOptions]
    ) -> models.AddResponse:
        return await self._send(calls.added(messages, options))

    async def search(
        self, query: str, **options: Unpack[calls.SearchOptions]
    ) -> models.SearchResponse:
        return await self._send(calls.searched(query, options))

    async def context(
        self, query: str, tokens: int = 1_000, **options: Unpack[calls.SearchOptions]
    ) -> models.ContextResponse:
        return await self._send(calls.asked_context(query, tokens, options))

    async def get_all(self, **options: Unpack[calls.ListOptions]) -> models.MemoriesResponse:
        return await self._send(calls.listed(options))

    async def get(self, memory_id: str) -> models.Memory:
        return await self._send(calls.got(memory_id))

    async def history(self, memory_id: str) -> list[models.Event]:
        return await self._send(calls.past(memory_id))

    async def update(
        self, memory_id: str, **changes: Unpack[calls.Changes]
    ) -> models.UpdateResponse:
        return await self._send(calls.updated(memory_id, changes))

    async def delete(self, memory_id: str) -> models.Done:
        return await self._send(calls.deleted(memory_id))

    async def delete_all(self, **owner: Unpack[calls.Owner]) -> models.Erased:
        return await self._send(calls.deleted_all(owner))

    async def users(self, limit: int = 100, after: str = "") -> models.UsersResponse:
        return await self._send(calls.users(limit, after))

    async def sleep(self, user_id: str) -> models.Slept:
        return await self._send(calls.slept(user_id))

    async def flush(self, user_id: str) -> models.Flushed:
        return await self._send(calls.flushed(user_id))

    async def create_job(self, messages: Iterable[Mapping[str, Any]]) -> models.JobModel:
        return await self._send(calls.uploaded(messages))

    async def get_job(self, job_id: str) -> models.JobModel:
        return await self._send(calls.job(job_id))

    async def list_jobs(self, limit: int = 20, after: str = "") -> models.JobsResponse:
        return await self._send(calls.jobs(limit, after))

    async def cancel_job(self, job_id: str) -> models.JobModel:
        return await self._send(calls.cancelled(job_id))

    async def health(self) -> models.Health:
        return await self._send(calls.asked_health())

    async def close(self) -> None:
        await self.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()

    async def _send(self, call: Call[A]) -> A:
        for tried in range(self.settings.retries + 1):
            try:
                reply = await self.http.request(**_request(call))
            except httpx2.TransportError as error:
                _raise_unless_again(error, call, self.settings, tried)
                await asyncio.sleep(_pause(tried))
                continue
            if reply.status_code not in BUSY or tried == self.settings.retries:
                return _answer(call, reply)
            await asyncio.sleep(_pause(tried, reply))
        raise AssertionError("the last try answers or raises")


def _request(call: Call[Any]) -> dict[str, Any]:
    query = {name: value for name, value in call.query.items() if value is not None}
    parts = {"method": call.method, "url": call.path, "params": query, "headers": call.headers}
    return {**parts, "content": call.body}


def _raise_unless_again(
    error: httpx2.TransportError, call: Call[Any], settings: Settings, tried: int
) -> None:
    """A request that never arrived can always be sent again, one that may have only if repeating it
    does no harm."""
    unsent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
    if tried == settings.retries or not (unsent or call.repeatable):
        what = f"{settings.host} did not answer {call.method} {call.path}"
        raise ApiError(0, f"{what}: {error or type(error).__name__}") from error


def _pause(tried: int, reply: httpx2.Response | None = None) -> float:
    """What the server asks for, or else a while that doubles, of random length."""
    asked = reply.headers.get("retry-after", "") if reply is not None else ""
    if asked.isdecimal():
        return min(float(asked), LONGEST_PAUSE_S)
    return min(FIRST_PAUSE_S * 2**tried, LONGEST_PAUSE_S) * random.uniform(0.5, 1)


def _answer(call: Call[A], reply: httpx2.Response) -> A:
    if reply.status_code == 200:
        return call.answer.validate_json(reply.content)
    request_id = reply.headers.get("x-request-id", "")
    kind = KINDS.get(reply.status_code, ApiError)
    raise kind(reply.status_code, _detail(reply), request_id)


def _detail(reply: httpx2.Response) -> str:
    """Why a request was refused, in one line."""
    try:
        detail = reply.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return reply.reason_phrase or "no reason was given"
    if isinstance(detail, str):
        return detail
    places = ((".".join(map(str, wrong["loc"])), wrong["msg"]) for wrong in detail)
    return "; ".join(f"{place}: {msg}" for place, msg in places)
