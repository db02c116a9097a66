"""Ask a language model until the reply can be used, and never twice for the same reply.

Stages are called from plain threads, several at once; all they ask runs on one event loop, so that
the client sees every request of the process and can keep as many in flight as it may.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Generic, Literal, TypeVar
from uuid import uuid4

from lightmem_core.errors import STOPS, ConfigError
from lightmem_core.llm.chat import (
    RECORD,
    Chat,
    ChatRequest,
    Note,
    Rejected,
    Reply,
    SavedReplies,
    TooLong,
    identity,
)
from lightmem_core.llm.json_replies import Found, find
from lightmem_core.types import stable_id

T = TypeVar("T")

BAD_REPLY = "llm_bad_reply"
REJECTED = "llm_rejected"
TOO_LONG = "too_long"
SHOWN = 4_000  # characters of a bad reply that the model is shown
PROBLEMS = 5  # of a reply that the model is shown
NO_ROOM = (
    "the fixed prompt and the reply fill the context of the language model without any message "
    "({}): lower max_tokens in the options of the part that asks it, or give the model a longer "
    "context (max_model_len)"
)
NOTHING_TAKEN = (
    "the language model refuses even a request of one word ({}): correct memory.llm.options, or "
    "what its server was started with"
)
SAVERS = 32  # threads: where replies are saved may be far away

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parsed(Generic[T]):
    """What a reply says. `value` is what of it is valid, None if nothing is; `problems` say what is
    not, in words for the model; `rejected` counts what was left out, by kind. A reply that is
    `full` had no room for all that was asked for. Of bad replies the one of most `worth` is taken.
    """

    value: T | None
    problems: tuple[str, ...] = ()
    rejected: Mapping[str, int] = field(default_factory=dict)
    full: bool = False
    worth: int = 0


def found_in(reply: Reply, key: str) -> Found | Parsed[Any]:
    """The JSON object in a reply, or what to tell a model that gave none."""
    found = find(reply.text, key, cut=reply.finish == "length")
    if found is None:
        return Parsed(None, (f'there is no JSON object with "{key}" in it',))
    return found


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """A request on behalf of a user, `about` the messages or entries with these ids, and how its
    reply is read. One that is `divisible` can be asked in parts."""

    user_id: str
    about: tuple[str, ...]
    request: ChatRequest
    parse: Callable[[Reply], Parsed[T]]
    divisible: bool = False


class _Trial:
    """What came of a question so far: the `keys` of the bad replies, and the `best` of these."""

    def __init__(self, request: ChatRequest):
        self.asked = request
        self.keys: list[str] = []
        self.best: Parsed[Any] | None = None
        self.reason = BAD_REPLY
        self.problems: tuple[str, ...] = ()

    def learn(self, request: ChatRequest, reply: Reply, parsed: Parsed[Any]) -> None:
        if parsed.value is not None and (self.best is None or parsed.worth >= self.best.worth):
            self.best = parsed
        self.problems = parsed.problems
        self.asked = corrected(request, reply, parsed.problems)


class Asking:
    """Asks `chat`, on behalf of a stage. `saved` keeps every reply before it is read, and what was
    wrong with it.

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
        self._answered = False
        self._checks = 0
        self._unfit = ""
        self._checking = asyncio.Lock()

    async def ask(self, question: Question[T]) -> T | str:
        """What the reply says, or why it cannot be had. After the last attempt the best of what is
        valid is taken. Raise TooLong if the request does not fit or, if it is divisible, its reply
        does not; ConfigError if no request at all is taken.
        """
        trial = _Trial(question.request)
        for _ in range(self.retries + 1):
            try:
                reply = await self._answer(question.user_id, trial.asked)
            except Rejected as error:
                log.warning("a request of the stage %s was refused: %s", self.stage, error)
                trial.reason, trial.problems = REJECTED, (str(error),)
                break
            except TooLong:
                if trial.best is None:
                    raise
                break
            parsed = question.parse(reply)
            await self._judged(question, self._key(trial.asked), parsed)
            if not parsed.problems and parsed.value is not None:
                return parsed.value
            if question.divisible and (parsed.full or reply.finish == "length"):
                raise TooLong(f"the reply ends too early, after {reply.completion_tokens} tokens")
            trial.keys.append(self._key(trial.asked))
            trial.learn(question.request, reply, parsed)
        return await self._settled(question, trial)

    async def _settled(self, question: Question[T], trial: _Trial) -> T | str:
        best: Parsed[T] | None = trial.best
        if best is None or best.value is None:
            return await self.failed(question, trial.reason, trial.problems, trial.keys)
        await self._note(question, "in_part", trial.reason, best.problems, trial.keys)
        return best.value

    async def failed(
        self,
        question: Question[Any],
        reason: str,
        problems: Sequence[str],
        keys: Sequence[str] = (),
    ) -> str:
        """Keep what there is to know of a request that nothing came of. Return the reason."""
        await self._note(question, "failed", reason, problems, keys)
        return reason

    async def split(self, question: Question[Any], error: TooLong) -> None:
        await self._note(question, "split", TOO_LONG, (str(error),))

    async def _judged(self, question: Question[Any], key: str, parsed: Parsed[Any]) -> None:
        rejected = {kind: number for kind, number in parsed.rejected.items() if number}
        if parsed.problems or rejected:
            told = Note("reply", key, question.about, "", parsed.problems, rejected)
            await asyncio.to_thread(self.saved.note, question.user_id, self.stage, told)

    async def _note(
        self,
        question: Question[Any],
        kind: Literal["failed", "in_part", "split"],
        reason: str,
        problems: Sequence[str],
        keys: Sequence[str] = (),
    ) -> None:
        key, words = self._key(question.request), tuple(problems)
        told = Note(kind, key, question.about, reason, words, replies=tuple(keys))
        await asyncio.to_thread(self.saved.note, question.user_id, self.stage, told)

    async def _answer(self, user_id: str, request: ChatRequest) -> Reply:
        """Where nothing was answered yet and this is refused, a word is asked in its place: if that
        is refused too, it is not for what the users have said."""
        checks = self._checks
        try:
            return await self._reply(user_id, request)
        except (Rejected, TooLong):
            async with self._checking:
                if not self._answered and self._checks == checks:
                    await self._check(user_id, request)
                if not self._answered:
                    raise ConfigError(self._unfit) from None
            raise

    async def _check(self, user_id: str, request: ChatRequest) -> None:
        self._checks += 1
        try:
            await self._reply(user_id, bare(request))
        except TooLong as error:
            self._unfit = NO_ROOM.format(error)
        except Rejected as error:
            self._unfit = NOTHING_TAKEN.format(error)

    def _key(self, request: ChatRequest) -> str:
        return stable_id("reply", *identity(self.chat), request.key)

    async def _reply(self, user_id: str, request: ChatRequest) -> Reply:
        key = self._key(request)
        reply = await asyncio.to_thread(self.saved.get, user_id, key)
        if reply is None:
            async with self.saved.paying():
                RECORD.set(partial(self._save, user_id))
                reply = await self.chat.complete(request)
                await self._save(user_id, reply, key)
        self._answered = True
        return reply

    async def _save(self, user_id: str, reply: Reply, key: str | None = None) -> None:
        """Without a key it is only counted: nobody will ask for it again."""
        key = key or stable_id("unasked", uuid4().hex)
        await asyncio.to_thread(self.saved.put, user_id, self.stage, key, reply)


def bare(request: ChatRequest) -> ChatRequest:
    """A request of the same form that holds one word of nobody's."""
    fixed = (m for m in request.messages if m["role"] == "system")
    return replace(request, messages=(*fixed, {"role": "user", "content": "hello"}))


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
    """The results in order. The first error ends all other work, but for one of STOPS: what is
    already paid for then arrives and is saved."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    waiting, errors = set(tasks), list[BaseException]()
    try:
        while waiting and all(isinstance(error, STOPS) for error in errors):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
            errors += [error for task in done if (error := task.exception())]
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
