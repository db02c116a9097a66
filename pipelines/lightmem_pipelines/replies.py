"""The replies of a language model, saved beside the store before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import ray

from lightmem_core.errors import BudgetError, LightMemError
from lightmem_core.llm.chat import Reply
from lightmem_core.types import stable_id
from lightmem_pipelines.budget import Usage
from lightmem_pipelines.files import RunFiles

KIND = "replies"
FIELDS = tuple(Reply.__dataclass_fields__)


def folder_of(user_id: str) -> str:
    """Where a run keeps a user's replies: erasing the user finds them without reading others."""
    return f"{KIND}/{stable_id('replies', user_id)}"


class RunReplies:
    """A file for each call that a run has paid for. What is there is not asked for again, however
    often the run is interrupted.

    `monitor` hears of every call. It is asked before each one if there is a budget (`capped`), and
    BudgetError raised once that is spent: calls in flight then end and are kept.
    """

    def __init__(self, files: RunFiles, monitor: Any = None, capped: bool = False):
        self.files = files
        self.monitor = monitor
        self.capped = capped
        self.closed: LightMemError | None = None

    def get(self, user_id: str, key: str) -> Reply | None:
        """Raise what closed this, or BudgetError, where there is no reply yet."""
        found = self.files.json_of(folder_of(user_id), key)
        if found is not None:
            return Reply(**{name: found[name] for name in FIELDS})
        if self.closed is not None:
            raise self.closed
        if self.capped and (spent := ray.get(self.monitor.spent.remote())):
            raise BudgetError(spent)
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


def calls(files: RunFiles) -> Iterator[dict[str, Any]]:
    """What a run has saved of each of its calls, in any order."""
    return files.read_deep(KIND)


def usage(files: RunFiles) -> Usage:
    """What a run has used, counted in its files: retries cannot skew it."""
    return Usage.of(calls(files))
