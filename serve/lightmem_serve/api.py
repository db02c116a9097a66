"""The HTTP application, whatever it runs on: `create_app` puts the routes behind the guard."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi

from lightmem_core.config import LLMConfig, ServeConfig
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.online.jobs import JobStore
from lightmem_core.online.keys import KeyRing
from lightmem_serve import (
    explorer,
    routes_batches,
    routes_chat,
    routes_jobs,
    routes_memories,
    routes_search,
    routes_state,
    routes_users,
)
from lightmem_serve.access import Access
from lightmem_serve.backend import Server
from lightmem_serve.errors import add_handlers, refused
from lightmem_serve.guard import PUBLIC, Guard
from lightmem_serve.jobs import JobRunner
from lightmem_serve.metrics import Metrics
from lightmem_serve.routes_chat import Chat
from lightmem_serve.routes_mcp import Tools
from lightmem_serve.routes_state import Readiness
from lightmem_serve.upstream import Upstream

ABOUT = "Memories of many users: mem0's paths and fields, with where each memory came from."
ROUTES = (
    *(routes_memories, routes_search, routes_users, routes_jobs, routes_batches),
    *(routes_chat, routes_state),
)
SCHEMES = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}


def access_of(store: MemoryStore, config: ServeConfig) -> Access:
    """Who may use a server of this store."""
    ring = KeyRing(store.database) if config.auth == "keys" else None
    return Access(ring, config.requests_per_minute)


def server_of(
    store: MemoryStore, reader: Any, writer: Any, config: ServeConfig, llm: LLMConfig | None = None
) -> Server:
    """What the routes need, over a store and a way to its reader and writer. `llm` is the model
    that users chat with."""
    about = {"embedder": store.model.name, "shards": store.shard_count, "llm": llm}
    return Server(reader, writer, config, Metrics(), JobStore(store.database), **about)


def create_app(server: Server, access: Access, public: frozenset[str] = PUBLIC) -> FastAPI:
    """The routes behind the guard. Whatever else is mounted is behind it too, unless its path is
    `public`; `lightmem_serve.access.Asking` gives a route its caller."""
    app = FastAPI(
        title="LightMem",
        description=ABOUT,
        version=version("lightmem-ray"),
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        dependencies=[Depends(each_once)],
    )
    app.state.server = server
    app.state.runner = JobRunner(server)
    app.state.readiness = Readiness(server, app.state.runner)
    app.state.chat = Chat(server, Upstream.of(server.llm))
    app.state.tools = Tools.of(server)
    guard = {"limits": server.config.limits, "metrics": server.metrics}
    open_ = {"public": public | explorer.PUBLIC, "forms": explorer.FORMS}
    app.add_middleware(Guard, access=access, **open_, **guard)
    add_handlers(app)
    for routes in ROUTES:
        app.include_router(routes.router)
    app.router.routes.append(app.state.tools.route)
    explorer.install(app, access)
    app.openapi = lambda: _documented(app, public)
    return app


async def each_once(request: Request) -> None:
    """Refuse a name that stands twice in a query: of two users only one can be meant."""
    names = [name for name, _ in request.query_params.multi_items()]
    if len(set(names)) < len(names):
        raise refused(400, "a name stands twice in the query")


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Bulk uploads are worked on as long as the application runs."""
    task = asyncio.create_task(app.state.runner.run())
    async with app.state.tools.run():
        yield
    await app.state.chat.aclose()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _documented(app: FastAPI, public: frozenset[str]) -> dict[str, Any]:
    """The OpenAPI document, which says that everything needs a key."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, routes=app.routes)
        found["info"]["description"] = app.description
        found["components"]["securitySchemes"] = SCHEMES
        found["security"] = [{name: []} for name in SCHEMES]
        for path in public & found["paths"].keys():
            for operation in found["paths"][path].values():
                operation["security"] = []
        app.openapi_schema = found
    return app.openapi_schema
