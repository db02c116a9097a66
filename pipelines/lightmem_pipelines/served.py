"""`use: serve`: the summarizer of lightmem_serve, called by a handle, without HTTP between."""

from __future__ import annotations

import asyncio
from dataclasses import replace
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

from lightmem_core.errors import ConfigError
from lightmem_core.llm.chat import ChatRequest, Rejected, Reply, TooLong
from lightmem_core.llm.options import SUMMARIZER_URL, Options
from lightmem_core.llm.patience import Patience, Server, Signs
from lightmem_core.llm.responses import told

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
    One that failed `attempts` times while others were answered is rejected.
    The server's chats reach the same model at `base_url`.
    """

    model: str = Field(min_length=1)
    app: str = "summarizer"
    deployment: str = "Summarizer:llm"
    base_url: str = SUMMARIZER_URL
    concurrency: int = Field(default=64, ge=1)
    timeout_s: float = Field(default=600, gt=0)
    give_up_s: float = Field(default=600, ge=0)
    attempts: int = Field(default=3, ge=1)
    pause_s: float = Field(default=1, gt=0)


class ServedChat:
    """Asks a deployment of Ray Serve, which spreads the requests over its replicas.

    It may be made anywhere and sent to another process: the deployment is looked up by the first
    request.
    """

    def __init__(self, **options: Any):
        self.options = ServedOptions.of(options)
        self.name, self.key = self.options.model, self.options.key
        self._line: Line | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_line": None}

    async def complete(self, request: ChatRequest) -> Reply:
        """Raise TooLong or Rejected for this request, LLMUnavailableError when the deployment stays
        away, ConfigError when there is none."""
        if self._line is None:
            self._line = Line(self.options)
        line = self._line
        patience = Patience(Server(line.signs, self.options, line.probed, self._given_up))
        async with line.places:
            while True:
                try:
                    async with patience.turn():
                        return await line.asked(request)
                except PASSING as error:
                    words = told(_cause(error))
                await patience.endure(words)

    def _given_up(self, words: str, silent: float) -> str:
        return (
            f"the Serve application {self.options.app!r} gave no reply for {silent:.0f} seconds "
            f"({words}): see `serve status`, and run the same command again when it is healthy; no "
            "call that was answered is repeated"
        )


class Line:
    """What a process knows of the deployment."""

    def __init__(self, options: ServedOptions):
        self.options = options
        self.places = asyncio.Semaphore(options.concurrency)
        self.signs = Signs()
        self._finding = asyncio.Lock()
        self._handle: DeploymentHandle | None = None

    async def asked(self, request: ChatRequest) -> Reply:
        """One call. Of an error that another process raised only the words are kept."""
        handle = await self._found()
        try:
            async with asyncio.timeout(self.options.timeout_s):
                reply: Any = await handle.complete.remote(request)
        except (TooLong, Rejected) as error:
            self.signs.seen()
            kind = TooLong if isinstance(error, TooLong) else Rejected
            raise kind(told(_cause(error))) from None
        self.signs.seen()
        return replace(reply, model=self.options.model)

    async def probed(self, request: ChatRequest) -> Reply | None:
        try:
            return await self.asked(request)
        except (TooLong, Rejected, *PASSING):
            return None

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


def _cause(error: BaseException) -> BaseException:
    """Without the traceback of the other process."""
    return error.cause if isinstance(error, RayTaskError) else error
