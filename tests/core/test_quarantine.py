"""What a run could not extract is found again, and settled once."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from lightmem_core.history import ordered_history, stored_history
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Extracted, Message, Source

MakeMessage = Callable[..., Message]
MakeEntry = Callable[..., Entry]


@pytest.fixture
def shard(store: MemoryStore) -> Shard:
    return store.shards[0]


@pytest.fixture
def messages(message: MakeMessage) -> list[Message]:
    """Four of each of two users; every second one failed."""
    failed = {"state": "quarantined", "reason": "llm_bad_reply"}
    return [
        message(f"{user} {at}", at, user_id=user, **(failed if at % 2 else {"state": "no_facts"}))
        for user in ("ada", "ben")
        for at in range(4)
    ]


def insert(shard: Shard, messages: Sequence[Message], run: str, *entries: Entry) -> int:
    by_user = {m.user_id: tuple(o for o in messages if o.user_id == m.user_id) for m in messages}
    rows = [
        Extracted(user, own, tuple(e for e in entries if e.user_id == user))
        for user, own in by_user.items()
    ]
    return shard.insert(to_table(rows, Extracted), run)


def states(shard: Shard) -> dict[str, tuple[str, str]]:
    rows = shard.messages.to_arrow().to_pylist()
    return {row["content"]: (row["state"], row["run_id"]) for row in rows}


def test_only_the_failed_messages_of_the_named_runs_are_found(
    shard: Shard, messages: list[Message]
):
    insert(shard, messages[:4], "run-1")
    insert(shard, messages[4:], "run-2")
    assert shard.quarantined_sizes(["run-1"]) == {"ada": 2}
    assert shard.quarantined_sizes(["run-1", "run-2", "run-3"]) == {"ada": 2, "ben": 2}
    found = shard.quarantined(["run-1", "run-2"], ["ben"])
    assert {m.content for m in found} == {"ben 1", "ben 3"}
    assert shard.quarantined(["run-1"], ["ben"]) == []
    assert shard.quarantined_sizes(["x' OR '1'='1"]) == {}


def test_a_retry_settles_them_once_and_takes_over_what_fails_again(
    shard: Shard, messages: list[Message], entry: MakeEntry, axis: Callable[[int], np.ndarray]
):
    insert(shard, messages, "run-1")
    tried = shard.quarantined(["run-1"], ["ada", "ben"])
    settled = [replace(m, state="stored", reason="") for m in tried if m.user_id == "ada"]
    failed = [replace(m, reason="llm_rejected") for m in tried if m.user_id == "ben"]
    sources = tuple(Source(m.session_id, m.position, m.id) for m in settled)
    fact = entry("what Ada said", vector=axis(0), sources=sources)
    for _ in range(2):
        assert insert(shard, [*settled, *failed], "retry-1", fact) == 0
        assert shard.entries.count_rows() == 1
        assert states(shard) == {
            "ada 0": ("no_facts", "run-1"),
            "ada 1": ("stored", "retry-1"),
            "ada 2": ("no_facts", "run-1"),
            "ada 3": ("stored", "retry-1"),
            "ben 0": ("no_facts", "run-1"),
            "ben 1": ("quarantined", "retry-1"),
            "ben 2": ("no_facts", "run-1"),
            "ben 3": ("quarantined", "retry-1"),
        }
    assert shard.quarantined_sizes(["run-1"]) == {}
    assert shard.quarantined_sizes(["retry-1"]) == {"ben": 2}


def test_stored_messages_stand_in_the_order_of_their_history(shard: Shard, message: MakeMessage):
    read = [
        message(f"{session} {at}", position=position, session=session, said_at=time + at)
        for session, time, position in (("b", 10, -1), ("a", 20, 0))
        for at in range(3)
        for position in [position if position < 0 else at]
    ]
    history = ordered_history(read)
    failed = [replace(m, state="quarantined") for m in history.messages]
    insert(shard, failed[::-1], "run-1")
    again = stored_history(shard.quarantined(["run-1"], ["ada"]))
    assert [m.id for m in again.messages] == [m.id for m in history.messages]
