"""Ask a language model until the reply can be used, and never twice for the same reply.

Stages are called from plain threads, several at once; all they ask runs on one event loop, so that
the client sees every request of the process and can keep as many in flight as it may.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Generic, TypeVar

from lightmem_core.errors import BudgetError
from lightmem_core.llm.chat import Chat, ChatRequest, Rejected, Reply, SavedReplies, TooLong
from lightmem_core.llm.json_replies import Found, find
from lightmem_core.types import stable_id

T = TypeVar("T")

BAD_REPLY = "llm_bad_reply"
REJECTED = "llm_rejected"
TOO_LONG = "too_long"
SHOWN = 4_000  # characters of a bad reply that the model is shown
PROBLEMS = 5  # of a reply that the model is shown
SAVERS = 32  # threads: where replies are saved may be far away

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parsed(Generic[T]):
    """What a reply says. `value` is what of it is valid, None if nothing is; `problems` say what is
    not, in words for the model; `rejected` counts what was left out, by kind. A reply that is
    `full` had no room for all that was asked for."""

    value: T | None
    problems: tuple[str, ...] = ()
    rejected: Mapping[str, int] = field(default_factory=dict)
    full: bool = False


def found_in(reply: Reply, key: str) -> Found | Parsed[Any]:
    """The JSON object in a reply, or what to tell a model that gave none."""
    found = find(reply.text, key, cut=reply.finish == "length")
    if found is None:
        return Parsed(None, (f'there is no JSON object with "{key}" in it',))
    return found


class Asking:
    """Asks `chat`, on behalf of a stage. `saved` keeps every reply before it is read.

    A bad reply is asked for again, `retries` times at most, with the reply and what is wrong with
    it shown to the model.
    """

    def __init__(self, chat: Chat, saved: SavedReplies, stage: str, retries: int = 2):
        if retries < 0:
            raise ValueError("retries must be 0 or more")
        self.chat = chat
        self.saved = saved
        self.stage = stage
        self.retries = retries
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def taken_counts(self) -> Counter[str]:
        """What was counted since this was last called: replies `asked` for and `reused`, those that
        were `bad`, what was `rejected_*` in those that were used, requests `failed` and `split`."""
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return taken

    def count(self, **counts: int) -> None:
        with self._lock:
            self._counts.update({name: number for name, number in counts.items() if number})

    async def ask(
        self,
        user_id: str,
        request: ChatRequest,
        parse: Callable[[Reply], Parsed[T]],
        divisible: bool = False,
    ) -> T | str:
        """What the reply says, or why it cannot be had. After the last attempt what is valid is
        taken. Raise TooLong if the request does not fit or, if it is `divisible`, its reply does
        not.
        """
        usable: Parsed[T] | None = None
        asked = request
        for _ in range(self.retries + 1):
            try:
                reply = await self._reply(user_id, asked)
            except Rejected as error:
                log.warning("a request of the stage %s was refused: %s", self.stage, error)
                return self._outcome(usable, REJECTED)
            parsed = parse(reply)
            if not parsed.problems:
                return self._outcome(parsed, BAD_REPLY)
            self.count(bad=1)
            if divisible and (parsed.full or reply.finish == "length"):
                raise TooLong(f"the reply ends too early, after {reply.completion_tokens} tokens")
            if parsed.value is not None:
                usable = parsed
            asked = corrected(request, reply, parsed.problems)
        return self._outcome(usable, BAD_REPLY)

    def _outcome(self, parsed: Parsed[T] | None, reason: str) -> T | str:
        if parsed is None or parsed.value is None:
            self.count(failed=1)
            return reason
        self.count(**{f"rejected_{kind}": number for kind, number in parsed.rejected.items()})
        return parsed.value

    async def _reply(self, user_id: str, request: ChatRequest) -> Reply:
        key = stable_id("reply", self.chat.name, request.key)
        reply = await asyncio.to_thread(self.saved.get, user_id, key)
        if reply is not None:
            self.count(reused=1)
            return reply
        reply = await self.chat.complete(request)
        self.count(asked=1)
        await asyncio.to_thread(self.saved.put, user_id, self.stage, key, reply)
        return reply


def corrected(request: ChatRequest, reply: Reply, problems: tuple[str, ...]) -> ChatRequest:
    """The request once more, with a bad reply to it and what is wrong with that."""
    text = reply.text if len(reply.text) <= SHOWN else f"{reply.text[:SHOWN]} ..."
    cut = ("it was cut off: be brief",) if reply.finish == "length" else ()
    wrong = "; ".join((*cut, *problems[:PROBLEMS]))
    said = (
        {"role": "assistant", "content": text or "(nothing)"},
        {"role": "user", "content": f"This cannot be used: {wrong}. Give the whole JSON again."},
    )
    return replace(request, messages=(*request.messages, *said))


def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do all the work at once on the event loop, from a thread of one's own, and wait for it."""
    future = asyncio.run_coroutine_threadsafe(all_of(work), event_loop())
    try:
        return future.result()
    finally:
        future.cancel()  # where this thread is interrupted


async def all_of(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order. The first error ends all other work, but for a BudgetError: it lets
    what is already paid for arrive and be saved."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    if not tasks:
        return []
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        errors = [error for task in done if (error := task.exception())]
        if errors and all(isinstance(error, BudgetError) for error in errors):
            await asyncio.wait(tasks)
        if errors:
            raise errors[0]
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def event_loop() -> asyncio.AbstractEventLoop:
    """This process's own, in a thread that ends with the process."""
    with _STARTING:
        return _started(os.getpid())


_STARTING = threading.Lock()


@cache
def _started(_process: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(SAVERS, "saved-replies"))
    threading.Thread(target=loop.run_forever, name="llm", daemon=True).start()
    return loop
