"""How fast a server is asked: requests and tokens per minute, and requests in flight.

Everything here belongs to one event loop. Times are those of its clock, in seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Pace:
    """`per_minute` units a minute, evenly spread, so that no burst uses up the minute.

    A minute holds no more than that and the last request, which is not cut. None: no limit.
    """

    def __init__(self, per_minute: float | None):
        self.unit_s = 60 / per_minute if per_minute else 0.0
        self.free_at = 0.0
        self._corrected = asyncio.Event()

    async def take(self, units: float) -> None:
        """Wait until what was taken before is paid off by time, then take `units`."""
        while (wait := self.free_at - now()) > 0:
            self._corrected.clear()
            try:
                await asyncio.wait_for(self._corrected.wait(), wait)
            except TimeoutError:
                break
        self.free_at = max(self.free_at, now()) + units * self.unit_s

    def correct(self, units: float) -> None:
        """Take more units, or give some back, now that the true number is known."""
        self.free_at += units * self.unit_s
        self._corrected.set()


class Governor:
    """Requests and tokens per minute, first come first served. Apart from concurrency: a server
    may allow many requests at once and few in a minute, or the reverse."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None):
        self.requests = Pace(requests_per_minute)
        self.tokens = Pace(tokens_per_minute)
        self._turn = asyncio.Lock()

    async def admit(self, tokens: float) -> None:
        """Wait until a request that will take about so many tokens may be sent."""
        async with self._turn:
            await self.tokens.take(tokens)
            await self.requests.take(1)

    def settle(self, expected: float, used: float) -> None:
        """The request took `used` tokens where `expected` were admitted."""
        self.tokens.correct(used - expected)


class Window:
    """At most `most` requests in flight, fewer while the server says that it is overloaded."""

    def __init__(self, most: int):
        self.most = most
        self.limit = float(most)
        self.in_flight = 0
        self._cut_at = -1.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold one of the places, first come first served."""
        await self._enter()
        try:
            yield
        finally:
            self._leave()

    def grow(self) -> None:
        """A request was answered: one place more for each round of answers."""
        self.limit = min(float(self.most), self.limit + 1 / self.limit)
        self._admit()

    def shrink(self, sent_at: float) -> None:
        """A request was turned away: half the places, once for all that were sent together."""
        if sent_at > self._cut_at:
            self.limit = max(1.0, self.limit / 2)
            self._cut_at = now()

    async def _enter(self) -> None:
        if not self._waiting and self.in_flight < int(self.limit):
            self.in_flight += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self._leave()
            raise

    def _leave(self) -> None:
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.in_flight < int(self.limit):
            place = self._waiting.popleft()
            if not place.done():
                self.in_flight += 1
                place.set_result(None)


def now() -> float:
    return asyncio.get_running_loop().time()
