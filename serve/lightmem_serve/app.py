"""The server on Ray Serve: `serve run lightmem_serve.app:build_app config=lightmem.yaml`."""

import asyncio
import warnings
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.handle import DeploymentHandle

from lightmem_core import factory, load_config
from lightmem_core.config import Config
from lightmem_core.errors import ConfigError
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_serve.access import is_loopback
from lightmem_serve.api import access_of, create_app, server_of
from lightmem_serve.deployments import Handles, readers_of, writer_of
from lightmem_serve.reading import AsyncReader
from lightmem_serve.upstream import Upstream

MOST_AT_ONCE = 1_000  # beyond the server's own limit, which answers what it refuses
HTTP_CPUS = 0.1  # of the HTTP part that does not read
CHECK_S = 10.0  # that a look at the store may take


@serve.deployment
@serve.ingress()
class Api:
    """The HTTP part. One replica: it counts what each key asks, and works on the bulk uploads. It
    reads by itself if there are no readers."""

    def __init__(self, config: Config, readers: DeploymentHandle | None, writer: DeploymentHandle):
        check_bound(config)
        check_alone()
        self.config, self.writer = config, Handles(writer)
        self.reader = AsyncReader(config) if readers is None else Handles(readers)

    def __serve_build_asgi_app__(self) -> Any:
        store = MemoryStore.open(self.config.memory.store)
        serving = self.config.serve
        server = server_of(store, self.reader, self.writer, serving, self.config.memory.llm)
        return create_app(server, access_of(store, serving))

    async def check_health(self) -> None:
        """Serve asks readers of their own by itself. With its own it stays whatever becomes of the
        store, and refuses what it cannot read: one that starts in its place would read no better,
        and answer nobody."""
        if isinstance(self.reader, AsyncReader):
            with suppress(Exception):
                async with asyncio.timeout(CHECK_S):
                    await self.reader.check_health()


class AppArgs(BaseModel):
    """Arguments on Serve's command line, or in its YAML: there `config` may also be what a file
    would hold. Without it the built-in configuration is used."""

    model_config = ConfigDict(extra="forbid")

    config: str | dict[str, Any] | None = None
    store: str | None = None


def build_app(args: AppArgs) -> serve.Application:
    """Make the store if there is none. Raise ConfigError or StoreError before anything is
    deployed."""
    # Ray, which `serve run` starts next, forks only to exec: the store's library cannot know.
    warnings.filterwarnings("ignore", message="lancedb fork support")
    config = factory.shipped(load_config(args.config, uri=args.store))
    Upstream.of(config.memory.llm)
    MemoryStore.create(config.memory.store, VectorModel.of(factory.embedder(config.memory)))
    serving = config.serve
    readers = readers_of(config) if serving.replicas else None
    deployment = Api.options(
        num_replicas=1,
        max_ongoing_requests=MOST_AT_ONCE,
        ray_actor_options={"num_cpus": HTTP_CPUS if readers else serving.cpus},
    )
    return deployment.bind(config, readers, writer_of(config))


def check_bound(config: Config) -> None:
    """Raise ConfigError if a server without keys would answer other machines."""
    host = _serve_host()
    if config.serve.auth == "off" and not is_loopback(host):
        raise ConfigError(
            f"a server without keys (auth: off) answers its own machine only, but Serve listens on "
            f"{host}: set http_options: {{host: 127.0.0.1}}, or use keys"
        )


def check_alone() -> None:
    """Raise ConfigError if there would be several: each would let a key ask as much as it may, and
    work on bulk uploads beside an erase that another makes."""
    replicas = serve.get_replica_context().world_size
    if replicas > 1:
        raise ConfigError(
            f"num_replicas: {replicas} for the deployment Api, which must be alone: leave it at 1, "
            "and set serve.replicas in the configuration for more readers"
        )


def _serve_host() -> str:
    """Serve says it in no public way; what cannot be found out counts as open to all."""
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    return getattr(getattr(client, "http_config", None), "host", "") or "an unknown address"
