"""What the routes work with: a reader and a writer that can be awaited, wherever they run."""

import asyncio
from asyncio import Lock
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Depends, Request

from lightmem_core.config import LLMConfig, ServeConfig
from lightmem_core.long_term.retrieve import Hit, Query
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.versions import EntryHistory
from lightmem_core.online.jobs import JobStore
from lightmem_core.online.overview import Asked, Changes, Story, TimeLine
from lightmem_core.online.service import Accepted, Context, Incoming
from lightmem_core.online.writer import WriterStatus
from lightmem_core.protocols import Filter
from lightmem_core.types import Entry
from lightmem_serve.errors import told
from lightmem_serve.metrics import Metrics

T = TypeVar("T")
Entries = list[Entry]


@dataclass(frozen=True, slots=True)
class Searched:
    """What a search found, and the seconds it took until the query was embedded, in a batch of so
    many, and from then until its entries were ranked. Waiting for one's turn counts."""

    hits: list[Hit]
    embed_s: float
    rank_s: float
    batch: int


class Reader(Protocol):
    """`OnlineReader`, awaited."""

    async def search(self, query: Query) -> Searched: ...
    async def get(self, memory_id: str, user_id: str | None = None) -> Entry | None: ...
    async def written(self, user_id: str, message_ids: Sequence[str]) -> Entries: ...
    async def list(
        self,
        user_id: str,
        limit: int,
        after: str = "",
        wanted: Filter | None = None,
        show_expired: bool = False,
    ) -> Entries: ...
    async def history(self, memory_id: str, user_id: str) -> EntryHistory: ...
    async def story(self, entry_id: str, user_id: str, reach: int) -> Story: ...
    async def time_line(self, user_id: str, asked: Asked) -> TimeLine: ...
    async def changes(self, user_id: str, limit: int, run_id: str = "") -> Changes: ...
    async def context(self, query: Query, tokens: int) -> Context: ...
    async def users(self, limit: int, after: str = "", prefix: str = "") -> Sequence[str]: ...
    async def runs(self, kind: str = "", limit: int = ..., after: str = "") -> Sequence[Run]: ...
    async def run(self, run_id: str) -> Run | None: ...


class Writer(Protocol):
    """`OnlineWriter`, awaited."""

    async def add(
        self, user_id: str, session_id: str, messages: Sequence[Incoming]
    ) -> Sequence[Accepted]: ...
    async def flush(self, user_id: str) -> int: ...
    async def update(
        self, user_id: str, memory_id: str, text: str | None = None, metadata: str | None = None
    ) -> Entry: ...
    async def delete(self, user_id: str, memory_id: str) -> None: ...
    async def erase(self, user_id: str) -> dict[str, int]: ...
    async def sleep(self, user_id: str) -> dict[str, int]: ...
    async def status(self) -> WriterStatus: ...
    async def check(self) -> None: ...


async def in_pool(pool: Executor, call: Callable[..., T], *args: Any) -> T:
    """What a call gives that is made in a thread of `pool`."""
    return await asyncio.get_running_loop().run_in_executor(pool, partial(call, *args))


@dataclass(slots=True)
class Server:
    """What a running server has. Work that must not meet an erase holds `quiet`."""

    reader: Reader
    writer: Writer
    config: ServeConfig
    metrics: Metrics
    jobs: JobStore
    embedder: str
    shards: int
    llm: LLMConfig | None = None
    quiet: Lock = field(default_factory=Lock)


async def searched(server: Server, query: Query) -> Searched:
    """What the reader finds, noted in the metrics. Tell the client what is wrong with its query."""
    with told():
        found = await server.reader.search(query)
    server.metrics.searched(found.embed_s, found.rank_s, found.batch)
    server.metrics.entries.inc(len(found.hits))
    return found


async def current_server(request: Request) -> Server:
    return request.app.state.server


Serving = Annotated[Server, Depends(current_server)]
