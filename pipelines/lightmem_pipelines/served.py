"""`use: serve`: the summarizer of lightmem_serve, called by a handle, without HTTP between."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from pydantic import Field
from ray import serve
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle

from lightmem_core.errors import ConfigError, LLMUnavailableError
from lightmem_core.llm.chat import ChatRequest, Rejected, Reply, TooLong
from lightmem_core.llm.options import SUMMARIZER_URL, Options

LONGEST_PAUSE = 60  # times pause_s
PASSING = (
    ConnectionError,  # what the deployment raises when its engine is dead
    TimeoutError,
    RayActorError,
    NodeDiedError,
    WorkerCrashedError,
    ObjectLostError,
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)


class ServedOptions(Options):
    """`model` is the name that the replies are stored under, `app` the application on the Ray that
    the run is connected to. `concurrency` requests at most are in flight in each process; each is
    repeated, after pauses that double from `pause_s`, until `give_up_s` passed without any reply.
    The server's chats reach the same model at `base_url`.
    """

    model: str = Field(min_length=1)
    app: str = "summarizer"
    deployment: str = "Summarizer:llm"
    base_url: str = SUMMARIZER_URL
    concurrency: int = Field(default=64, ge=1)
    timeout_s: float = Field(default=600, gt=0)
    give_up_s: float = Field(default=600, ge=0)
    pause_s: float = Field(default=1, gt=0)


class ServedChat:
    """Asks a deployment of Ray Serve, which spreads the requests over its replicas.

    It may be made anywhere and sent to another process: the deployment is looked up by the first
    request.
    """

    def __init__(self, **options: Any):
        self.options = ServedOptions.of(options)
        self.name = self.options.model
        self._line: Line | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_line": None}

    async def complete(self, request: ChatRequest) -> Reply:
        """Raise TooLong or Rejected for this request, LLMUnavailableError when the deployment stays
        away, ConfigError when there is none."""
        if self._line is None:
            self._line = Line(self.options)
        async with self._line.places:
            return await self._persist(self._line, request)

    async def _persist(self, line: Line, request: ChatRequest) -> Reply:
        failures, first_at = 0, time.monotonic()
        while True:
            try:
                return await line.asked(request)
            except PASSING as error:
                if not failures:
                    first_at = time.monotonic()
                failures += 1
                silent = time.monotonic() - max(first_at, line.replied_at)
                left = self.options.give_up_s - silent
                if left <= 0:
                    raise LLMUnavailableError(self._given_up(error, silent)) from error
                doubled = min(2.0 ** (failures - 1), LONGEST_PAUSE) * self.options.pause_s
                await asyncio.sleep(min(doubled, left))

    def _given_up(self, error: Exception, silent: float) -> str:
        return (
            f"the Serve application {self.options.app!r} gave no reply in {silent:.0f} seconds "
            f"({_words(error)}): see `serve status`, and run the same command again when it is "
            "healthy; no call that was answered is repeated"
        )


class Line:
    """What a process knows of the deployment. `replied_at` is when it last answered."""

    def __init__(self, options: ServedOptions):
        self.options = options
        self.places = asyncio.Semaphore(options.concurrency)
        self.replied_at = -1.0
        self._finding = asyncio.Lock()
        self._handle: DeploymentHandle | None = None

    async def asked(self, request: ChatRequest) -> Reply:
        """One call. Of an error that another process raised only the words are kept."""
        handle = await self._found()
        try:
            async with asyncio.timeout(self.options.timeout_s):
                reply: Any = await handle.complete.remote(request)
        except TooLong as error:
            raise TooLong(_words(error)) from None
        except Rejected as error:
            raise Rejected(_words(error)) from None
        self.replied_at = time.monotonic()
        return reply

    async def _found(self) -> DeploymentHandle:
        async with self._finding:
            if self._handle is None:
                self._handle = await asyncio.to_thread(self._find)
            return self._handle

    def _find(self) -> DeploymentHandle:
        app, deployment = self.options.app, self.options.deployment
        try:
            return serve.get_deployment_handle(deployment, app_name=app)
        except (RayServeException, KeyError) as error:  # no Serve at all, or not this one
            raise ConfigError(
                f"there is no deployment {deployment!r} of a Serve application {app!r} on this "
                "Ray: bring it up with `serve deploy serve/llm.yaml`, name its Ray in "
                "pipelines.address, and its name in memory.llm.options.app"
            ) from error


def _words(error: BaseException) -> str:
    """Without the traceback of the other process."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
