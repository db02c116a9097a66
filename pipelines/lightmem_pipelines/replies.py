"""The replies of a language model, saved beside the store before anything is made of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import ray

from lightmem_core import factory
from lightmem_core.config import MemoryConfig
from lightmem_core.errors import BudgetError, LightMemError
from lightmem_core.llm.chat import Chat, ChatRequest, Reply
from lightmem_core.llm.usage import Usage
from lightmem_core.long_term.run_files import REPLIES, folder_of
from lightmem_pipelines.files import RunFiles

IN_FLIGHT = 16  # where a client does not say, and there is a budget to keep
FIELDS = tuple(Reply.__dataclass_fields__)


class RunReplies:
    """A file for each call that a run has paid for. What is there is not asked for again, however
    often the run is interrupted.

    `monitor` hears of every call. If there is a budget (`capped`), it is asked before each one.
    """

    def __init__(self, files: RunFiles, monitor: Any = None, capped: bool = False):
        self.files = files
        self.monitor = monitor
        self.capped = capped
        self.closed: LightMemError | None = None

    def client(self, config: MemoryConfig, kind: str) -> Chat | None:
        """What a generator or updater asks through; None: whatever is configured."""
        if not self.capped or not factory.asks_llm(kind, getattr(config, kind)):
            return None
        return CappedChat(factory.chat(config), self.monitor)

    def get(self, user_id: str, key: str) -> Reply | None:
        """Raise what closed this where there is no reply yet."""
        found = self.files.json_of(folder_of(user_id), key)
        if found is not None:
            return Reply(**{name: found[name] for name in FIELDS})
        if self.closed is not None:
            raise self.closed
        return None

    def put(self, user_id: str, stage: str, key: str, reply: Reply) -> None:
        call = asdict(reply)
        whose = {"user_id": user_id, "run": self.files.run_id, "stage": stage, "key": key}
        self.files.write_json(folder_of(user_id), key, whose | call)
        if self.monitor is not None:
            del call["text"]
            self.monitor.paid.remote(call | {"stage": stage})

    def close(self, error: LightMemError) -> None:
        """Ask for nothing more in this process: the run is to stop."""
        self.closed = self.closed or error


class CappedChat:
    """Asks nothing more once the run's budget is spent, and raises BudgetError. What is in flight
    then arrives and is kept: no more than the client has in flight at once."""

    def __init__(self, chat: Chat, monitor: Any):
        self.chat = chat
        self.name = chat.name
        self.monitor = monitor
        self.places = asyncio.Semaphore(concurrency(chat) or IN_FLIGHT)

    async def complete(self, request: ChatRequest) -> Reply:
        async with self.places:
            if spent := await asyncio.to_thread(ray.get, self.monitor.spent.remote()):
                raise BudgetError(spent)
            return await self.chat.complete(request)


def concurrency(chat: Chat) -> int | None:
    """How many requests a client has in flight at most, if it says so in its options."""
    return getattr(getattr(chat, "options", None), "concurrency", None)


def calls(files: RunFiles) -> Iterator[dict[str, Any]]:
    """What a run has saved of each of its calls, in any order."""
    return files.read_deep(REPLIES)


def usage(files: RunFiles) -> Usage:
    """What a run has used, counted in its files: retries cannot skew it."""
    return Usage.of(calls(files))


def taken_counts(part: Any) -> dict[str, int]:
    """What a generator or updater has counted of its replies since this was last called; nothing
    of one that asks no language model."""
    asking = getattr(part, "asking", None)
    return dict(asking.taken_counts()) if asking is not None else {}
