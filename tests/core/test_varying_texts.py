"""Memories are stored once, also by a generator that says it differently each time it is asked."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lightmem_core import factory, load_config
from lightmem_core.config import Component, MemoryConfig
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Extracted, Message, Source

Attempt = Callable[..., Extracted]


class Dead(Exception):
    """The writer died."""


class DeadTable:
    """A table whose writer dies before it commits."""

    def __init__(self, table: object):
        self.schema = table.schema  # pyright: ignore[reportAttributeAccessIssue]

    def __getattr__(self, name: str) -> None:
        raise Dead


@pytest.fixture
def attempt(
    message: Callable[..., Message], entry: Callable[..., Entry], axis: Callable[..., np.ndarray]
) -> Attempt:
    """What an attempt makes of the messages at some places of a session."""

    def extracted(number: int, places: range = range(3), state: str = "stored") -> Extracted:
        said = [message(f"message {at}", at, state=state) for at in places]
        entries = [
            entry(f"told by attempt {number}", m.position, sources=(Source("s1", at, m.id),))
            for at, m in zip(places, said, strict=True)
            if state == "stored"
        ]
        with_vectors = [replace(e, vector=axis(e.position)) for e in entries]
        return Extracted("ada", tuple(said), tuple(with_vectors))

    return extracted


@pytest.fixture
def shard(store: MemoryStore) -> Shard:
    return store.shards[0]


def insert(shard: Shard, extracted: Extracted, run_id: str) -> None:
    shard.insert(to_table([extracted], Extracted), run_id, varies=True)


def cut_off(shard: Shard, extracted: Extracted, run_id: str) -> None:
    """Die between the entries and their messages."""
    dying = replace(shard, messages=DeadTable(shard.messages))  # pyright: ignore[reportArgumentType]
    with pytest.raises(Dead):
        dying.insert(to_table([extracted], Extracted), run_id)


def texts(shard: Shard) -> list[str]:
    return [entry.text for entry in shard.entries_of(["ada"], tombstones=True)]


def test_what_a_killed_run_left_is_dropped_and_written_once(shard: Shard, attempt: Attempt):
    insert(shard, attempt(1, range(2)), "run-1")
    cut_off(shard, attempt(1, range(2, 5)), "run-1")
    assert shard.drop_orphans(["run-1"]) == 3
    assert shard.drop_orphans(["run-1"]) == 0
    insert(shard, attempt(2, range(2, 5)), "run-2")
    assert texts(shard) == ["told by attempt 1"] * 2 + ["told by attempt 2"] * 3


def test_entries_of_other_runs_are_never_dropped(shard: Shard, attempt: Attempt):
    cut_off(shard, attempt(1), "run-1")
    assert shard.drop_orphans(["run-2"]) == shard.drop_orphans([]) == 0
    assert len(texts(shard)) == 3


def test_an_orphan_that_others_were_superseded_by_is_kept(shard: Shard, attempt: Attempt):
    """Else what it stands for were lost with it."""
    insert(shard, attempt(1, range(1)), "run-1")
    cut_off(shard, attempt(1, range(1, 4)), "run-1")
    stored, heir, reworded, _ = shard.entries_of(["ada"])
    changed = [
        replace(stored, superseded_by=heir.id, gen=1, changed_by="sleep"),
        replace(reworded, text="reworded", gen=1, changed_by="sleep"),
    ]
    shard.update(to_table(changed, Entry))
    assert shard.drop_orphans(["run-1"]) == 1
    assert texts(shard) == ["told by attempt 1"] * 2 + ["reworded"]


def test_an_attempt_of_what_is_stored_adds_nothing(shard: Shard, attempt: Attempt):
    """A history of which a part is stored is run again whole."""
    insert(shard, attempt(1, range(3)), "run-1")
    insert(shard, attempt(2, range(5)), "run-1")
    assert texts(shard) == ["told by attempt 1"] * 3 + ["told by attempt 2"] * 2


def test_quarantined_messages_are_tried_again(shard: Shard, attempt: Attempt):
    insert(shard, attempt(1, state="quarantined"), "run-1")
    insert(shard, attempt(2), "run-2")
    assert texts(shard) == ["told by attempt 2"] * 3


class Unsteady:
    name = "unsteady"


class Steady(Unsteady):
    deterministic = True


@pytest.mark.parametrize(
    ("use", "varies"),
    [
        ("extractive", False),
        ("verbatim", False),
        ("lightmem_core.short_term.extract:VerbatimGenerator", False),
        ("llm", True),
        (f"{__name__}:Unsteady", True),
        (f"{__name__}:Steady", False),
    ],
)
def test_which_generators_may_vary(use: str, varies: bool):
    memory = load_config().memory
    assert factory.varies(_with_generator(memory, use)) is varies


def _with_generator(memory: MemoryConfig, use: str) -> MemoryConfig:
    return memory.model_copy(update={"generator": Component(use=use)})
