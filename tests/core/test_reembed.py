"""The laws of moving a store to another embedder."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightmem_core.config import StoreConfig
from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.errors import StoreError
from lightmem_core.long_term import reembed
from lightmem_core.long_term.render import embedding_text
from lightmem_core.long_term.retrieve import Query, Retrieval
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MANIFEST, MemoryStore, VectorModel, table_names
from lightmem_core.protocols import Embedder
from lightmem_core.schema import from_table, to_table
from lightmem_core.types import Entry, Extracted, Message

OLD, NEW = HashEmbedder(16), HashEmbedder(24)
USERS = ("ada", "o'neil", "bob", "zoe")


@pytest.fixture
def config(tmp_path: Path) -> StoreConfig:
    return StoreConfig(uri=str(tmp_path / "store"), shards=2)


@pytest.fixture
def made(
    message: Callable[..., Message], entry: Callable[..., Entry]
) -> Callable[[int, str, str, int], Extracted]:
    """A message and its entry, with the vector of an embedder of a dimension."""

    def make(dim: int, user: str, text: str, at: int) -> Extracted:
        written = entry(text, at, user_id=user)
        vector = HashEmbedder(dim).encode([embedding_text(written)])[0]
        said = message(text, at, user_id=user, state="stored")
        return Extracted(user, (said,), (replace(written, vector=vector),))

    return make


@pytest.fixture
def put(made: Callable[..., Extracted]) -> Callable[..., Entry]:
    """Store a text as an embedder's pipeline would."""

    def store_text(store: MemoryStore, user: str, text: str, at: int = 0) -> Entry:
        row = made(store.model.dim, user, text, at)
        store.shard_for(user).insert(to_table([row], Extracted), "run-1")
        return row.entries[0]

    return store_text


def bury(store: MemoryStore, *pairs: tuple[Entry, Entry], gen: int = 1) -> None:
    """Make each first a tombstone of its second; all are of one shard."""
    by = {"gen": gen, "changed_by": "night", "changed_at": gen}
    changes = [replace(old, superseded_by=heir.id, **by) for old, heir in pairs]
    store.shard_for(pairs[0][0].user_id).update(to_table(changes, Entry))


@pytest.fixture
def filled(config: StoreConfig, made: Callable[..., Extracted]) -> MemoryStore:
    """Three entries a user, the first a tombstone."""
    store = MemoryStore.create(config, VectorModel.of(OLD))
    for number, users in store.by_shard(USERS).items():
        rows = [made(16, user, f"{user} saw {at} cats", at) for user in users for at in range(3)]
        store.shards[number].insert(to_table(rows, Extracted), "run-1")
        firsts, lasts = rows[::3], rows[2::3]
        bury(store, *((a.entries[0], b.entries[0]) for a, b in zip(firsts, lasts, strict=True)))
    return store


def bring(old: MemoryStore, new: MemoryStore, embedder: Embedder = NEW) -> int:
    """One pass over all shards; the rows that it embedded."""
    moved = 0
    for ours, theirs in zip(old.shards, new.shards, strict=True):
        for users in reembed.portions(reembed.pending(ours, theirs)):
            for rows in reembed.Reembedding(embedder)(ours, theirs, users):
                reembed.store_embedded(theirs, rows)
                moved += len(rows.entries) + len(rows.versions)
    return moved


def contents(store: MemoryStore) -> list[str]:
    """Everything but the vectors."""
    return [
        repr(replace(entry, vector=None))
        for shard in store.shards
        for entry in shard.entries_of(USERS, tombstones=True)
    ]


def versions(shard: Shard) -> dict[str, str]:
    rows = shard.versions.to_arrow()
    keys = zip(*(rows[c].to_pylist() for c in ("key", "replaced_at", "replaced_by")), strict=True)
    found = from_table(rows, Entry)
    return {repr(k): repr(replace(e, vector=None)) for k, e in zip(keys, found, strict=True)}


def vectors_fit(store: MemoryStore, embedder: Embedder) -> bool:
    held = [
        entry
        for shard in store.shards
        for table in (shard.entries, shard.versions)
        for entry in from_table(table.to_arrow(), Entry)
    ]
    expected = embedder.encode([embedding_text(entry) for entry in held])
    np.testing.assert_array_equal(np.array([entry.vector for entry in held]), expected)
    return bool(held)


# --- what a move keeps and changes ---------------------------------------------------------------


def test_only_the_vectors_change(filled: MemoryStore, config: StoreConfig):
    before = contents(filled), [versions(shard) for shard in filled.shards]
    new = reembed.next_generation(filled, VectorModel.of(NEW))
    assert bring(filled, new) == len(USERS) * 4
    reembed.switch(filled, new)
    opened = MemoryStore.open(config, VectorModel.of(NEW))
    assert (contents(opened), [versions(shard) for shard in opened.shards]) == before
    assert len(before[0]) == len(USERS) * 3
    assert sum(map(len, before[1])) == len(USERS)
    assert vectors_fit(opened, NEW)
    assert opened.shard_for("ada").known(["ada"]) == filled.shard_for("ada").known(["ada"])


def test_searches_go_on_before_and_after_the_switch(filled: MemoryStore, config: StoreConfig):
    def best(retrieval: Retrieval) -> str:
        return retrieval([Query("ada", "which 2 cats", limit=1)])[0][0].entry.text

    early = Retrieval(OLD, MemoryStore.open(config, VectorModel.of(OLD)))
    new = reembed.next_generation(filled, VectorModel.of(NEW))
    with pytest.raises(StoreError, match="or run `lightmem reembed`"):
        MemoryStore.open(config, VectorModel.of(NEW))
    bring(filled, new)
    reembed.switch(filled, new)
    late = Retrieval(NEW, MemoryStore.open(config, VectorModel.of(NEW)))
    assert best(early) == best(late) == "ada saw 2 cats"
    with pytest.raises(StoreError, match=r"hash-24 \(dimension 24\).*hash-16 \(16\)"):
        MemoryStore.open(config, VectorModel.of(OLD))


def test_updates_and_versions_go_on_in_the_new_tables(
    filled: MemoryStore, config: StoreConfig, put: Callable[..., Entry]
):
    new = reembed.next_generation(filled, VectorModel.of(NEW))
    bring(filled, new)
    reembed.switch(filled, new)
    opened = MemoryStore.open(config, VectorModel.of(NEW))
    heir = put(opened, "ada", "ada saw 9 cats", 9)
    shard = opened.shard_for("ada")
    tombstone, middle, *_ = shard.entries_of(["ada"], tombstones=True)
    bury(opened, (middle, heir))
    bury(opened, (tombstone, heir), gen=2)
    kept = [key for key in versions(shard) if tombstone.id in key]
    assert kept == [f"('{tombstone.id}.0', 1, 'night')", f"('{tombstone.id}.1', 2, 'night')"]
    assert [e.text for e in shard.entries_of(["ada"])] == ["ada saw 2 cats", "ada saw 9 cats"]
    assert vectors_fit(opened, NEW)


def test_a_text_is_embedded_once_for_an_entry_and_its_versions(filled: MemoryStore):
    class Counting(HashEmbedder):
        texts: list[str]

        def encode(self, texts: Sequence[str]) -> np.ndarray:
            self.texts = [*getattr(self, "texts", []), *texts]
            return super().encode(texts)

    counting = Counting(24)
    bring(filled, reembed.next_generation(filled, VectorModel.of(NEW)), counting)
    assert len(counting.texts) == len(set(counting.texts)) == len(USERS) * 3


def test_a_store_can_be_moved_there_and_back(filled: MemoryStore, config: StoreConfig):
    before = contents(filled)
    for embedder in (NEW, OLD, NEW):
        store = MemoryStore.open(config)
        new = reembed.next_generation(store, VectorModel.of(embedder))
        bring(store, new, embedder)
        reembed.switch(store, new)
        opened = MemoryStore.open(config, VectorModel.of(embedder))
        assert contents(opened) == before
        assert vectors_fit(opened, embedder)


def test_a_user_of_many_rows_is_brought_over_in_parts(
    store: MemoryStore, entry: Callable[..., Entry], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reembed, "ROWS", 7)
    rows = [entry(f"cat {at}", at, vector=np.ones(16, np.float32)) for at in range(20)]
    store.shards[0].insert(to_table([Extracted("ada", (), tuple(rows))], Extracted), "run-1")
    new = reembed.next_generation(store, VectorModel.of(NEW))
    parts = reembed.Reembedding(NEW)(store.shards[0], new.shards[0], ["ada"])
    sizes = []
    for part in parts:
        sizes.append(len(part.entries))
        reembed.store_embedded(new.shards[0], part)
    assert sizes == [7, 7, 6]
    assert contents(new) == contents(store)


# --- cut off and gone on with --------------------------------------------------------------------


def test_a_move_that_was_cut_off_embeds_only_what_is_left(filled: MemoryStore):
    class Failing(HashEmbedder):
        left = 2

        def encode(self, texts: Sequence[str]) -> np.ndarray:
            self.left -= 1
            if not self.left:
                raise ConnectionError("the model's server is gone")
            return super().encode(texts)

    new = reembed.next_generation(filled, VectorModel.of(NEW))
    with pytest.raises(ConnectionError):
        bring(filled, new, Failing(24))
    again = reembed.next_generation(filled, VectorModel.of(NEW))
    assert again.manifest == new.manifest
    held = sum(s.entries.count_rows() + s.versions.count_rows() for s in again.shards)
    assert 0 < held < len(USERS) * 4
    assert bring(filled, again) == len(USERS) * 4 - held
    assert contents(again) == contents(filled)
    assert vectors_fit(again, NEW)


def test_rows_committed_twice_are_there_once(filled: MemoryStore):
    new = reembed.next_generation(filled, VectorModel.of(NEW))
    for ours, theirs in zip(filled.shards, new.shards, strict=True):
        parts = list(reembed.Reembedding(NEW)(ours, theirs, USERS))
        for part in (*parts, *parts):
            reembed.store_embedded(theirs, part)
    assert contents(new) == contents(filled)


def test_another_embedder_of_the_same_dimension_never_meets_what_an_attempt_left(
    filled: MemoryStore, config: StoreConfig
):
    class Reversed(HashEmbedder):
        def __init__(self):
            super().__init__(24)
            self.name = "reversed"

        def encode(self, texts: Sequence[str]) -> np.ndarray:
            return super().encode(texts)[:, ::-1]

    bring(filled, reembed.next_generation(filled, VectorModel.of(NEW)))
    other = reembed.next_generation(filled, VectorModel.of(Reversed()))
    assert bring(filled, other, Reversed()) == len(USERS) * 4
    reembed.switch(filled, other)
    opened = MemoryStore.open(config, VectorModel.of(Reversed()))
    assert vectors_fit(opened, Reversed())
    previous = reembed.previous_generation(opened)
    assert previous is not None
    assert previous.manifest.generation == 0


def test_a_generation_whose_making_was_cut_off_is_left_alone(filled: MemoryStore):
    new = reembed.next_generation(filled, VectorModel.of(NEW))
    filled.database.drop_table(f"{MANIFEST}_g1")
    again = reembed.next_generation(filled, VectorModel.of(NEW))
    assert (new.manifest.generation, again.manifest.generation) == (1, 2)


# --- what changes meanwhile ----------------------------------------------------------------------


def test_what_arrives_or_changes_meanwhile_is_brought_over(
    filled: MemoryStore, put: Callable[..., Entry]
):
    new = reembed.next_generation(filled, VectorModel.of(NEW))
    bring(filled, new)
    late = put(filled, "bob", "bob saw a dog", 7)
    bury(filled, (filled.shard_for("ada").entries_of(["ada"])[0], late))
    assert bring(filled, new) == 3  # the new one, the tombstone, and what it was
    assert bring(filled, new) == 0
    assert contents(new) == contents(filled)
    assert list(map(versions, new.shards)) == list(map(versions, filled.shards))
    assert vectors_fit(new, NEW)


def test_what_lands_between_the_last_pass_and_the_switch_follows(
    filled: MemoryStore, config: StoreConfig, put: Callable[..., Entry]
):
    new = reembed.next_generation(filled, VectorModel.of(NEW))
    bring(filled, new)
    put(filled, "bob", "bob saw a dog", 7)
    reembed.switch(filled, new)
    opened = MemoryStore.open(config, VectorModel.of(NEW))
    previous = reembed.previous_generation(opened)
    assert previous is not None
    assert bring(previous, opened) == 1
    assert contents(opened) == contents(filled)


def test_what_the_present_tables_lost_does_not_come_back(filled: MemoryStore):
    new = reembed.next_generation(filled, VectorModel.of(NEW))
    bring(filled, new)
    for shard in filled.shards:
        shard.entries.delete("user_id = 'o''neil'")
        shard.versions.delete("user_id = 'o''neil'")
    removed = [
        reembed.remove_gone(ours, theirs, filled.confirm)
        for ours, theirs in zip(filled.shards, new.shards, strict=True)
    ]
    assert sum(removed) == 4
    assert contents(new) == contents(filled)


def test_after_the_switch_nothing_is_removed_and_a_later_change_stays(
    filled: MemoryStore, config: StoreConfig, put: Callable[..., Entry]
):
    new = reembed.next_generation(filled, VectorModel.of(NEW))
    bring(filled, new)
    reembed.switch(filled, new)
    opened = MemoryStore.open(config, VectorModel.of(NEW))
    late = put(opened, "ada", "ada saw a dog", 7)
    bury(opened, (opened.shard_for("ada").entries_of(["ada"])[0], late))
    before = contents(opened)
    number = opened.shard_number("ada")
    with pytest.raises(StoreError, match="was switched"):
        reembed.remove_gone(filled.shards[number], opened.shards[number], filled.confirm)
    assert bring(filled, opened) == 0
    assert contents(opened) == before


# --- writers of the old vectors ------------------------------------------------------------------


def test_a_writer_of_the_old_vectors_is_refused_after_the_switch(
    filled: MemoryStore, config: StoreConfig, put: Callable[..., Entry]
):
    writer = MemoryStore.open(config, VectorModel.of(OLD))
    put(writer, "ada", "ada saw a dog", 7)
    new = reembed.next_generation(filled, VectorModel.of(NEW))
    bring(filled, new)
    reembed.switch(filled, new)
    before = contents(writer)
    with pytest.raises(StoreError, match=r"hash-24 \(dimension 24\) meanwhile: configure that"):
        put(writer, "ada", "ada saw a fish", 8)
    tombstone, heir, *_ = writer.shard_for("ada").entries_of(["ada"])
    with pytest.raises(StoreError, match="was switched"):
        bury(writer, (tombstone, heir))
    assert contents(writer) == before


def test_a_commit_that_the_switch_overtook_does_not_count_as_stored(
    filled: MemoryStore, config: StoreConfig, put: Callable[..., Entry]
):
    """Its messages stay unknown, so that the same run under the new embedder stores them."""
    new = reembed.next_generation(filled, VectorModel.of(NEW))
    bring(filled, new)
    writer = MemoryStore.open(config, VectorModel.of(OLD))
    shard = writer.shard_for("ada")
    asked = iter([False, True])

    def confirm() -> None:
        if next(asked):
            reembed.switch(filled, new)
            writer.confirm()

    shard.confirm = confirm
    with pytest.raises(StoreError, match="was switched"):
        put(writer, "ada", "ada saw a dog", 7)
    assert len(shard.known(["ada"])) == 3
    opened = MemoryStore.open(config, VectorModel.of(NEW))
    again = put(opened, "ada", "ada saw a dog", 7)
    assert bring(filled, opened) == 0
    assert [e.id for e in opened.shard_for("ada").entries_of(["ada"])].count(again.id) == 1
    assert vectors_fit(opened, NEW)


def test_two_switches_from_one_generation_are_one_switch_and_one_error(filled: MemoryStore):
    one = reembed.next_generation(filled, VectorModel.of(NEW))
    other = reembed.next_generation(filled, VectorModel("other", 8))
    reembed.switch(filled, one)
    with pytest.raises(StoreError, match=r"hash-24 \(dimension 24\) meanwhile: run"):
        reembed.switch(filled, other)
    reembed.switch(filled, one)


# --- the old tables ------------------------------------------------------------------------------


def test_the_old_tables_are_dropped_when_they_are_no_longer_wanted(
    filled: MemoryStore, config: StoreConfig
):
    names = set(table_names(filled.database))
    new = reembed.next_generation(filled, VectorModel.of(NEW))
    bring(filled, new)
    reembed.switch(filled, new)
    before = contents(new)
    assert names <= set(table_names(filled.database))
    assert reembed.drop_generations(new, lambda g: g != 1) == 4
    opened = MemoryStore.open(config, VectorModel.of(NEW))
    assert reembed.previous_generation(opened) is None
    assert contents(opened) == before
    assert opened.shard_for("ada").known(["ada"])
    assert {n for n in names if n.startswith("messages")} <= set(table_names(filled.database))
