"""Reading, awaited: queries that wait for the model are embedded together."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from lightmem_core.config import Config
from lightmem_core.errors import StoreError
from lightmem_core.long_term.retrieve import Query
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.versions import EntryHistory
from lightmem_core.online.overview import Asked, Changes, Story, TimeLine
from lightmem_core.online.reader import MOST_RUNS, OnlineReader
from lightmem_core.online.service import Context
from lightmem_core.protocols import Filter
from lightmem_core.types import Entry
from lightmem_serve.backend import Searched, in_pool
from lightmem_serve.batching import Batching

THREADS = 8  # that read and rank at once
SEARCHERS = 2  # that look for an id in the whole store
T = TypeVar("T")
# where a method is named `list`
Entries = list[Entry]
Ids = list[str]
Runs = list[Run]


class AsyncReader:
    """`OnlineReader`, awaited, one query a call. A model call never keeps those waiting who only
    read; a query that cannot be ranked fails alone. A caller who leaves does not stop what has
    begun."""

    def __init__(self, config: Config):
        self.reader = OnlineReader(config.memory)
        self.threads = ThreadPoolExecutor(THREADS, "read")
        self.searchers = ThreadPoolExecutor(SEARCHERS, "search")
        self.checks = ThreadPoolExecutor(1, "check")
        self.trouble = ""
        self.embedded = Batching(self._embedded, config.serve.max_batch_size)
        self.reader.embed([Query("", "loads the model")])  # before the first request comes

    async def search(self, query: Query) -> Searched:
        """What a query searches is read while it waits for the model."""
        started = perf_counter()
        (vector, batch, embedded), _ = await asyncio.gather(
            self._vector(query), self._prepare(query)
        )
        (hits,) = await self._read(self.reader.answer, [query], vector[None])
        return Searched(hits, embedded - started, perf_counter() - embedded, batch)

    async def _vector(self, query: Query) -> tuple[np.ndarray, int, float]:
        """A query's vector, how many were embedded together, and when."""
        vector, batch = await self.embedded(query)
        return vector, batch, perf_counter()

    async def _prepare(self, query: Query) -> None:
        if query.as_of is None:  # an earlier day is read by itself
            await self._read(self.reader.prepare, query.user_id)

    def _embedded(self, queries: list[Query]) -> list[tuple[np.ndarray, int]]:
        """The vector of each query, and how many were embedded together."""
        return [(vector, len(queries)) for vector in self.reader.embed(queries)]

    async def context(self, query: Query, tokens: int) -> Context:
        found = await self.search(query)
        return await self._read(self.reader.packed, found.hits, tokens)

    async def get(self, memory_id: str, user_id: str | None = None) -> Entry | None:
        """To look for whose an id is keeps none waiting who names a user."""
        known = user_id or self.reader.known_owner(memory_id)
        threads = self.threads if known else self.searchers
        return await self._read(self.reader.get, memory_id, user_id, threads=threads)

    async def written(self, user_id: str, message_ids: Sequence[str]) -> Entries:
        return await self._read(self.reader.written, user_id, message_ids)

    async def list(
        self,
        user_id: str,
        limit: int,
        after: str = "",
        wanted: Filter | None = None,
        show_expired: bool = False,
    ) -> Entries:
        return await self._read(self.reader.list, user_id, limit, after, wanted, show_expired)

    async def history(self, memory_id: str, user_id: str) -> EntryHistory:
        return await self._read(self.reader.history, memory_id, user_id)

    async def story(self, entry_id: str, user_id: str, reach: int) -> Story:
        return await self._read(self.reader.story, entry_id, user_id, reach)

    async def time_line(self, user_id: str, asked: Asked) -> TimeLine:
        return await self._read(self.reader.time_line, user_id, asked)

    async def changes(self, user_id: str, limit: int, run_id: str = "") -> Changes:
        return await self._read(self.reader.changes, user_id, limit, run_id)

    async def users(self, limit: int, after: str = "", prefix: str = "") -> Ids:
        return await self._read(self.reader.users, limit, after, prefix)

    async def runs(self, kind: str = "", limit: int = MOST_RUNS, after: str = "") -> Runs:
        return await self._read(self.reader.runs, kind, limit, after)

    async def run(self, run_id: str) -> Run | None:
        return await self._read(self.reader.run, run_id)

    async def check_health(self) -> None:
        """Raise StoreError if the store holds other vectors than when this was begun; from then on
        nothing more is read. It waits for no reads: who is busy is not ill."""
        try:
            await in_pool(self.checks, self.reader.store.confirm)
        except StoreError as error:
            self.trouble = str(error)
            raise

    async def _read(
        self, call: Callable[..., T], *args: Any, threads: ThreadPoolExecutor | None = None
    ) -> T:
        if self.trouble:
            raise StoreError(self.trouble)
        return await in_pool(threads or self.threads, call, *args)
