"""What the parts of a writer share."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from lightmem_core import factory
from lightmem_core.config import Config
from lightmem_core.llm.usage import Usage
from lightmem_core.long_term.runs import Run, new_run_id
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.long_term.tables import now_ms
from lightmem_core.online.due import Backlogs
from lightmem_core.online.inbox import Inbox
from lightmem_core.online.locks import Gate, Users, WriterHold
from lightmem_core.online.replies import StoredReplies
from lightmem_core.online.stages import Stages


class Shared:
    """An open store and the one process that writes to it online, as the run `run_id`."""

    def __init__(self, config: Config):
        self.config = config
        model = VectorModel.of(factory.embedder(config.memory))
        self.store = MemoryStore.create(config.memory.store, model)
        numbers = range(self.store.shard_count)
        self.inboxes = [Inbox(self.store.database, number) for number in numbers]
        self.hold, self.gate, self.users = WriterHold(self.store), Gate(), Users()
        after_ms = config.serve.flush_after_s * 1000
        self.backlogs = Backlogs(config.memory.buffer_tokens, after_ms)
        self.started_at = now_ms()
        self.run_id = new_run_id("online", self.started_at, os.getpid())
        self.last_write_at = 0
        self.sleeping = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._locks |= {inbox.name: threading.Lock() for inbox in self.inboxes}
        self._locks |= {_name(shard): threading.Lock() for shard in self.store.shards}
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()

    @cached_property
    def replies(self) -> StoredReplies:
        return StoredReplies(self.store, self.writing)

    @cached_property
    def stages(self) -> Stages:
        return Stages(self.config.memory, self.replies)

    @contextmanager
    def writing(self, place: Inbox | Shard | None = None) -> Iterator[None]:
        """Hold what must be held around a commit, that of one inbox or shard at a time: no erase
        is under way, and the store is this process's. Never held twice by a thread.

        Raise StoreError also if the store was lost during the commit: what it wrote is in the
        store, but another process may have begun without it, so it is not acknowledged."""
        with self.gate.shared():
            self.hold.confirm()
            before = place.commits if place else None
            if place is None:
                yield
            else:
                with self._locks[place.name if isinstance(place, Inbox) else _name(place)]:
                    yield
            self.hold.confirm()
        if place is None or place.commits != before:
            self.last_write_at = now_ms()

    def new_run(self, kind: str, request: dict[str, Any]) -> Run:
        started = now_ms()
        run_id = new_run_id(kind, started, os.getpid())
        return Run(run_id, kind, "running", started, request=request)

    def write_run(self, run: Run) -> None:
        with self.writing():
            self.store.runs.write(run)

    def inbox_for(self, user_id: str) -> Inbox:
        return self.inboxes[self.store.shard_number(user_id)]

    def count(self, **counts: int) -> None:
        """Add to what this run has done."""
        with self._counting:
            self._counts.update(counts)

    def paid(self, usage: Usage) -> None:
        if usage.calls:
            self.count(calls=usage.calls, tokens_in=usage.tokens_in, tokens_out=usage.tokens_out)

    @property
    def counts(self) -> dict[str, int]:
        with self._counting:
            return dict(self._counts)


def _name(shard: Shard) -> str:
    return f"shard_{shard.number}"
