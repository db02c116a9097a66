"""`use: vllm`: vLLM beside the process that asks, on the GPUs of a pool's actor."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import Any

from lightmem_core.errors import ConfigError
from lightmem_core.llm.chat import ChatRequest, Rejected, Reply, TooLong
from lightmem_core.llm.patience import Patience, Server, Signs
from lightmem_core.llm.responses import told
from lightmem_core.llm.vllm_engine import Engine, EngineDied
from lightmem_core.llm.vllm_options import VLLMOptions


class VLLMChat:
    """Asks an engine of its own, which batches what is in flight.

    It may be made anywhere, without vLLM too, and sent to another process: the engine is started by
    the first request, on the event loop that it comes from.
    """

    def __init__(self, **options: Any):
        self.options = VLLMOptions.of(options)
        self.name, self.key = self.options.name, self.options.key
        self._engines: Engines | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engines": None}

    async def complete(self, request: ChatRequest) -> Reply:
        """Raise TooLong or Rejected for this request, LLMUnavailableError when the engine cannot be
        kept alive, ConfigError when it cannot be started or takes no request at all."""
        if self._engines is None:
            self._engines = Engines(self.options)
        async with self._engines.places:
            return await self._persist(self._engines, request)

    async def aclose(self) -> None:
        """Stop the engine. Another request starts a new one."""
        engines, self._engines = self._engines, None
        if engines is not None and engines.engine is not None:
            await engines.bury(engines.engine, "closed")

    async def _persist(self, engines: Engines, request: ChatRequest) -> Reply:
        """Ask again whenever the engine dies or is silent, unless that is for this request."""
        patience = Patience(engines.server)
        while True:
            try:
                async with patience.turn():
                    return await engines.asked(request)
            except TimeoutError:
                words = f"no answer in {self.options.timeout_s:g} seconds"
            except EngineDied as error:
                words = str(error)
            await patience.endure(words)


class Engines:
    """One engine after the other."""

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
        self.signs = Signs()
        self._unfit = ""
        self._died = ""
        self._restarts: Patience | None = None
        self._starting = asyncio.Lock()

    @property
    def server(self) -> Server:
        return Server(self.signs, self.options, self._probed, self._given_up)

    async def asked(self, request: ChatRequest) -> Reply:
        """One attempt. Raise EngineDied, or TimeoutError where an engine lives and is silent."""
        engine = await self._current()
        try:
            async with asyncio.timeout(self.options.timeout_s):
                reply = await engine.complete(request)
        except EngineDied as error:
            await self.bury(engine, str(error))
            raise
        except (Rejected, TooLong):
            self._answered()
            raise
        self._answered()
        return reply

    async def bury(self, engine: Engine, words: str) -> None:
        """Forget an engine that died. Whoever comes first with the news counts it."""
        if self.engine is engine:
            self.engine, self._died = None, words
            await asyncio.to_thread(engine.close)

    async def _probed(self, request: ChatRequest) -> Reply | None:
        """An engine that is silent here too is as good as dead."""
        try:
            return await self.asked(request)
        except TimeoutError:
            if self.engine is not None:
                await self.bury(self.engine, "it answers nobody")
        except (EngineDied, Rejected, TooLong):
            pass
        return None

    def _answered(self) -> None:
        self.signs.seen()
        self._restarts = None

    async def _current(self) -> Engine:
        """The engine that runs, or the next one, after a pause."""
        async with self._starting:
            while self.engine is None:
                if self._unfit:
                    raise ConfigError(self._unfit)
                if self._died:
                    self._restarts = self._restarts or Patience(self.server)
                    await asyncio.sleep(self._restarts.pause(self._died))
                await self._start()
            return self.engine

    async def _start(self) -> None:
        try:
            self.engine = await asyncio.to_thread(Engine, self.options)
        except Exception as error:  # noqa: BLE001
            if not self._died:
                self._unfit = (
                    f"vLLM cannot start {self.options.model} ({told(error)}): correct "
                    "memory.llm.options; the log of the process says more"
                )
            self._died = told(error)

    def _given_up(self, words: str, silent: float) -> str:
        return (
            f"vLLM with {self.options.model} gave no reply for {silent:.0f} seconds ({words}): see "
            "its log, lower gpu_memory_utilization or max_model_len if it lacks memory, and run "
            "the same command again; no reply is lost"
        )
