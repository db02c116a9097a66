"""`use: vllm`: vLLM beside the process that asks, on the GPUs of a pool's actor."""

from __future__ import annotations

import asyncio
import time
from importlib.util import find_spec
from typing import Any

from lightmem_core.errors import ConfigError, LLMUnavailableError
from lightmem_core.llm.chat import ChatRequest, Rejected, Reply
from lightmem_core.llm.vllm_engine import Engine, EngineDied
from lightmem_core.llm.vllm_options import VLLMOptions

LONGEST_PAUSE = 60  # times pause_s


class VLLMChat:
    """Asks an engine of its own, which batches what is in flight.

    It may be made anywhere, without vLLM too, and sent to another process: the engine is started by
    the first request, on the event loop that it comes from.
    """

    def __init__(self, **options: Any):
        self.options = VLLMOptions.of(options)
        self.name = self.options.name
        self._engines: Engines | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engines": None}

    async def complete(self, request: ChatRequest) -> Reply:
        """Raise TooLong or Rejected for this request, LLMUnavailableError when the engine cannot be
        kept alive, ConfigError when it cannot be started at all."""
        if self._engines is None:
            self._engines = Engines(self.options)
        async with self._engines.places:
            return await self._persist(self._engines, request)

    async def aclose(self) -> None:
        """Stop the engine. Another request starts a new one."""
        engines, self._engines = self._engines, None
        if engines is not None and engines.engine is not None:
            await engines.bury(engines.engine)

    async def _persist(self, engines: Engines, request: ChatRequest) -> Reply:
        """Ask again whenever the engine dies, unless it seems to die of this request."""
        deaths: list[float] = []
        while True:
            engine = await engines.current()
            try:
                reply = await engine.complete(request)
            except EngineDied as error:
                deaths.append(time.monotonic())
                await engines.bury(engine)
                if len(deaths) >= self.options.attempts and engines.replied_at > deaths[0]:
                    reason = f"{len(deaths)} engines died while they held it: {error}"
                    raise Rejected(reason) from error
            else:
                engines.replied()
                return reply


class Engines:
    """One engine after the other. `replied_at` is when one last answered, `down_since` when one
    first died after that."""

    def __init__(self, options: VLLMOptions):
        if find_spec("vllm") is None:
            raise ConfigError(
                "llm 'vllm' needs vLLM, which is not installed here: pip install "
                "'lightmem-ray[vllm]' on the machines with GPUs, or use openai or serve for a "
                "model that runs elsewhere"
            )
        self.options = options
        self.places = asyncio.Semaphore(options.concurrency)
        self.engine: Engine | None = None
        self.replied_at = -1.0
        self.down_since: float | None = None
        self._unfit: ConfigError | None = None
        self._failures = 0
        self._starting = asyncio.Lock()

    async def current(self) -> Engine:
        """The engine that runs, or the next one, after a pause."""
        async with self._starting:
            while self.engine is None:
                if self._unfit:
                    raise self._unfit
                if self._failures:
                    await asyncio.sleep(self._pause())
                await self._start()
            return self.engine

    def replied(self) -> None:
        self.replied_at, self.down_since, self._failures = time.monotonic(), None, 0

    async def bury(self, engine: Engine) -> None:
        """Forget an engine that died. Whoever comes first with the news counts it."""
        if self.engine is engine:
            self.engine = None
            self._failed()
            await asyncio.to_thread(engine.close)

    async def _start(self) -> None:
        try:
            self.engine = await asyncio.to_thread(Engine, self.options)
        except Exception as error:  # noqa: BLE001
            if self.replied_at < 0 and self.down_since is None:
                self._unfit = ConfigError(
                    f"vLLM cannot start {self.options.model} ({_line(error)}): correct "
                    "memory.llm.options; the log of the process says more"
                )
            self._failed()

    def _failed(self) -> None:
        self._failures += 1
        self.down_since = self.down_since or time.monotonic()

    def _pause(self) -> float:
        """Seconds to wait before the next start. Raise LLMUnavailableError if that was tried for
        long enough."""
        down = time.monotonic() - (self.down_since or time.monotonic())
        pause = min(2.0 ** (self._failures - 1), LONGEST_PAUSE) * self.options.pause_s
        if down + pause > self.options.give_up_s:
            raise LLMUnavailableError(
                f"vLLM with {self.options.model} died or did not start {self._failures} times in "
                f"{down:.0f} seconds: see its log, lower gpu_memory_utilization or max_model_len "
                "if it lacks memory, and run the same command again; no reply is lost"
            )
        return pause


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
