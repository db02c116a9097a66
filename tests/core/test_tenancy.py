"""No text that can be a user's id reads, changes or counts another user's rows."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightmem_core.config import StoreConfig
from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.errors import StoreError
from lightmem_core.history import ordered_history
from lightmem_core.long_term.provenance import provenance
from lightmem_core.long_term.retrieve import Query, Retrieval
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.long_term.tables import now_ms
from lightmem_core.long_term.versions import entries_as_of
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Extracted, Message, Source, stable_id

EMBEDDER = HashEmbedder(16)
MODEL = VectorModel.of(EMBEDDER)
TWINS = {
    "case": ["ada", "Ada", "ADA", "ß", "ss", "ẞ", "İ", "i̇", "ı", "I", "i"],
    "space": ["ada ", " ada", "ada\t", "ada\n", "ada\r\n", "\u00a0ada", " ", "  "],
    "unseen": ["ada\x00", "ada\x00b", "\x00", "\u200bada", "\ufeffada", "ada\x1f", "ada\x7f"],
    "quotes": ["'", "''", "'''", "ada'", "'ada'", '"ada"', "`ada`", "´ada´"],
    "SQL": [
        "x' OR '1'='1",
        "x') OR ('1'='1",
        "ada' --",
        "ada') OR user_id IN ('ada",
        "'; DROP TABLE entries_0000; --",
        "ada/*",
        "*/ada",
        "NULL",
        "true",
        "user_id",
    ],
    "patterns": ["%", "_", "ada%", "_da", "a*a", "?", "$1", "{ada}", ".*"],
    "backslashes": ["\\", "\\\\", "ada\\", "ada\\'", "\\'ada", "\\n", "\\x00"],
    "numbers": ["0", "1", "01", "1.0", "1e0", "-1"],
    "forms": ["é", "e\u0301", "Å", "\u212b", "A\u030a", "ﬁ", "fi", "①"],
    "scripts": ["😀", "👩‍👩‍👧", "👩👩👧", "مرحبا", "\u202eada", "\u202dada\u202c", "用户"],
    "length": ["z" * 9_999, "z" * 10_000, "z" * 10_001, "'" * 10_000, "😀" * 10_000],
}
USERS = [user for twins in TWINS.values() for user in twins]
HOSTILE = [TWINS[kind][n] for kind in TWINS for n in (0, -1)] + TWINS["quotes"] + TWINS["SQL"]
TEXTS = st.lists(
    st.sampled_from(["ada", "'", "''", '"', "\\", "%", "_", ") OR (", " OR 1=1", "--", "\x00", ";"])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
    max_size=6,
).map("".join)


@pytest.fixture(scope="module")
def of_user(
    message: Callable[..., Message], entry: Callable[..., Entry]
) -> Callable[..., Extracted]:
    """What a user said, and two entries of it."""

    def make(user: str) -> Extracted:
        said = message(f"by {user[:9]}", user_id=user, state="stored")
        (vector,) = EMBEDDER.encode([said.content])
        rest = {"user_id": user, "vector": vector, "sources": (Source("s1", 0, said.id),)}
        entries = [entry(f"{at} by {user[:9]}", at, position=0, **rest) for at in range(2)]
        return Extracted(user, (said,), tuple(entries))

    return make


@pytest.fixture(scope="module")
def rows(of_user: Callable[..., Extracted]) -> dict[str, Extracted]:
    return {user: of_user(user) for user in USERS}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, Extracted]) -> MemoryStore:
    """Rows of all USERS in one shard, half of them in its indices. The first entry of each is a
    tombstone, and all of them name the second entry of "ada"."""
    folder = tmp_path_factory.mktemp("store")
    store = MemoryStore.create(StoreConfig(uri=str(folder)), MODEL)
    store.shards[0].insert(to_table([rows[user] for user in USERS[::2]], Extracted), "run-1")
    store.shards[0].compact()
    store.shards[0].insert(to_table([rows[user] for user in USERS[1::2]], Extracted), "run-1")
    heir = rows["ada"].entries[1].id
    old = [row.entries[0] for row in rows.values()]
    tombstones = [replace(e, superseded_by=heir, gen=1, changed_by="run-2") for e in old]
    store.shards[0].update(to_table(tombstones, Entry))
    return store


def test_the_users_are_all_different():
    assert len(set(USERS)) == len(USERS) > 80


def test_a_user_reads_their_own_entries_and_messages_alone(
    store: MemoryStore, rows: dict[str, Extracted]
):
    shard = store.shards[0]
    for user, row in rows.items():
        ids = [e.id for e in row.entries]
        assert [e.id for e in shard.entries_of([user], tombstones=True)] == ids
        assert list(shard.known([user])) == [row.messages[0].id]


def test_the_sources_of_all_are_shown_to_each_as_far_as_they_are_their_own(
    store: MemoryStore, rows: dict[str, Extracted]
):
    everyones = [source for row in rows.values() for source in row.entries[0].sources]
    for user in HOSTILE:
        (found,) = store.shards[0].sources(user, everyones)
        assert (found.user_id, found.id) == (user, rows[user].messages[0].id)


def test_only_ones_own_tombstones_are_behind_an_entry(
    store: MemoryStore, rows: dict[str, Extracted]
):
    heir = rows["ada"].entries[1]
    for user in HOSTILE:
        (found,) = store.shards[0].superseded_by(replace(heir, user_id=user))
        assert found.id == rows[user].entries[0].id


def test_a_search_finds_ones_own_entries_alone(store: MemoryStore, rows: dict[str, Extracted]):
    retrieval = Retrieval(EMBEDDER, store)
    hits = retrieval([Query(user, "by ada", limit=9) for user in HOSTILE])
    for user, found in zip(HOSTILE, hits, strict=True):
        assert [hit.entry.id for hit in found] == [rows[user].entries[1].id]


def test_a_search_as_of_a_time_finds_ones_own_entries_alone(
    store: MemoryStore, rows: dict[str, Extracted]
):
    for user in HOSTILE:
        found = entries_as_of(store.shards[0], user, now_ms())
        assert [(e.id, e.gen) for e in found] == [
            (e.id, gen) for e, gen in zip(rows[user].entries, (1, 0), strict=True)
        ]


def test_provenance_shows_messages_of_the_entrys_user_alone(
    store: MemoryStore, rows: dict[str, Extracted]
):
    for user in HOSTILE[::2]:
        found = provenance(store, rows[user].entries[1].id)
        assert (found.entry.user_id, [m.user_id for m in found.messages]) == (user, [user])
        assert {e.user_id for e in found.replaced} <= {user}


@settings(max_examples=60, deadline=None)
@given(user=TEXTS)
def test_no_text_reads_what_others_wrote(store: MemoryStore, user: str):
    assume(user not in USERS)
    shard = store.shards[0]
    assert shard.entries_of([user], tombstones=True) == []
    assert shard.known([user]) == {}


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    folder = tmp_path_factory.mktemp("growing")
    return MemoryStore.create(StoreConfig(uri=str(folder)), MODEL).shards[0]


@settings(max_examples=8, deadline=None)
@given(users=st.sets(TEXTS, min_size=1, max_size=8))
def test_any_text_reads_what_it_wrote(
    growing: Shard, of_user: Callable[..., Extracted], users: set[str]
):
    written = [of_user(user) for user in users]
    growing.insert(to_table(written, Extracted), "run-1")
    for row in written:
        found = growing.entries_of([row.user_id])
        assert [(e.user_id, e.id) for e in found] == [(e.user_id, e.id) for e in row.entries]
        assert list(growing.known([row.user_id])) == [row.messages[0].id]


# --- what no row can hold ----------------------------------------------------------------------


@pytest.mark.parametrize("user", ["\ud800", "ada\udfff", "\udc80\udc81"])
def test_half_a_character_is_refused(
    store: MemoryStore, of_user: Callable[..., Extracted], user: str
):
    reads: Sequence[Callable[[], object]] = [
        lambda: store.shard_for(user).entries_of([user]),
        lambda: store.shard_for(user).known(["ada", user]),
        lambda: Retrieval(EMBEDDER, store)([Query(user, "by ada")]),
        lambda: provenance(store, f"abcd{user}"),
    ]
    for read in reads:
        with pytest.raises(StoreError, match="half a character: give it as UTF-8"):
            read()
    with pytest.raises(UnicodeEncodeError):
        to_table([Extracted(user, (), ())], Extracted)


# --- ids ---------------------------------------------------------------------------------------

PARTS = st.lists(st.text("a\x1e\x1f", max_size=4), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(parts=PARTS, at=st.integers(0, 3), glue=st.text("\x1e\x1f", max_size=3))
def test_different_parts_give_different_ids(parts: list[str], at: int, glue: str):
    """Also where two parts are one, with what separates parts between them."""
    other = [*parts[:at], glue.join(parts[at : at + 2]), *parts[at + 2 :]]
    assert (stable_id(*parts) == stable_id(*other)) == (parts == other)


def test_no_user_can_name_anothers_message(message: Callable[..., Message]):
    """The id is of user, session, position and text, whatever separates them."""
    ids = [
        ordered_history([message("hi", 0, session, user_id=user, id="")]).messages[0].id
        for user, session in [("ada", "b\x1fs1"), ("ada\x1fb", "s1"), ("ada\x1e", "\x1fb\x1fs1")]
    ]
    assert len(set(ids)) == 3
