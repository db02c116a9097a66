"""Calls that come while one is computed are made together as the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from lightmem_serve.backend import in_pool

A = TypeVar("A")
B = TypeVar("B")


class Batching(Generic[A, B]):
    """Awaited with one item, gives what `call` gives for it. `call` is made in a thread, one batch
    after the other: all that waits, `most` at once. Its errors are told to the whole batch; nothing
    is done for who has left before. For one event loop.

    `serve.batch` closes a batch when its time to wait is over, although the one before is still
    computed: a busy model is given many small ones.
    """

    def __init__(self, call: Callable[[list[A]], Sequence[B]], most: int):
        self.call, self.most = call, most
        self._thread = ThreadPoolExecutor(1, "batch")
        self._waiting: deque[tuple[A, asyncio.Future[B]]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, item: A) -> B:
        future: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while batch := self._next():
            futures = [future for _, future in batch]
            try:
                results = await in_pool(self._thread, self.call, [item for item, _ in batch])
                for future, result in zip(futures, results, strict=True):
                    if not future.done():
                        future.set_result(result)
            except Exception as error:  # noqa: BLE001  whatever it is, those who wait are told
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
        self._running = None

    def _next(self) -> list[tuple[A, asyncio.Future[B]]]:
        batch: list[tuple[A, asyncio.Future[B]]] = []
        while self._waiting and len(batch) < self.most:
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        return batch
