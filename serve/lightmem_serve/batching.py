"""Calls that come while one is computed are made together as the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Generic, TypeVar

from lightmem_serve.backend import in_pool

A = TypeVar("A")
B = TypeVar("B")


class Batching(Generic[A, B]):
    """Awaited with one item, gives what `call` gives for it. `call` is made in a thread, one batch
    after the other: all that waits, `most` at once. Its errors are told to the whole batch; nothing
    is done for who has left before that begins. For one event loop.

    `serve.batch` closes a batch when its time to wait is over, although the one before is still
    computed: a busy model is given many small ones.
    """

    def __init__(self, call: Callable[[list[A]], Sequence[B]], most: int):
        self.call, self.most = call, most
        self._thread = ThreadPoolExecutor(1, "batch")
        self._waiting: deque[tuple[A, asyncio.Future[B]]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, item: A) -> B:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[B] = loop.create_future()
        self._waiting.append((item, future))
        if self._running is None:
            # It serves many requests, so it belongs to none.
            self._running = loop.create_task(self._run(), context=Context())
        return await future

    async def _run(self) -> None:
        try:
            while batch := self._next():
                outcome = await in_pool(self._thread, self._outcome, [item for item, _ in batch])
                _tell([future for _, future in batch], outcome)
        finally:
            self._running = None

    def _outcome(self, items: list[A]) -> list[B] | Exception:
        """What to tell each, or all of them. Errors are values: not every one comes through asyncio
        from a thread, and a panic of Rust is no Exception."""
        try:
            return [result for _, result in zip(items, self.call(items), strict=True)]
        except BaseException as error:  # noqa: BLE001  whatever it is, those who wait are told
            if isinstance(error, Exception) and not isinstance(error, StopIteration):
                return error
            return RuntimeError(f"the call ended with {error!r}")

    def _next(self) -> list[tuple[A, asyncio.Future[B]]]:
        batch: list[tuple[A, asyncio.Future[B]]] = []
        while self._waiting and len(batch) < self.most:
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        return batch


def _tell(futures: Sequence[asyncio.Future[B]], outcome: list[B] | Exception) -> None:
    """Who has left is told nothing."""
    for at, future in enumerate(futures):
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome[at])
