"""Clients of a running server, with mem0's method names and typed answers.

    memories = MemoryClient("http://127.0.0.1:8000", api_key="lm_...")
    memories.add("I moved to Porto", user_id="ada")
    for found in memories.search("where does she live?", user_id="ada").results:
        print(found.memory, found.sources)

`timeout_s` is for a request, `work_timeout_s` for work on all that a user has: sleep, flush, erase.

What can be sent again without harm is, where the server was busy or the connection broke: messages
too, for the server knows those that it has.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2

from lightmem_serve import calls, models
from lightmem_serve.calls import Call
from lightmem_serve.sending import (
    BUSY,
    WORK_S,
    AccessError,
    ApiError,
    BusyError,
    NotFoundError,
    Settings,
    answer_of,
    pause_after,
    raise_unless_again,
    request_of,
)

__all__ = [
    "AccessError",
    "ApiError",
    "AsyncMemoryClient",
    "BusyError",
    "MemoryClient",
    "NotFoundError",
]

A = TypeVar("A")


class MemoryClient:
    """A client for code that waits. Safe for many threads; close it, or use it in a `with`."""

    def __init__(
        self,
        host: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 4,
        work_timeout_s: float = WORK_S,
    ):
        self.settings = Settings(host, api_key, timeout_s, retries, work_timeout_s)
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

    def reset(self) -> models.Erased:
        """Erase all users of the tenant, physically."""
        return self._send(calls.emptied())

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

    def job_errors(self, job_id: str) -> list[models.LineError]:
        return self._send(calls.wrong_lines(job_id))

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
                reply = self.http.request(**request_of(call, self.settings))
            except httpx2.TransportError as error:
                raise_unless_again(error, call, self.settings, tried)
                time.sleep(pause_after(tried))
                continue
            if reply.status_code not in BUSY or tried == self.settings.retries:
                return answer_of(call, reply)
            time.sleep(pause_after(tried, reply))
        raise AssertionError("the last try answers or raises")


class AsyncMemoryClient:
    """The same for code that is awaited."""

    def __init__(
        self,
        host: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 4,
        work_timeout_s: float = WORK_S,
    ):
        self.settings = Settings(host, api_key, timeout_s, retries, work_timeout_s)
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

    async def reset(self) -> models.Erased:
        """Erase all users of the tenant, physically."""
        return await self._send(calls.emptied())

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

    async def job_errors(self, job_id: str) -> list[models.LineError]:
        return await self._send(calls.wrong_lines(job_id))

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
                reply = await self.http.request(**request_of(call, self.settings))
            except httpx2.TransportError as error:
                raise_unless_again(error, call, self.settings, tried)
                await asyncio.sleep(pause_after(tried))
                continue
            if reply.status_code not in BUSY or tried == self.settings.retries:
                return answer_of(call, reply)
            await asyncio.sleep(pause_after(tried, reply))
        raise AssertionError("the last try answers or raises")
