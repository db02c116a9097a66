"""The reader and the writer as deployments of Ray Serve, and how the HTTP part asks them."""

from collections.abc import Awaitable, Callable
from typing import Any

from ray import serve
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RaySystemError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle

from lightmem_core.config import Config
from lightmem_core.errors import StoreError
from lightmem_serve.reading import AsyncReader
from lightmem_serve.writing import AsyncWriter

GONE = (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RaySystemError,
    WorkerCrashedError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
MOST_WRITES = 1_000  # at once, most of which wait for their commit


class Handles:
    """A reader or writer in another process. While it is replaced, requests are refused."""

    def __init__(self, handle: DeploymentHandle):
        self.handle = handle

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self.handle, name)

        async def asked(*args: Any, **named: Any) -> Any:
            try:
                return await method.remote(*args, **named)
            except BackPressureError as error:  # of a limit that Serve's own YAML sets
                raise StoreError("the server has more requests than it can bear") from error
            except GONE as error:
                raise StoreError("a part of the server is being replaced: try again") from error
            except RayTaskError as error:  # its own text is a traceback, which is the log's
                raise error.cause from error

        return asked


def readers_of(config: Config) -> serve.Application:
    """As many replicas as configured. Each takes whatever the server lets in: what waits for its
    turn waits here, since Serve asks a replica that is full again and again, and takes the CPU that
    would answer."""
    serving = config.serve
    at_once = serving.limits.in_flight + serving.limits.chats
    return _deployed(AsyncReader, "Reader", serving.replicas, at_once, config)


def writer_of(config: Config) -> serve.Application:
    """One replica: a second one waits for the lease of the first, and fails after 90 seconds."""
    return _deployed(AsyncWriter, "Writer", 1, MOST_WRITES, config)


def _deployed(
    part: type, name: str, replicas: int, at_once: int, config: Config
) -> serve.Application:
    options: dict[str, Any] = {
        "name": name,
        "num_replicas": replicas,
        "max_ongoing_requests": at_once,
        "ray_actor_options": {"num_cpus": config.serve.cpus},
    }
    return serve.deployment(**options)(part).bind(config)
