from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from lancedb.table import Table

from lightmem_core.config import StoreConfig
from lightmem_core.errors import StoreError
from lightmem_core.long_term import store as store_module
from lightmem_core.long_term.compaction import FILE_VERSION, small_fragments, unindexed
from lightmem_core.long_term.provenance import provenance
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore, VectorModel, part_number, shard_number
from lightmem_core.long_term.upkeep import COMPACT_AFTER, ENTRIES_BEHIND, MESSAGES_BEHIND
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Extracted, Message, Source

MODEL = VectorModel("hash-16", 16)


@pytest.fixture
def put(
    message: Callable[..., Message], entry: Callable[..., Entry], axis: Callable[..., np.ndarray]
) -> Callable[..., Extracted]:
    """Store one message a text, each with its entry, and return them."""

    def store_texts(
        shard: Shard, *texts: str, user: str = "ada", run: str = "run-1", start: int = 0
    ) -> Extracted:
        messages, entries = [], []
        for at, text in enumerate(texts, start):
            messages.append(message(text, at, user_id=user, state="stored"))
            place = (Source("s1", at, messages[-1].id),)
            entries.append(entry(text, at, user_id=user, vector=axis(at), sources=place))
        row = Extracted(user, tuple(messages), tuple(entries))
        shard.insert(to_table([row], Extracted), run)
        return row

    return store_texts


def texts(shard: Shard, user: str = "ada", tombstones: bool = False) -> list[str]:
    return [e.text for e in shard.entries_of([user], tombstones)]


# --- create and open ---------------------------------------------------------------------------


def test_a_store_that_was_made_can_be_opened(store: MemoryStore, store_config: StoreConfig):
    opened = MemoryStore.open(store_config, MODEL)
    assert (opened.model, opened.shard_count) == (MODEL, 1)
    assert texts(opened.shards[0]) == []


def test_making_a_store_that_exists_opens_it(
    store: MemoryStore, store_config: StoreConfig, put: Callable[..., Extracted]
):
    put(store.shards[0], "It rains.")
    again = MemoryStore.create(store_config.model_copy(update={"shards": 7}), MODEL)
    assert again.shard_count == 1
    assert texts(again.shards[0]) == ["It rains."]


def test_a_store_whose_making_was_cut_off_is_made_again(tmp_path: Path):
    config = StoreConfig(uri=str(tmp_path / "store"), shards=3)
    database = store_module.connect(config)
    store_module.create_shard(database, store_module.TableNames(0, 2), 8)
    with pytest.raises(StoreError, match="there is no store"):
        MemoryStore.open(config)
    assert len(MemoryStore.create(config, MODEL).shards) == 3


def test_where_there_is_no_store_the_error_names_the_command(tmp_path: Path):
    with pytest.raises(StoreError, match=r"there is no store at .*: run `lightmem backfill` first"):
        MemoryStore.open(StoreConfig(uri=str(tmp_path / "nothing")), MODEL)


@pytest.mark.parametrize("other", [VectorModel("minilm", 16), VectorModel("hash-16", 32)])
def test_vectors_of_another_embedder_are_refused(
    store: MemoryStore, store_config: StoreConfig, other: VectorModel
):
    expected = rf"hash-16 \(dimension 16\).*{other.name} \({other.dim}\): restore the embedder"
    for opening in (MemoryStore.open, MemoryStore.create):
        with pytest.raises(StoreError, match=expected):
            opening(store_config, other)


def test_another_schema_version_is_refused(
    store: MemoryStore, store_config: StoreConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store_module, "SCHEMA_VERSION", "2")
    with pytest.raises(StoreError, match="schema version 1, this release reads 2: use the release"):
        MemoryStore.open(store_config, MODEL)


# --- insert ------------------------------------------------------------------------------------


def test_what_is_stored_is_read_back(store: MemoryStore, put: Callable[..., Extracted]):
    (written,) = put(store.shards[0], "It rains.").entries
    (found,) = store.shards[0].entries_of(["ada"])
    np.testing.assert_array_equal(found.vector, written.vector)
    assert found.vector is not None
    assert found.vector.dtype == np.float32
    assert found.stored_at > 0
    stamped = replace(written, run_id="run-1", stored_at=found.stored_at, vector=None)
    assert repr(replace(found, vector=None)) == repr(stamped)


def test_entries_are_read_in_their_order(store: MemoryStore, put: Callable[..., Extracted]):
    put(store.shards[0], *"bcd", start=1)
    put(store.shards[0], *"yz", user="bob")
    put(store.shards[0], "a")
    assert texts(store.shards[0]) == ["a", "b", "c", "d"]
    users = [e.user_id for e in store.shards[0].entries_of(["bob", "ada"])]
    assert users == ["ada"] * 4 + ["bob"] * 2


def test_storing_twice_stores_once(store: MemoryStore, put: Callable[..., Extracted]):
    for run in ("run-1", "run-2"):
        put(store.shards[0], "It rains.", run=run)
    assert store.shards[0].messages.count_rows() == 1
    (found,) = store.shards[0].entries_of(["ada"])
    assert found.run_id == "run-1"


def test_storing_twice_through_a_stale_handle_stores_once(
    store: MemoryStore, store_config: StoreConfig, put: Callable[..., Extracted]
):
    stale = MemoryStore.open(store_config).shard(0)
    assert texts(stale) == []
    put(store.shards[0], "It rains.")
    put(stale, "It rains.", "It snows.")
    assert texts(store.shards[0]) == texts(stale) == ["It rains.", "It snows."]
    assert store.shards[0].messages.count_rows() == 2


class Unwritable:
    """A table whose writer dies before it commits."""

    def __init__(self, table: Table):
        self.schema = table.schema

    def checkout_latest(self) -> None:
        raise ConnectionError("the writer died")


def test_a_message_that_is_found_has_all_its_entries(
    store: MemoryStore, put: Callable[..., Extracted]
):
    """Entries are committed first, so a crash between the two commits is mended by a replay."""
    shard = store.shards[0]
    torn = Shard(0, shard.entries, Unwritable(shard.messages), shard.versions)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConnectionError):
        put(torn, "It rains.")
    assert (texts(shard), shard.known(["ada"])) == (["It rains."], {})
    replayed = put(shard, "It rains.")
    assert texts(shard) == ["It rains."]
    assert list(shard.known(["ada"])) == [replayed.messages[0].id]


def test_nothing_to_store_is_no_error(store: MemoryStore):
    shard = store.shards[0]
    shard.insert(to_table([Extracted("ada", (), (), 3)], Extracted), "run-1")
    shard.insert(to_table([], Extracted), "run-1")
    assert shard.update(to_table([], Entry)) == 0
    assert (shard.known([]), shard.entries_of([]), shard.entries.count_rows()) == ({}, [], 0)


def test_known_messages_name_the_run_that_stored_them(
    store: MemoryStore, put: Callable[..., Extracted]
):
    first = put(store.shards[0], "a", "b", run="run-1")
    second = put(store.shards[0], "c", run="run-2", start=2)
    put(store.shards[0], "a", user="bob")
    ids = [m.id for m in (*first.messages, *second.messages)]
    known = store.shards[0].known(["ada"])
    assert [known.pop(id) for id in ids] == [("run-1", ""), ("run-1", ""), ("run-2", "")]
    assert known == {}
    assert store.shards[0].known(["nobody"]) == {}


def test_a_quarantined_message_may_be_tried_again_and_a_stored_one_not(
    store: MemoryStore, message: Callable[..., Message]
):
    def states() -> list[tuple[str, str]]:
        rows = store.shards[0].messages.to_arrow().to_pylist()
        return [(row["state"], row["run_id"]) for row in rows]

    said = message("It rains.")
    for state, run in [("quarantined", "1"), ("no_facts", "2"), ("quarantined", "3")]:
        row = Extracted("ada", (replace(said, state=state),), ())
        store.shards[0].insert(to_table([row], Extracted), run)
        assert store.shards[0].known(["ada"]) == ({} if run == "1" else {said.id: ("2", "")})
    assert states() == [("no_facts", "2")]


def test_repeats_are_told_from_what_a_replay_writes_again(
    store: MemoryStore, message: Callable[..., Message]
):
    shard = store.shards[0]

    def insert(run: str, *sources: str) -> int:
        rows = [
            Extracted("ada", (message("It rains.", state="stored", source=source),), ())
            for source in sources
        ]
        return shard.insert(to_table(rows, Extracted), run)

    assert insert("run-1", "a:1") == 0
    assert insert("run-1", "a:1") == 0
    assert insert("run-1", "a:1", "b:7") == 1
    assert insert("run-1", "b:7") == 1
    assert insert("run-2", "a:1") == 1
    assert shard.messages.count_rows() == 1


def test_a_failed_message_at_two_places_of_the_input_is_counted_once(
    store: MemoryStore, message: Callable[..., Message]
):
    """However the input is cut into commits, and however often one is repeated."""
    shard = store.shards[0]

    def insert(run: str, source: str) -> int:
        failed = message("It rains.", state="quarantined", source=source)
        return shard.insert(to_table([Extracted("ada", (failed,), ())], Extracted), run)

    assert [insert("run-1", place) for place in ("a:1", "b:7", "b:7", "a:1")] == [0, 1, 1, 0]
    assert insert("run-2", "b:7") == 0
    (row,) = shard.messages.to_arrow().to_pylist()
    assert (row["run_id"], row["source"]) == ("run-2", "b:7")


# --- update ------------------------------------------------------------------------------------


def test_an_update_writes_rows_of_a_higher_gen(store: MemoryStore, put: Callable[..., Extracted]):
    shard = store.shards[0]
    old, heir = put(shard, "It rains.", "It rains again.").entries
    changed = [
        replace(old, superseded_by=heir.id, gen=1, changed_by="run-2"),
        replace(heir, absorbed=old.sources, gen=1, changed_by="run-2"),
    ]
    assert shard.update(to_table(changed, Entry)) == 0
    found = shard.entries_of(["ada"], tombstones=True)
    assert [(e.superseded_by, e.absorbed, e.gen, e.changed_by) for e in found] == [
        (heir.id, (), 1, "run-2"),
        ("", old.sources, 1, "run-2"),
    ]
    for before, after in zip((old, heir), found, strict=True):
        np.testing.assert_array_equal(before.vector, after.vector)


def test_a_later_write_wins_and_is_counted(store: MemoryStore, put: Callable[..., Extracted]):
    shard = store.shards[0]
    first, second, third = put(shard, "a", "b", "c").entries
    online = replace(first, gen=2, superseded_by=third.id, changed_by="online")
    assert shard.update(to_table([online], Entry)) == 0
    asleep = [
        replace(e, gen=1, superseded_by=third.id, changed_by="night") for e in (first, second)
    ]
    assert shard.update(to_table(asleep, Entry)) == 1
    assert shard.update(to_table(asleep, Entry)) == 2
    found = shard.entries_of(["ada"], tombstones=True)
    assert [e.changed_by for e in found] == ["online", "night", ""]


def test_an_update_adds_no_entry(store: MemoryStore, put: Callable[..., Extracted]):
    (known,) = put(store.shards[0], "a").entries
    unknown = replace(known, id="erased meanwhile", gen=1)
    assert store.shards[0].update(to_table([unknown], Entry)) == 1
    assert [e.id for e in store.shards[0].entries_of(["ada"], tombstones=True)] == [known.id]


def test_storing_again_leaves_a_tombstone_as_it_is(
    store: MemoryStore, put: Callable[..., Extracted]
):
    old, heir = put(store.shards[0], "a", "b").entries
    tombstone = replace(old, superseded_by=heir.id, gen=1)
    store.shards[0].update(to_table([tombstone], Entry))
    put(store.shards[0], "a", "b")
    assert texts(store.shards[0]) == ["b"]


def test_tombstones_are_hidden_and_kept(store: MemoryStore, put: Callable[..., Extracted]):
    old, heir = put(store.shards[0], "a", "b").entries
    store.shards[0].update(to_table([replace(old, superseded_by=heir.id, gen=1)], Entry))
    assert texts(store.shards[0]) == ["b"]
    assert texts(store.shards[0], tombstones=True) == ["a", "b"]


# --- users -------------------------------------------------------------------------------------

USERS = [
    "ada",
    "Ada",
    "ada ",
    "o'neil",
    "''",
    "' OR 1=1 --",
    "x') OR user_id IN ('ada",
    "back\\slash\\'",
    '"double"',
    "%",
    "_da",
    "ünïcödé 😀 用户",
    "nul\x00byte",
    "line\nbreak",
    "z" * 10_000,
    "z" * 9_999,
]


@pytest.mark.parametrize("shards", [1, 3])
def test_no_user_reads_another_users_rows(
    tmp_path: Path, put: Callable[..., Extracted], shards: int
):
    store = MemoryStore.create(StoreConfig(uri=str(tmp_path / "store"), shards=shards), MODEL)
    written = {user: put(store.shard_for(user), f"by {user}", user=user) for user in USERS}
    for user, row in written.items():
        shard = store.shard_for(user)
        assert texts(shard, user) == [f"by {user}"]
        assert list(shard.known([user])) == [row.messages[0].id]
        (source,) = shard.sources(user, row.entries[0].sources)
        assert (source.user_id, source.content) == (user, f"by {user}")
    assert texts(store.shards[0], "' OR 'a'='a") == []


def test_every_user_is_in_exactly_one_shard(tmp_path: Path, put: Callable[..., Extracted]):
    config = StoreConfig(uri=str(tmp_path / "store"), shards=4)
    store = MemoryStore.create(config, MODEL)
    users = [f"user {number}" for number in range(40)]
    groups = store.by_shard(users)
    assert sorted(user for group in groups.values() for user in group) == sorted(users)
    assert sorted(groups) == [0, 1, 2, 3]
    assert MemoryStore.open(config).by_shard(users) == groups
    for number, group in groups.items():
        assert all(store.shard_number(user) == number for user in group)
        put(store.shards[number], "a", user=group[0])
    assert [sorted({*s.entries.to_arrow()["user_id"].to_pylist()}) for s in store.shards] == [
        groups[n][:1] for n in range(4)
    ]


@pytest.mark.parametrize("shards", [1, 3, 8, 64])
@pytest.mark.parametrize("parts", [1, 16, 1_000])
def test_the_parts_of_an_input_lie_in_the_order_of_the_shards(shards: int, parts: int):
    users = [f"user {number}" for number in range(3_000)]
    places = [(part_number(u, shards, parts), shard_number(u, shards)) for u in users]
    assert [shard for _, shard in sorted(places)] == sorted(shard for _, shard in places)
    sizes = np.bincount([part for part, _ in places], minlength=parts)
    assert len(sizes) == parts
    assert sizes.max() < 2 * len(users) / parts + 20


def test_entries_are_read_as_of_a_version_and_as_they_are_where_that_is_gone(
    store: MemoryStore, put: Callable[..., Extracted]
):
    shard = store.shards[0]
    put(shard, "first")
    seen = shard.entries.version
    put(shard, "second", start=1)
    assert [e.text for e in shard.entries_of(["ada"], version=seen)] == ["first"]
    assert texts(shard) == ["first", "second"]
    for fresh in (shard, store.shard(0)):
        fresh.entries.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
        assert [e.text for e in fresh.entries_of(["ada"], version=seen)] == ["first", "second"]


def test_the_entries_of_a_user_of_any_size_are_all_read(
    store: MemoryStore, put: Callable[..., Extracted]
):
    put(store.shards[0], *map(str, range(1_500)))
    assert texts(store.shards[0]) == [str(number) for number in range(1_500)]
    assert len(store.shards[0].known(["ada"])) == 1_500


def file_versions(table: Table) -> set[str]:
    files = (file for part in table.to_lance().get_fragments() for file in part.data_files())
    return {f"{file.file_major_version}.{file.file_minor_version}" for file in files}


def test_optimizing_keeps_the_contents(store: MemoryStore, put: Callable[..., Extracted]):
    shard = store.shards[0]
    for at in range(6):
        put(shard, f"entry {at}", start=at)
    before = [repr(e) for e in shard.entries_of(["ada"])]
    version = shard.entries.version
    shard.compact()
    assert shard.entries.version > version
    assert file_versions(shard.entries) == {FILE_VERSION}
    assert [repr(e) for e in shard.entries_of(["ada"])] == before
    assert shard.messages.count_rows() == 6
    put(shard, "entry 5", "entry 6", start=5)
    assert len(texts(shard)) == 7


def test_the_index_on_users_lacks_the_rows_of_a_few_commits_at_most(
    store: MemoryStore, put: Callable[..., Extracted]
):
    lacking = []
    shard = store.shards[0]
    for n in range(2 * COMPACT_AFTER):
        put(shard, "I saw a film.", user=f"user {n}")
        stats = [table.index_stats("user_id_idx") for table in (shard.entries, shard.messages)]
        lacking.append([each.num_unindexed_rows if each else n + 1 for each in stats])
    assert np.all(np.max(lacking, axis=0) < (ENTRIES_BEHIND[0], MESSAGES_BEHIND[0]))
    assert len(store.shards[0].known([f"user {n}" for n in range(n + 1)])) == n + 1


def test_the_index_on_users_lacks_less_than_a_large_commit(
    store: MemoryStore, put: Callable[..., Extracted]
):
    shard, rows = store.shards[0], ENTRIES_BEHIND[1]
    put(shard, *(f"film {n}" for n in range(rows)))
    assert unindexed(shard.entries) == (0, 0)
    put(shard, *(f"play {n}" for n in range(rows - 1)), start=rows)
    assert unindexed(shard.entries) == (1, rows - 1)
    put(shard, "one more", start=2 * rows)
    assert unindexed(shard.entries) == (0, 0)


def test_a_shard_is_kept_fast_by_processes_that_each_commit_a_few_times(
    store_config: StoreConfig, put: Callable[..., Extracted]
):
    """So commits a backfill into many shards: its committers start anew every hundred commits."""
    store = MemoryStore.create(store_config.model_copy(update={"shards": 2}), MODEL)
    crowds, lacking = [], []
    for n in range(COMPACT_AFTER + 2):
        if n % 5 == 0:
            store = MemoryStore.open(store_config)
        for shard in store.shards:
            put(shard, f"film {n}")
        tables = (store.shards[0].entries, store.shards[0].messages)
        crowds += map(small_fragments, tables)
        lacking.append([unindexed(table)[0] for table in tables])
    assert max(crowds) <= COMPACT_AFTER
    assert np.all(np.max(lacking, axis=0) < (ENTRIES_BEHIND[0], MESSAGES_BEHIND[0]))


def test_a_run_finds_the_messages_and_entries_that_it_wrote(
    store: MemoryStore, put: Callable[..., Extracted]
):
    put(store.shards[0], "a", "b", run="run-1")
    put(store.shards[0], "b", "c", run="o'run", start=1)
    batches = store.shards[0].message_batches("o'run", ["content"])
    assert [text for batch in batches for text in batch["content"].to_pylist()] == ["c"]
    assert [store.shards[0].entries_written(run) for run in ("run-1", "o'run", "x")] == [2, 1, 0]


# --- the ledger of runs ------------------------------------------------------------------------


def run(number: int, status: str = "done", **report: object) -> Run:
    asked = {"sources": ["päth/a.jsonl"], "limit": None}
    return Run(f"run-{number}", "backfill", status, number, number + 1, asked, dict(report))


def test_a_run_is_replaced_by_what_is_known_later(store: MemoryStore, store_config: StoreConfig):
    store.runs.write(run(1, "running"))
    store.runs.write(run(1, "done", messages={"stored": 3}, note="ü"))
    assert MemoryStore.open(store_config).runs.get("run-1") == run(
        1, messages={"stored": 3}, note="ü"
    )
    assert len(store.runs.latest()) == 1


def test_the_latest_runs_come_first(store: MemoryStore):
    for number in (2, 12, 1):
        store.runs.write(run(number))
    assert [r.id for r in store.runs.latest()] == ["run-12", "run-2", "run-1"]
    assert [r.id for r in store.runs.latest(1)] == ["run-12"]
    assert store.runs.newest() == run(12)


def test_an_unknown_run_is_answered_with_the_known_ones(store: MemoryStore):
    with pytest.raises(StoreError, match="there is no run 'x'; the latest are: none"):
        store.runs.get("x")
    with pytest.raises(StoreError, match=r"no run has been made .*run `lightmem backfill` first"):
        store.runs.newest()
    store.runs.write(run(1))
    with pytest.raises(StoreError, match="the latest are: run-1"):
        store.runs.get("' OR 1=1 --")


# --- provenance --------------------------------------------------------------------------------


@pytest.fixture
def consolidated(store: MemoryStore, put: Callable[..., Extracted]) -> tuple[Entry, ...]:
    """b replaced a, c superseded b."""
    a, b, c = put(store.shards[0], "It rains.", "It rains!", "It snows.").entries
    put(store.shards[0], "not Ada's", user="bob")
    changed = [
        replace(a, superseded_by=b.id, gen=1),
        replace(b, superseded_by=c.id, absorbed=a.sources, gen=1),
    ]
    store.shards[0].update(to_table(changed, Entry))
    return a, b, c


def test_provenance_shows_the_messages_behind_an_entry_and_its_history(
    store: MemoryStore, consolidated: tuple[Entry, ...]
):
    a, b, c = consolidated
    found = provenance(store, b.id)
    assert [(m.content, m.user_id) for m in found.messages] == [
        ("It rains.", "ada"),
        ("It rains!", "ada"),
    ]
    assert [e.id for e in found.replaced] == [a.id]
    assert found.successor is not None
    assert (found.entry.id, found.successor.id) == (b.id, c.id)
    last = provenance(store, c.id)
    assert ([m.content for m in last.messages], last.successor) == (["It snows."], None)


def test_an_entry_is_found_by_the_start_of_its_id_in_any_shard(
    tmp_path: Path, put: Callable[..., Extracted]
):
    store = MemoryStore.create(StoreConfig(uri=str(tmp_path / "store"), shards=3), MODEL)
    for user in ("ada", "bob", "eve", "zoe"):
        (written,) = put(store.shard_for(user), "It rains.", user=user).entries
        found = provenance(store, written.id[:12])
        assert (found.entry.id, found.messages[0].user_id) == (written.id, user)


@pytest.mark.parametrize("prefix", ["nothing", "%%%%", "____", "' OR 1=1 --"])
def test_an_unknown_id_says_where_ids_are_shown(
    store: MemoryStore, consolidated: tuple[Entry, ...], prefix: str
):
    with pytest.raises(StoreError, match=r"no entry has an id that start.*that `search` prints"):
        provenance(store, prefix)


def test_too_short_a_start_of_an_id_is_refused(store: MemoryStore, consolidated: tuple[Entry, ...]):
    with pytest.raises(StoreError, match="at least 4 letters"):
        provenance(store, consolidated[0].id[:3])


def test_sources_of_other_sessions_are_not_mixed_up(
    store: MemoryStore, message: Callable[..., Message]
):
    said = [message(s, 0, session=s, state="stored") for s in ("s1", "s2", "o'clock")]
    store.shards[0].insert(to_table([Extracted("ada", tuple(said), ())], Extracted), "run-1")
    places = [Source(m.session_id, m.position, m.id) for m in (said[2], said[1])]
    found = store.shards[0].sources("ada", [*places, Source("s1", 9, "unknown")])
    assert sorted(m.content for m in found) == ["o'clock", "s2"]
