"""Whether the server can do its work, and what it has done."""

import time

from fastapi import APIRouter, Response

from lightmem_core.long_term.retrieve import Query
from lightmem_serve.access import Asking
from lightmem_serve.backend import Serving
from lightmem_serve.errors import RETRY_AFTER, documented, refused, told
from lightmem_serve.metrics import CONTENT_TYPE
from lightmem_serve.models import Health

router = APIRouter(tags=["state"])
TEXT = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/health", responses=documented())
async def health(server: Serving) -> Health:
    """Ready means that a search is answered and a message would be taken. It needs no key."""
    with told():
        await server.reader.search(Query(user_id="", text="ready"))
        status = await server.writer.status()
    if status.trouble:
        raise refused(503, "what waits cannot be extracted at present: see /metrics", RETRY_AFTER)
    age = max(0.0, time.time() - status.last_write_at / 1000) if status.last_write_at else None
    return Health(status="ok", embedder=server.embedder, shards=server.shards, last_write_age_s=age)


@router.get("/metrics", response_class=Response, responses={**documented(), **TEXT})
async def metrics(caller: Asking, server: Serving) -> Response:
    """For Prometheus, with a key of the default tenant that has the scope admin."""
    if caller.tenant or caller.user_id or not caller.may("admin"):
        raise refused(403, "metrics are shown to admin keys of the default tenant")
    with told():
        status = await server.writer.status()
    server.metrics.show(status)
    return Response(server.metrics.text(), media_type=CONTENT_TYPE)
