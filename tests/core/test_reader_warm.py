"""What is held in memory of a user is what the store holds, whoever wrote it."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from lightmem_core.config import StoreConfig
from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.long_term import commits
from lightmem_core.long_term.commits import Commits
from lightmem_core.long_term.embed import Embedding
from lightmem_core.long_term.erase import erase_rows
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import of_users
from lightmem_core.long_term.warm import WarmUsers
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Extracted

USERS = ("ada", "bob", "eve")
Put = Callable[..., tuple[Entry, ...]]


@pytest.fixture
def put(store: MemoryStore, entry: Callable[..., Entry]) -> Put:
    def store_entries(user: str, *texts: str, start: int = 0) -> tuple[Entry, ...]:
        rows = tuple(
            entry(text, at, user_id=user, position=at) for at, text in enumerate(texts, start)
        )
        (row,) = Embedding(HashEmbedder(16))([Extracted(user, (), rows)])
        store.shards[0].insert(to_table([row], Extracted), "run-1")
        return row.entries

    return store_entries


@pytest.fixture
def reader(store_config: StoreConfig, store: MemoryStore) -> WarmUsers:
    """Of another process."""
    return WarmUsers(MemoryStore.open(store_config))


def plain(entries: list[Entry]) -> list[tuple[str, str, int]]:
    return [(entry.id, entry.text, entry.gen) for entry in entries]


def held(reader: WarmUsers) -> list[object]:
    return [reader.of(user).stored for user in USERS]


def reworded(store: MemoryStore, entry: Entry) -> None:
    now = replace(entry, text=f"{entry.text} again", gen=entry.gen + 1, run_id="run-1")
    store.shards[0].update(to_table([now], Entry))


def test_a_commit_makes_only_the_users_it_touched_be_read_again(
    store: MemoryStore, put: Put, reader: WarmUsers
):
    entries = [put(user, "it rains", "it snows")[0] for user in USERS]
    before = held(reader)
    put("bob", "the roof leaks", start=5)
    added = held(reader)
    assert [now is then for now, then in zip(added, before, strict=True)] == [True, False, True]
    reworded(store, entries[2])
    changed = held(reader)
    assert [now is then for now, then in zip(changed, added, strict=True)] == [True, True, False]
    assert reader.of("eve").stored[0].text == "it rains again"


def test_joining_fragments_and_indexing_touch_nobody(
    store: MemoryStore, put: Put, reader: WarmUsers
):
    for at in range(3):
        for user in USERS:
            put(user, f"it rains {at}", start=at)
    before = held(reader)
    store.shards[0].compact()
    assert all(now is then for now, then in zip(held(reader), before, strict=True))
    store.shards[0].entries.delete(of_users(["bob"]))
    assert reader.of("bob").stored == []


def test_an_erased_user_is_dropped_when_anybody_is_asked_for(
    store: MemoryStore, put: Put, reader: WarmUsers
):
    for user in USERS:
        put(user, "it rains")
    held(reader)
    erase_rows(store, "eve")
    assert reader.of("ada").stored
    assert list(reader._held) == ["ada"]
    assert reader._size == reader.of("ada").size


@pytest.mark.parametrize("seed", range(2))
def test_what_is_held_is_what_is_stored_after_any_commits(
    store: MemoryStore, put: Put, reader: WarmUsers, seed: int
):
    chance, shard = random.Random(seed), store.shards[0]
    for step in range(25):
        user = chance.choice(USERS)
        known = shard.entries_of([user], tombstones=True)
        change = chance.choice(["put", "reword", "reword", "delete", "compact", "erase", "nothing"])
        if change == "put" or (change == "reword" and not known):
            put(user, "it rains", start=step)
        elif change == "reword":
            reworded(store, chance.choice(known))
        elif change == "delete":
            shard.entries.delete(f"{of_users([user])} AND position % 2 = 0")
        elif change == "compact":
            shard.compact()
        elif change == "erase":
            erase_rows(store, user)
        for asked in chance.sample(USERS, 2):
            now = shard.entries_of([asked], tombstones=True)
            assert plain(list(reader.of(asked).stored)) == plain(now)


def test_a_reader_that_was_left_far_behind_trusts_nothing(
    store: MemoryStore, put: Put, monkeypatch: pytest.MonkeyPatch
):
    put("ada", "it rains")
    follower = Commits(store.shards[0].entries)
    put("bob", "it snows")
    version, touched = follower.touched("ada")
    assert touched < version
    monkeypatch.setattr(commits, "MOST_VERSIONS", 2)
    for at in range(3):
        put("bob", f"it snows {at}", start=at + 1)
    assert follower.touched("ada")[0] == follower.touched("ada")[1]


def test_a_bulk_of_rows_touches_everybody(
    store: MemoryStore, put: Put, monkeypatch: pytest.MonkeyPatch
):
    follower = Commits(store.shards[0].entries)
    monkeypatch.setattr(commits, "MOST_ROWS", 2)
    put("bob", "it rains", "it snows", "it hails")
    version, touched = follower.touched("ada")
    assert touched == version


def test_memory_is_bounded_by_entries_and_users(store_config: StoreConfig, put: Put):
    for user in USERS:
        put(user, "it rains", "it snows")
    reader = WarmUsers(MemoryStore.open(store_config), capacity=6)
    held(reader)
    assert [user for user in USERS if user in reader._held] == ["bob", "eve"]
    for number in range(20):
        reader.of(f"nobody-{number}")
    assert len(reader._held) <= 6
