"""The replies of a language model, saved beside the store before anything is made of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import ray

from lightmem_core import factory
from lightmem_core.config import MemoryConfig
from lightmem_core.errors import BudgetError, LightMemError
from lightmem_core.llm.chat import Chat, Note, Reply
from lightmem_core.llm.usage import Usage, counted
from lightmem_core.long_term.run_files import REPLIES, folder_of
from lightmem_core.types import stable_id
from lightmem_pipelines.files import RunFiles

IN_FLIGHT = 16  # where a client does not say, and there is a budget to keep
A_MINUTE = ("requests_per_minute", "tokens_per_minute")
NOTES = "notes"  # the kind of the files that say what was wrong with replies
FIELDS = tuple(Reply.__dataclass_fields__)


class RunReplies:
    """A file for each call that a run has paid for. What is there is not asked for again, however
    often the run is interrupted. Beside them lie notes of what was wrong with replies.

    `monitor` hears of every call. If there is a budget, it is asked before each one, of which
    `places` are at once under way in this process: when the budget is spent, those arrive.
    """

    def __init__(self, files: RunFiles, monitor: Any = None, places: int | None = None):
        self.files = files
        self.monitor = monitor
        self.places = asyncio.Semaphore(places) if places else None
        self.closed: LightMemError | None = None

    @classmethod
    def of(cls, config: MemoryConfig, files: RunFiles, monitor: Any, capped: bool) -> RunReplies:
        """With a budget, as many at once as the client of the model has in flight."""
        places = concurrency(factory.chat(config)) if capped and config.llm is not None else None
        return cls(files, monitor, (places or IN_FLIGHT) if capped else None)

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
        self.files.write_json(folder_of(user_id), key, self._of(user_id, stage, key) | call)
        if self.monitor is not None:
            del call["text"]
            self.monitor.paid.remote(call | {"stage": stage})

    def note(self, user_id: str, stage: str, note: Note) -> None:
        told = asdict(note) | {
            "replies": [f"{folder_of(user_id)}/{key}.json" for key in note.replies]
        }
        name = stable_id(note.kind, user_id, note.key)
        self.files.write_json(NOTES, name, self._of(user_id, stage, note.key) | told)

    @asynccontextmanager
    async def paying(self) -> AsyncIterator[None]:
        """Hold a place until the reply is saved and counted. Raise BudgetError if none is left."""
        if self.places is None:
            yield
            return
        async with self.places:
            if spent := await asyncio.to_thread(ray.get, self.monitor.spent.remote()):
                raise BudgetError(spent)
            yield

    def close(self, error: LightMemError) -> None:
        """Ask for nothing more in this process: the run is to stop."""
        self.closed = self.closed or error

    def _of(self, user_id: str, stage: str, key: str) -> dict[str, Any]:
        return {"user_id": user_id, "run": self.files.run_id, "stage": stage, "key": key}


def concurrency(chat: Chat) -> int | None:
    """How many requests a client has in flight at most, if it says so in its options."""
    return getattr(getattr(chat, "options", None), "concurrency", None)


def shared_out(memory: MemoryConfig, processes: int) -> MemoryConfig:
    """With limits a minute that so many processes keep together."""
    if memory.llm is None or processes == 1:
        return memory
    options = memory.llm.options
    shares = {name: options[name] / processes for name in A_MINUTE if options.get(name)}
    llm = memory.llm.model_copy(update={"options": options | shares})
    return memory.model_copy(update={"llm": llm})


def calls(files: RunFiles) -> Iterator[dict[str, Any]]:
    """What a run has saved of each of its calls, in any order."""
    return files.read_deep(REPLIES)


def usage(files: RunFiles) -> Usage:
    """What a run has used, counted in its files: retries cannot skew it."""
    return Usage.of(calls(files))


def reply_counts(files: RunFiles, asked: int) -> dict[str, int]:
    """What became of the replies of a run, over all its attempts, and how many were `asked` for."""
    return {"asked": asked, **counted(files.read_deep(NOTES))}
