import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightmem_core.config import StoreConfig
from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.errors import StoreError
from lightmem_core.long_term.embed import Embedding
from lightmem_core.long_term.retrieve import Query, Retrieval
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.long_term.tables import now_ms
from lightmem_core.long_term.versions import entries_as_of, history
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Extracted, Source

EMBEDDER = HashEmbedder(16)
ODD = ["ada", "o'neil", "' OR 1=1 --", "ünïcödé 😀 用户", "z" * 10_000]


def tick() -> int:
    """A time after all that was written, and before all that will be."""
    time.sleep(0.002)
    now = now_ms()
    time.sleep(0.002)
    return now


@pytest.fixture
def put(entry: Callable[..., Entry]) -> Callable[..., list[Entry]]:
    """Store entries of a user and return them as stored."""

    def store_entries(
        store: MemoryStore, *texts: str, user: str = "ada", start: int = 0
    ) -> list[Entry]:
        rows = tuple(
            entry(text, at, user_id=user, sources=(Source("s1", at, f"m{at}"),))
            for at, text in enumerate(texts, start)
        )
        (row,) = Embedding(EMBEDDER)([Extracted(user, (), rows)])
        shard = store.shard_for(user)
        shard.insert(to_table([row], Extracted), "run-1")
        written = {e.id for e in rows}
        return [e for e in shard.entries_of([user], tombstones=True) if e.id in written]

    return store_entries


def change(store: MemoryStore, run: str, *entries: Entry) -> list[Entry]:
    """Write entries as a run does that changed them."""
    at = tick()
    written = [replace(e, gen=e.gen + 1, changed_by=run, changed_at=at) for e in entries]
    for new in written:
        assert store.shard_for(new.user_id).update(to_table([new], Entry)) == 0
    return written


def plain(entry: Entry) -> str:
    """All that an entry holds, but for its vector."""
    return repr(entry)


# --- history -----------------------------------------------------------------------------------


def test_a_history_lists_every_state_in_order(store: MemoryStore, put: Callable[..., list[Entry]]):
    a, b = put(store, "It rains.", "It rains again.")
    (first,) = change(store, "sleep-1", replace(b, absorbed=a.sources))
    (second,) = change(store, "sleep-2", replace(first, text="It rained twice.", vector=a.vector))
    (third,) = change(store, "undo-1", replace(second, text=b.text, vector=b.vector))
    found = history(store, b.id[:8])
    assert list(map(plain, found.states)) == list(map(plain, [b, first, second, third]))
    for state, written in zip(found.states, [b, first, second, third], strict=True):
        np.testing.assert_array_equal(state.vector, written.vector)
    assert [(v.replaced_by, v.replaced_at) for v in found.versions] == [
        (e.changed_by, e.changed_at) for e in (first, second, third)
    ]
    assert [plain(e) for e in history(store, a.id).states] == [plain(a)]


def test_more_than_nine_changes_stay_in_order(store: MemoryStore, put: Callable[..., list[Entry]]):
    (entry,) = put(store, "0")
    for number in range(1, 13):
        (entry,) = change(store, f"run-{number}", replace(entry, text=str(number)))
    store.shards[0].compact()
    assert [e.text for e in history(store, entry.id).states] == [str(n) for n in range(13)]


def test_a_commit_that_was_cut_off_is_not_in_the_history(
    store: MemoryStore, put: Callable[..., list[Entry]]
):
    (a,) = put(store, "It rains.")
    lost = replace(a, text="never seen", gen=1, changed_by="cut off", changed_at=tick())
    keep_versions(store, lost)
    assert history(store, a.id).versions == []
    assert [e.text for e in entries_as_of(store.shards[0], "ada", tick())] == ["It rains."]
    (b,) = change(store, "sleep-2", replace(a, text="It snows."))
    (version,) = history(store, a.id).versions
    assert (version.entry.text, version.replaced_by) == ("It rains.", "sleep-2")
    assert version.replaced_at == b.changed_at


def keep_versions(store: MemoryStore, entry: Entry) -> None:
    """The first half of an update, whose writer then died."""
    shard = store.shard_for(entry.user_id)
    shard._keep_versions(to_table([entry], Entry).cast(shard.entries.schema))


def test_an_unknown_entry_has_no_history(store: MemoryStore, put: Callable[..., list[Entry]]):
    put(store, "It rains.")
    with pytest.raises(StoreError, match="no entry has an id that start"):
        history(store, "' OR 1=1 --")


# --- as of a time ------------------------------------------------------------------------------


def answers(retrieval: Retrieval, user: str, as_of: int | None = None) -> list[tuple[str, float]]:
    (hits,) = retrieval([Query(user, "the beagle rains", 99, as_of=as_of)])
    return [(plain(hit.entry), hit.score) for hit in hits]


def random_change(store: MemoryStore, entries: list[Entry], chance: random.Random) -> None:
    """Merge or supersede an active entry, reword one, or bring one back."""
    old, new = sorted(chance.sample(entries, 2), key=lambda e: e.order)
    kind = chance.choice(["merge", "supersede", "reword", "back"])
    if kind == "merge":
        heir = replace(new, absorbed=(*new.absorbed, *old.absorbed, *old.sources))
        change(store, kind, replace(old, superseded_by=new.id), heir)
    elif kind == "supersede":
        change(store, kind, replace(old, superseded_by=new.id))
    elif kind == "reword":
        change(store, kind, replace(old, text=f"{old.text} again", vector=new.vector))
    else:
        change(store, kind, replace(old, superseded_by=""))


@pytest.mark.parametrize("seed", range(3))
def test_a_search_as_of_a_time_finds_what_a_search_found_then(
    store: MemoryStore, put: Callable[..., list[Entry]], seed: int
):
    chance = random.Random(seed)
    user, other = chance.sample(ODD, 2)
    retrieval = Retrieval(EMBEDDER, store)
    shard = store.shards[0]
    found = {tick(): answers(retrieval, user)}
    put(store, "bob's beagle", "bob rains", user=other)
    for step in range(9):
        entries = shard.entries_of([user], tombstones=True)
        if step < 2 or chance.random() < 0.3:
            words = [chance.choice(["beagle", "rain", "roof", "tyre"]) for _ in range(3)]
            put(store, *words, user=user, start=10 * step)
        else:
            random_change(store, entries, chance)
        found[tick()] = answers(retrieval, user)
    assert len({repr(f) for f in found.values()}) > 6
    shard.compact()
    for at, then in found.items():
        assert answers(retrieval, user, as_of=at) == then
    assert answers(retrieval, user) == found[max(found)]
    queries = [Query(user, "the beagle rains", 99, as_of=at) for at in found]
    assert [[hit.score for hit in hits] for hits in retrieval(queries)] == [
        [score for _, score in then] for then in found.values()
    ]


def test_a_change_holds_from_its_very_moment(store: MemoryStore, put: Callable[..., list[Entry]]):
    (a,) = put(store, "It rains.")
    (b,) = change(store, "sleep-1", replace(a, text="It snows."))
    texts = [
        [e.text for e in entries_as_of(store.shards[0], "ada", at)]
        for at in (a.stored_at - 1, a.stored_at, b.changed_at - 1, b.changed_at)
    ]
    assert texts == [[], ["It rains."], ["It rains."], ["It snows."]]


def test_a_search_in_the_past_leaves_the_present_index_alone(
    store: MemoryStore, put: Callable[..., list[Entry]]
):
    put(store, "It rains.")
    before = tick()
    put(store, "It snows.", start=1)
    retrieval = Retrieval(EMBEDDER, store)
    kept = retrieval.index("ada")
    assert len(answers(retrieval, "ada", as_of=before)) == 1
    assert retrieval.index("ada") is kept
    assert len(answers(retrieval, "ada")) == 2


def test_no_user_reads_what_another_users_entries_were(
    tmp_path: Path, put: Callable[..., list[Entry]]
):
    model = VectorModel("hash-16", 16)
    store = MemoryStore.create(StoreConfig(uri=str(tmp_path / "odd"), shards=2), model)
    for user in ODD:
        (entry,) = put(store, f"by {user}", user=user)
        change(store, "sleep-1", replace(entry, text="changed"))
    before = min(e.changed_at for s in store.shards for e in s.entries_of(ODD)) - 1
    for user in ODD:
        now = store.shard_for(user).entries_of([user])
        assert [e.text for e in history(store, now[0].id).states] == [f"by {user}", "changed"]
        texts = [e.text for e in entries_as_of(store.shard_for(user), user, now[0].changed_at - 1)]
        assert texts == [f"by {user}"]
    assert len(entries_as_of(store.shard_for("ada"), "ada", before)) == 1
    assert entries_as_of(store.shards[0], "' OR 'a'='a", now_ms()) == []
