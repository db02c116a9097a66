"""Runs whose generator answers differently each time store each memory once, and one at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lightmem_core import Config
from lightmem_core.config import Component
from lightmem_core.errors import InputError, StoreError
from lightmem_core.long_term.store import MemoryStore
from lightmem_pipelines.backfill import BackfillRequest, backfill
from lightmem_pipelines.running import running

pytestmark = pytest.mark.ray


def chats(*users: str) -> list[dict[str, Any]]:
    return [
        {
            "user_id": user,
            "session_id": f"s{session}",
            "position": position,
            "role": "user",
            "content": f"{user} says {session} {position}",
            "timestamp": 1_700_000_000 + 86_400 * session + position,
        }
        for user in users
        for session in range(2)
        for position in range(4)
    ]


@pytest.fixture
def unsteady(config: Config) -> Config:
    generator = Component(use="tests.pipelines.unsteady:UnsteadyGenerator")
    memory = config.memory.model_copy(update={"generator": generator})
    return config.model_copy(update={"memory": memory})


def said(config: Config) -> list[str]:
    """What is in the store, less the words that differ."""
    store = MemoryStore.open(config.memory.store)
    rows = [row for s in store.shards for row in s.entries.search().to_list()]
    return sorted(row["text"].rpartition(" ")[0] for row in rows)


def test_another_command_over_what_a_killed_run_began_stores_each_memory_once(
    unsteady: Config, write_lines
):
    first = write_lines("first.jsonl", chats("ada", "ben"))
    _killed_between_entries_and_messages(unsteady, first)
    assert len(said(unsteady)) == 16  # all entries, and no message
    rows = chats("ada", "ben", "cleo")
    done = backfill(
        unsteady, BackfillRequest((write_lines("all.jsonl", rows),), progress=False)
    ).report
    assert (done["messages"]["stored"], done["entries"]) == (24, 24)
    assert said(unsteady) == sorted(row["content"] for row in rows)


def _killed_between_entries_and_messages(config: Config, source: str) -> None:
    """Leave what a run leaves whose processes die all at once."""
    backfill(config, BackfillRequest((source,), progress=False))
    store = MemoryStore.open(config.memory.store)
    store.runs.write(replace(store.runs.newest(), status="running", report={}))
    for shard in store.shards:
        shard.messages.delete("true")


def test_only_one_of_them_is_at_work_at_once(unsteady: Config, write_lines):
    source = write_lines("in.jsonl", chats("ada"))
    backfill(unsteady, BackfillRequest((source,), progress=False))
    store = MemoryStore.open(unsteady.memory.store)
    other = {"run": "backfill-1", "varies": True}
    with running(store, "retry", other), pytest.raises(StoreError, match="wait until it ends"):
        backfill(unsteady, BackfillRequest((source,), progress=False))
    assert said(unsteady) == sorted(row["content"] for row in chats("ada"))


def test_a_run_is_resumed_by_its_name_alone(unsteady: Config, write_lines):
    source = write_lines("first.jsonl", chats("ada", "ben"))
    _killed_between_entries_and_messages(unsteady, source)
    ledger = MemoryStore.open(unsteady.memory.store).runs
    killed = ledger.newest()
    request = BackfillRequest((), resume=killed.id, progress=False)
    finished = backfill(unsteady, request)
    assert (finished.id, finished.request) == (killed.id, killed.request)
    assert said(unsteady) == sorted(row["content"] for row in chats("ada", "ben"))
    with pytest.raises(InputError, match="name what to read"):
        backfill(unsteady, BackfillRequest((), progress=False))
