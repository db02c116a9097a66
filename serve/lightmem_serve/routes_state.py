"""Whether the server can do its work, and what it has done."""

import asyncio
import time
from dataclasses import dataclass, field
from math import inf

from fastapi import APIRouter, Request, Response

from lightmem_core.errors import LightMemError
from lightmem_core.long_term.retrieve import Query
from lightmem_core.online.writer import WriterStatus
from lightmem_serve.access import Asking
from lightmem_serve.backend import Server, Serving
from lightmem_serve.errors import RETRY_AFTER, documented, log, refused, told
from lightmem_serve.jobs import JobRunner
from lightmem_serve.metrics import CONTENT_TYPE
from lightmem_serve.models import Health

FRESH_S = 1.0
router = APIRouter(tags=["state"])
TEXT = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@dataclass(slots=True)
class Readiness:
    """Whether the server is ready, looked at no more than once a second, whoever asks."""

    server: Server
    runner: JobRunner
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    looked_at: float = -inf
    status: WriterStatus | None = None

    async def looked(self) -> WriterStatus | None:
        """How the writer does, None if the server is not ready."""
        async with self.lock:
            if time.monotonic() - self.looked_at >= FRESH_S:
                self.status = await self._look()
                self.looked_at = time.monotonic()
        return self.status

    async def _look(self) -> WriterStatus | None:
        try:
            await self.server.reader.search(Query(user_id="", text="ready"))
            await self.server.writer.check()
            status = await self.server.writer.status()
        except LightMemError as error:
            log.warning("the server is not ready: %s", error)
            return None
        if trouble := status.trouble or self.runner.trouble:
            log.warning("the server is not ready: %s", trouble)
        return None if trouble else status


@router.get("/health", responses=documented())
async def health(request: Request, server: Serving) -> Health:
    """Ready means that a search is answered, a message would be taken, what waits is extracted and
    bulk uploads go on. It needs no key."""
    status = await request.app.state.readiness.looked()
    if status is None:
        raise refused(503, "the server is not ready: see /metrics and its log", RETRY_AFTER)
    age = max(0.0, time.time() - status.last_write_at / 1000) if status.last_write_at else None
    return Health(status="ok", embedder=server.embedder, shards=server.shards, last_write_age_s=age)


@router.get("/metrics", response_class=Response, responses={**documented(), **TEXT})
async def metrics(request: Request, caller: Asking, server: Serving) -> Response:
    """For Prometheus, with a key of the default tenant that has the scope admin."""
    if caller.tenant or caller.user_id or not caller.may("admin"):
        raise refused(403, "metrics are shown to admin keys of the default tenant")
    with told():
        status = await server.writer.status()
    server.metrics.show(status, request.app.state.runner.trouble)
    return Response(server.metrics.text(), media_type=CONTENT_TYPE)
