"""Calls that come while one is computed are made together, each with its own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from threading import Event

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightmem_serve.batching import Batching


class Squares:
    """Notes its batches. The first one lasts until it is let go. It breaks at numbers below 0."""

    def __init__(self):
        self.batches: list[list[int]] = []
        self.begun, self.let_go = Event(), Event()

    def __call__(self, numbers: list[int]) -> list[int]:
        self.batches.append(numbers)
        self.begun.set()
        assert self.let_go.wait(10)
        for number in numbers:
            if number < 0:
                raise BREAKS[number]
        return [number**2 for number in numbers]


class Panic(BaseException):
    """As Rust's, which is no Exception."""


BREAKS = {-1: ValueError("no root"), -2: StopIteration(), -3: CancelledError(), -4: Panic("at")}
Made = Callable[[Squares, Batching[int, int]], Awaitable[None]]


def run(most: int, made: Made) -> Squares:
    """What is made of a batching whose first batch, of a 1, is still computed."""
    squares = Squares()

    async def main() -> None:
        batching = Batching(squares, most)
        first = asyncio.ensure_future(batching(1))
        assert await asyncio.to_thread(squares.begun.wait, 10)
        await made(squares, batching)
        assert await first == 1
        assert await asyncio.wait_for(batching(10), 10) == 100  # it begins again

    asyncio.run(main())
    return squares


def asked(batching: Batching[int, int], numbers: list[int]) -> list[asyncio.Future[int]]:
    return [asyncio.ensure_future(batching(number)) for number in numbers]


@settings(deadline=None)
@given(st.lists(st.integers(0, 99), max_size=20), st.integers(1, 8))
def test_what_comes_meanwhile_is_computed_together_in_order(numbers: list[int], most: int):
    async def made(squares: Squares, batching: Batching[int, int]) -> None:
        answers = asked(batching, numbers)
        await asyncio.sleep(0)
        squares.let_go.set()
        assert await asyncio.gather(*answers) == [number**2 for number in numbers]

    full = [numbers[at : at + most] for at in range(0, len(numbers), most)]
    assert run(most, made).batches == [[1], *full, [10]]


@pytest.mark.parametrize("broken", BREAKS)
def test_an_error_is_told_to_its_batch_and_to_no_other(broken: int):
    async def made(squares: Squares, batching: Batching[int, int]) -> None:
        answers = asked(batching, [2, broken, 4, 5])
        await asyncio.sleep(0)
        squares.let_go.set()
        failed = await asyncio.gather(*answers[:2], return_exceptions=True)
        assert all(isinstance(outcome, Exception) for outcome in failed)
        assert await asyncio.gather(*answers[2:]) == [16, 25]

    run(2, made)


def test_nothing_is_computed_for_who_has_left_before():
    async def made(squares: Squares, batching: Batching[int, int]) -> None:
        left, stayed = asked(batching, [2, 3])
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        squares.let_go.set()
        assert await stayed == 9

    assert run(8, made).batches == [[1], [3], [10]]


def test_who_leaves_while_it_is_computed_disturbs_no_other():
    squares = Squares()

    async def main() -> None:
        left, stayed = asked(Batching(squares, 8), [1, 2])
        assert await asyncio.to_thread(squares.begun.wait, 10)
        left.cancel()
        await asyncio.sleep(0)
        squares.let_go.set()
        assert await stayed == 4

    asyncio.run(main())
    assert squares.batches == [[1, 2]]
