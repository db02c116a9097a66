"""Writing, awaited: messages that wait for a commit are made durable together."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from lightmem_core.config import Config
from lightmem_core.online.service import Accepted, Incoming
from lightmem_core.online.sessions import posted
from lightmem_core.online.writer import OnlineWriter, WriterStatus
from lightmem_core.types import Entry
from lightmem_serve.backend import in_pool
from lightmem_serve.batching import Batching

THREADS = 8  # that change entries or extract on request at once
SLEEPERS = 2  # that sleep or erase, one after the other: they keep nobody else waiting
TOGETHER = 32  # requests whose messages are made durable by one commit
T = TypeVar("T")


class AsyncWriter:
    """`OnlineWriter`, awaited, one for a store. It may be killed at any time: what it accepted is
    in the store, and its successor goes on with what it had begun."""

    def __init__(self, config: Config):
        self.writer = OnlineWriter(config)
        self.writer.start()
        self.accepted = Batching(self.writer.add_all, TOGETHER)
        self.threads = ThreadPoolExecutor(THREADS, "write")
        self.sleepers = ThreadPoolExecutor(SLEEPERS, "sleep")

    async def add(
        self, user_id: str, session_id: str, messages: Sequence[Incoming]
    ) -> list[Accepted]:
        return await self.accepted(posted(user_id, session_id, messages))

    async def flush(self, user_id: str) -> int:
        return await self._write(self.writer.flush, user_id)

    async def update(
        self, user_id: str, entry_id: str, text: str | None = None, metadata: str | None = None
    ) -> Entry:
        return await self._write(self.writer.update, user_id, entry_id, text, metadata)

    async def delete(self, user_id: str, entry_id: str) -> None:
        await self._write(self.writer.delete, user_id, entry_id)

    async def erase(self, user_id: str) -> dict[str, int]:
        return await self._alone(self.writer.erase, user_id)

    async def sleep(self, user_id: str) -> dict[str, int]:
        return await self._alone(self.writer.sleep, user_id)

    async def status(self) -> WriterStatus:
        return self.writer.status()

    async def check(self) -> None:
        """Raise StoreError if this one can write no more."""
        await asyncio.to_thread(self.writer.check)

    async def check_health(self) -> None:
        """Another one takes the place of one that cannot."""
        await self.check()

    def __del__(self):
        if hasattr(self, "writer"):  # else it was never begun
            self.writer.close()

    async def _alone(self, call: Callable[..., T], *args: Any) -> T:
        return await in_pool(self.sleepers, call, *args)

    async def _write(self, call: Callable[..., T], *args: Any) -> T:
        return await in_pool(self.threads, call, *args)
