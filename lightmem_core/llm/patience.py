"""How long a request is sent again, and when it or what answers is given up: for every client."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from lightmem_core.errors import LLMUnavailableError
from lightmem_core.llm.chat import RECORD, ChatRequest, Rejected, Reply
from lightmem_core.llm.governor import now

LONGEST_PAUSE = 60  # times pause_s
PROBE = ChatRequest(({"role": "user", "content": "Say OK."},), "", 16)


class Limits(Protocol):
    """Pauses double from `pause_s`. Nobody is asked any more when there was no reply at all for
    `give_up_s`. A request is rejected that failed `attempts` times while others were answered."""

    @property
    def pause_s(self) -> float: ...

    @property
    def give_up_s(self) -> float: ...

    @property
    def attempts(self) -> int: ...


class Signs:
    """Signs of life of what answers, as one event loop sees them. `replied_at` is when it last
    answered in earnest, `gone` that somebody gave it up."""

    def __init__(self) -> None:
        self.replied_at = -1.0
        self.probed_at = -1.0
        self.gone = False
        self.probing = asyncio.Lock()
        self.suspects = asyncio.Lock()

    def seen(self) -> None:
        self.replied_at, self.gone = now(), False


@dataclass(frozen=True, slots=True)
class Server:
    """What Patience knows of what answers. `ask` makes one attempt: None where there is no reply.
    `given_up` is the error after so many seconds without one, the last failure in words."""

    signs: Signs
    limits: Limits
    ask: Callable[[ChatRequest], Awaitable[Reply | None]]
    given_up: Callable[[str, float], str]


class Patience:
    """One request's. `alone` counts its failures while what answers worked."""

    def __init__(self, server: Server):
        self.server = server
        self.failures = 0
        self.alone = 0
        self.first_at: float | None = None
        self.failed_at: float | None = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Around an attempt. What may be to blame for its failures is asked without others of that
        kind, which else would be blamed with it where it takes the server down."""
        if not self.alone:
            yield
            return
        async with self.server.signs.suspects:
            if self.server.signs.gone:
                raise LLMUnavailableError(self.server.given_up("it was given up", 0))
            yield

    async def endure(self, words: str, wait_s: float | None = None) -> None:
        """Wait, after a failure, until it may be sent again. Raise Rejected if what answers works
        and it is this request that always fails, else as `pause`."""
        await self._judge(words)
        await asyncio.sleep(self.pause(words, wait_s))

    def pause(self, words: str, wait_s: float | None = None) -> float:
        """Seconds to wait here, beside the `wait_s` that are asked of everybody. Raise
        LLMUnavailableError once nobody had a reply for as long as is waited."""
        signs, limits = self.server.signs, self.server.limits
        self.failed_at = now()
        if self.first_at is None:
            self.first_at = self.failed_at
        self.failures += 1
        silent = self.failed_at - max(self.first_at, signs.replied_at)
        left = (0 if signs.gone else limits.give_up_s) - silent
        if left <= 0 or (wait_s or 0) > left:
            signs.gone = True
            asks = f"it asks to wait {wait_s:.0f} seconds, " if wait_s else ""
            raise LLMUnavailableError(self.server.given_up(asks + words, silent))
        if wait_s is not None:
            return 0
        doubled = min(2.0 ** (self.failures - 1), LONGEST_PAUSE) * limits.pause_s
        return min(doubled * random.uniform(0.5, 1), left)

    async def _judge(self, words: str) -> None:
        if self.failed_at is None:
            return
        self.alone += await self._alive(self.failed_at)
        if self.alone >= self.server.limits.attempts:
            raise Rejected(f"failed {self.failures + 1} times, last: {words}")

    async def _alive(self, since: float) -> bool:
        """Whether anything was answered since. Where nothing can tell, a tiny request is sent to
        see, one for all who ask."""
        signs = self.server.signs
        async with signs.probing:
            if max(signs.replied_at, signs.probed_at) <= since:
                signs.probed_at = now()
                reply = await self.server.ask(PROBE)
                record = RECORD.get()
                if reply is not None and record is not None:
                    await record(reply)
        return signs.replied_at > since
