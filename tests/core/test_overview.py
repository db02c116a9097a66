"""What people look at: the time line of a user, where a memory came from, and what runs changed."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from lightmem_core.config import Component, MemoryConfig, StoreConfig
from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.long_term.embed import Embedding
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.online.overview import Asked, Changes
from lightmem_core.online.reader import OnlineReader
from lightmem_core.schema import to_table
from lightmem_core.types import DELETED, Entry, Extracted, Message, Source

SAID = ("I live in York", "we adopted a beagle", "I live in Leeds", "I live in Leeds!", "tea")


@pytest.fixture
def reader(store_config: StoreConfig, store: MemoryStore) -> OnlineReader:
    hash16 = Component(use="hash", options={"dim": 16})
    return OnlineReader(
        MemoryConfig(tokenizer=Component(use="words"), embedder=hash16, store=store_config)
    )


@pytest.fixture
def said(
    store: MemoryStore, message: Callable[..., Message], entry: Callable[..., Entry]
) -> list[Entry]:
    """Five messages of a session, each an entry; every other one of the topic `home`."""
    messages = [message(text, at, state="stored") for at, text in enumerate(SAID)]
    rows = [
        entry(m.content, m.position, topic="" if m.position % 2 else "home",
              sources=(Source("s1", m.position, m.id),))
        for m in messages
    ]  # fmt: skip
    (row,) = Embedding(HashEmbedder(16))([Extracted("ada", tuple(messages), tuple(rows))])
    store.shards[0].insert(to_table([row], Extracted), "backfill-1")
    return list(row.entries)


@pytest.fixture
def change(store: MemoryStore) -> Callable[..., None]:
    """Write entries as a run changes them, at the time of its number."""

    def write(run: str, *changed: Entry) -> None:
        at = int(run.rpartition("-")[2])
        rows = [replace(e, gen=e.gen + 1, changed_by=run, changed_at=at) for e in changed]
        store.shards[0].update(to_table(rows, Entry))

    return write


def seen(changes: Changes) -> list[tuple[str, str, str, str]]:
    return [(c.outcome, c.before.text, c.after.text, c.after.changed_by) for c in changes.newest]


def pages(reader: OnlineReader, topic: str | None = None, size: int = 2) -> Sequence[str]:
    texts, asked = [], Asked(size, "", topic)
    while True:
        found = reader.time_line("ada", asked)
        texts += [entry.text for entry in found.page]
        if not found.older:
            return texts
        asked = replace(asked, before=found.page[-1].id)


def test_the_pages_of_a_time_line_hold_each_memory_once_newest_first(reader, said):
    assert pages(reader) == list(reversed(SAID)) == pages(reader, size=5) == pages(reader, size=9)
    assert pages(reader, "home") == [SAID[4], SAID[2], SAID[0]]
    assert pages(reader, "") == [SAID[3], SAID[1]]
    assert pages(reader, "nothing of this") == []


def test_every_page_knows_all_the_points(reader, said, change):
    change("sleep-1", replace(said[0], superseded_by=said[2].id))
    points = reader.time_line("ada", Asked(1, said[2].id)).points
    assert [(p.said_at, p.gone) for p in points] == [(at, at == 0) for at in range(5)]
    with pytest.raises(ValueError, match="begin with the first page"):
        reader.time_line("ada", Asked(before="of-another"))
    assert reader.time_line("nobody", Asked()).page == []


def test_a_change_is_told_by_what_became_of_the_memory(reader, said, change):
    york, beagle, leeds, again, tea = said
    heir = replace(again, absorbed=leeds.sources)
    gone = replace(york, superseded_by=again.id)
    change("sleep-7", gone, replace(leeds, superseded_by=again.id), heir)
    change("online-8", replace(beagle, text="we adopted two beagles"))
    change("online-9", replace(tea, superseded_by=DELETED))
    found = reader.changes("ada", 10)
    assert seen(found) == [
        ("deleted", "tea", "tea", "online-9"),
        ("updated", "we adopted a beagle", "we adopted two beagles", "online-8"),
        ("superseded", "I live in York", "I live in York", "sleep-7"),
        ("merged", "I live in Leeds", "I live in Leeds", "sleep-7"),
    ]
    assert [c.successor and c.successor.id for c in found.newest] == [None, None, *[again.id] * 2]
    assert found.newest[2].similarity == pytest.approx(float(york.vector @ again.vector))
    assert list(found.by_run.items()) == [("online-9", 1), ("online-8", 1), ("sleep-7", 2)]
    assert len(reader.changes("ada", 10, "sleep-7").newest) == 2
    assert len(reader.changes("ada", 1).newest) == 1


def test_what_an_undo_brings_back_is_restored(reader, said, change):
    gone = replace(said[0], superseded_by=said[2].id)
    change("sleep-7", gone)
    change("undo-8", replace(said[0], gen=1))
    assert [change[0] for change in seen(reader.changes("ada", 10))] == ["restored", "superseded"]


def test_a_story_has_the_messages_around_all_that_a_memory_came_from(reader, said, change):
    change("sleep-7", replace(said[4], absorbed=said[0].sources))
    told = reader.story(said[4].id, "ada", 1)
    assert [message.content for message in told.around] == [SAID[0], SAID[1], SAID[3], SAID[4]]
    assert told.sources == {said[0].sources[0].message_id, said[4].sources[0].message_id}
    assert len(told.history.versions) == 1
    with pytest.raises(KeyError):
        reader.story(said[4].id, "ben", 1)
