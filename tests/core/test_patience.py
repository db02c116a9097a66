"""What one bad request does to the others, and how long anybody waits, whatever the client."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from lightmem_core.errors import LLMUnavailableError
from lightmem_core.llm.chat import RECORD, ChatRequest, Rejected, Reply
from lightmem_core.llm.options import Options
from lightmem_core.llm.patience import Patience, Server, Signs


class Quick(Options):
    pause_s: float = 0.001
    give_up_s: float = 30
    attempts: int = 3


class Fragile:
    """Dies of poison, with all that it holds; or is away for good."""

    def __init__(self, away: bool = False, **limits: float):
        self.signs = Signs()
        self.away = away
        self.held: set[asyncio.Future[None]] = set()
        self.deaths = 0
        self.heard: list[str] = []
        limit = Quick(**limits)  # pyright: ignore[reportArgumentType]
        self.server = Server(self.signs, limit, self.probed, "away for {1:.0f} s: {0}".format)

    async def asked(self, request: ChatRequest) -> Reply:
        said = request.messages[0]["content"]
        self.heard.append(said)
        dies = asyncio.get_running_loop().create_future()
        self.held.add(dies)
        await asyncio.wait([dies], timeout=0.01)
        if "poison" in said and not dies.done():
            self.deaths += 1
            for other in self.held:
                other.set_result(None)
            self.held.clear()
        self.held.discard(dies)
        if self.away or dies.done():
            raise ConnectionError("died")
        self.signs.seen()
        return Reply("OK", "fragile", 5, 1)

    async def probed(self, request: ChatRequest) -> Reply | None:
        try:
            return await self.asked(request)
        except ConnectionError:
            return None

    async def complete(self, words: str) -> Reply:
        patience = Patience(self.server)
        while True:
            try:
                async with patience.turn():
                    return await self.asked(request(words))
            except ConnectionError as error:
                failed = str(error)
            await patience.endure(failed)


def request(words: str) -> ChatRequest:
    return ChatRequest(({"role": "user", "content": words},), "", 16)


def outcomes(*work: Awaitable[Any]) -> list[Any]:
    async def all_of_them() -> list[Any]:
        return await asyncio.wait_for(asyncio.gather(*work, return_exceptions=True), 20)

    return asyncio.run(all_of_them())


def test_what_takes_the_model_down_is_rejected_and_what_died_with_it_is_not():
    fragile = Fragile()
    poisoned, *others = outcomes(
        fragile.complete("poison"), *(fragile.complete(f"fine {n}") for n in range(8))
    )
    assert isinstance(poisoned, Rejected)
    assert {type(other) for other in others} == {Reply}
    assert fragile.deaths <= 5


def test_what_takes_the_model_down_is_found_out_where_no_other_can_tell():
    fragile, recorded = Fragile(), []

    async def record(reply: Reply) -> None:
        recorded.append(reply)

    RECORD.set(record)
    (error,) = outcomes(fragile.complete("poison"))
    RECORD.set(None)
    assert isinstance(error, Rejected)
    assert fragile.heard == ["poison", "poison", *["Say OK.", "poison"] * 2, "Say OK."]
    assert [reply.text for reply in recorded] == ["OK"] * 3  # paid, so counted


def test_in_an_outage_one_tiny_request_tells_for_all_and_nobody_is_rejected():
    fragile = Fragile(away=True, give_up_s=0.3)
    found = outcomes(*(fragile.complete(str(n)) for n in range(8)))
    assert {type(error) for error in found} == {LLMUnavailableError}
    assert "away for 0 s: died" in str(found[0])
    assert fragile.heard.count("Say OK.") <= len(fragile.heard) / 4


@pytest.mark.parametrize("wait_s", [None, 0.5])
def test_pauses_double_and_are_never_longer_than_what_is_left(wait_s: float | None):
    async def pauses() -> list[float]:
        patience = Patience(Fragile(pause_s=4, give_up_s=30).server)
        return [patience.pause("busy", wait_s) for _ in range(5)]

    found = asyncio.run(pauses())
    if wait_s is not None:
        assert found == [0] * 5  # everybody waits for that, not this request alone
    else:
        limits = [4, 8, 16, 30, 30]
        assert all(least / 2 <= pause <= least for pause, least in zip(found, limits, strict=True))
