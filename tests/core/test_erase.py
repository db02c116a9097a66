"""Erasing a user removes the bytes, and nothing of anyone else."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lightmem_core.config import StoreConfig
from lightmem_core.errors import StoreError
from lightmem_core.long_term.compaction import compact
from lightmem_core.long_term.erase import erase_from_ledger, erase_rows
from lightmem_core.long_term.lease import ERASING, Leases
from lightmem_core.long_term.mentions import Redaction, Traces, pseudonym, without_error
from lightmem_core.long_term.proof import Proof
from lightmem_core.long_term.run_files import erase_user
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.long_term.tables import of_users
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Extracted, Message, Source

AWKWARD = [
    "ada",
    "Ada",
    "x' OR '1'='1",
    "'); DROP TABLE entries_0000; --",
    '"quoted" \\',
    "ünïcödé 😀 用户",
    "user_id",
    "z" * 10_000,
    "z" * 9_999,
]


@pytest.fixture
def put(
    message: Callable[..., Message], entry: Callable[..., Entry], axis: Callable[..., np.ndarray]
) -> Callable[..., None]:
    """Store some entries of users, the first of each changed by a sleep phase. One shard."""

    def of_user(user: str, count: int, start: int) -> Extracted:
        messages, entries = [], []
        for at in range(start, start + count):
            text = f"secret {at} of {user[:50]}"
            messages.append(message(text, at, user_id=user, state="stored", source=f"in:{at}"))
            place = (Source("s1", at, messages[-1].id),)
            entries.append(entry(text, at, user_id=user, vector=axis(at), sources=place))
        return Extracted(user, tuple(messages), tuple(entries))

    def store_users(store: MemoryStore, *users: str, count: int = 3, start: int = 0) -> None:
        shard = store.shard_for(users[0])
        extracted = [of_user(user, count, start) for user in users]
        shard.insert(to_table(extracted, Extracted), "run")
        changed = [replace(e.entries[0], gen=1, changed_by="night") for e in extracted]
        shard.update(to_table(changed, Entry))

    return store_users


def rows(store: MemoryStore, user: str) -> list[pa.Table]:
    shard = store.shard_for(user)
    tables = (shard.entries, shard.messages, shard.versions)
    found = (t.search().where(of_users([user])).to_arrow() for t in tables)
    return [table.sort_by("id") for table in found]


def naming(store: MemoryStore, text: str) -> list[Path]:
    """The files of the store in which a text stands."""
    files = (path for path in Path(store.database.uri).rglob("*") if path.is_file())
    return [path for path in files if text.encode() in path.read_bytes()]


def test_one_user_goes_and_no_row_of_another_changes(store: MemoryStore, put: Callable[..., None]):
    put(store, *AWKWARD)
    before = {name: rows(store, name) for name in AWKWARD}
    left = list(AWKWARD)
    while left:
        user = left.pop(len(left) // 2)
        erased = {table.name: table.rows for table in erase_rows(store, user)}
        assert erased == {"entries_0000": 3, "messages_0000": 3, "versions_0000": 1}
        assert [len(table) for table in rows(store, user)] == [0, 0, 0]
        assert all(rows(store, name) == before[name] for name in left)


@pytest.mark.parametrize("compacted", [True, False])
def test_the_bytes_are_gone_from_every_file(
    store: MemoryStore, put: Callable[..., None], compacted: bool
):
    """Whether a user's rows share a fragment with others, or fill fragments of their own."""
    for user in ("ada", "eve-the-erased", "zoe"):
        put(store, user, count=5)
    shard = store.shards[0]
    for table in (shard.entries, shard.messages, shard.versions):
        compact(table) if compacted else table.to_lance().optimize.optimize_indices()
    assert len(naming(store, "eve-the-erased")) >= 6  # data and index of three tables
    assert naming(store, "secret 4 of eve")
    erase_rows(store, "eve-the-erased")
    assert naming(store, "eve-the-erased") == naming(store, "secret 4 of eve") == []
    assert naming(store, "secret 4 of ada")
    assert [len(t.to_lance().versions()) for t in (shard.entries, shard.messages)] == [1, 1]


def test_a_fragment_larger_than_compaction_would_touch_is_written_again(
    store: MemoryStore, put: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    put(store, "ada", "eve-the-erased", count=100)
    store.shards[0].compact()
    monkeypatch.setattr("lightmem_core.long_term.compaction.FRAGMENT_ROWS", 10)
    erase_rows(store, "eve-the-erased")
    assert naming(store, "eve-the-erased") == []
    assert store.shards[0].entries.count_rows() == 100


def test_an_erase_that_was_cut_off_is_finished_by_the_next(
    store: MemoryStore, put: Callable[..., None]
):
    put(store, "eve-the-erased", "ada")
    shard = store.shards[0]
    for table in (shard.entries, shard.messages):  # then it died
        table.delete(of_users(["eve-the-erased"]))
    assert naming(store, "eve-the-erased")
    assert {t.name: t.rows for t in erase_rows(store, "eve-the-erased")}["entries_0000"] == 0
    assert naming(store, "eve-the-erased") == []
    assert all(t.rows == 0 for t in erase_rows(store, "eve-the-erased"))


def test_tables_of_every_generation_are_erased_and_those_of_other_shards_left_alone(
    tmp_path: Path, put: Callable[..., None]
):
    store = MemoryStore.create(StoreConfig(uri=str(tmp_path), shards=3), VectorModel("hash-16", 16))
    put(store, "eve-the-erased")
    number = store.shard_number("eve-the-erased")
    held = store.shards[number].entries.to_arrow()
    store.database.create_table(f"entries_{number:04}_g1", held)
    other = store.shards[(number + 1) % 3]
    version = other.entries.version
    assert f"entries_{number:04}_g1" in {t.name for t in erase_rows(store, "eve-the-erased")}
    assert naming(store, "eve-the-erased") == []
    assert other.entries.version == version


def test_what_a_cut_off_write_left_goes_too(store: MemoryStore, put: Callable[..., None]):
    put(store, "eve-the-erased", "ada")
    folder = Path(store.database.uri) / "entries_0000.lance" / "data"
    left = folder / "cut-off.lance"
    left.write_bytes(next(folder.glob("*.lance")).read_bytes())
    torn = folder / "torn.lance"
    torn.write_bytes(left.read_bytes()[:-100])
    erase_rows(store, "eve-the-erased")
    assert not left.exists()
    assert not torn.exists()
    assert len(rows(store, "ada")[0]) == 3


def test_a_tagged_version_that_holds_the_user_is_named(
    store: MemoryStore, put: Callable[..., None]
):
    put(store, "eve-the-erased")
    dataset = store.shards[0].entries.to_lance()
    dataset.tags.create("kept", dataset.version)
    with pytest.raises(StoreError, match=rf"version {dataset.version} of entries_0000 still holds"):
        erase_rows(store, "eve-the-erased")


def test_a_file_that_is_left_is_named_and_the_user_is_not(
    store: MemoryStore, put: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    put(store, "eve-the-erased")
    monkeypatch.setattr("lightmem_core.long_term.erase._drop_old", lambda table: 0)
    with pytest.raises(StoreError, match="of entries_0000 still holds 3 rows") as raised:
        erase_rows(store, "eve-the-erased")
    assert "eve" not in str(raised.value)
    monkeypatch.setattr("lightmem_core.long_term.erase._check_versions", lambda table, where: None)
    proof = Proof.of(store, "eve-the-erased")
    erase_rows(store, "eve-the-erased")
    with pytest.raises(StoreError, match=r"entries_0000.lance/.* still holds the user"):
        proof.check(proof.files())


@pytest.mark.parametrize("other", ["backfill 1", "the sleep phase", "an erase"])
def test_an_erase_stands_beside_no_other_run(store: MemoryStore, other: str):
    mine, others = Leases(store.database), Leases(store.database)
    others.holder = "another-host/1/1"
    with others.held(other), pytest.raises(StoreError, match=f"{other} is under way"):
        mine.held(ERASING).__enter__()
    with mine.held(ERASING), pytest.raises(StoreError, match="an erase is under way"):
        others.held(other).__enter__()
    with mine.held("backfill 2"), others.held("the sleep phase"):
        pass


# --- the ledger --------------------------------------------------------------------------------


def test_the_ledger_forgets_the_user_and_keeps_the_rest(store: MemoryStore):
    asleep = Run("sleep-1", "sleep", "done", 1, 2, {"user_id": "eve'x"}, {"entries": 3})
    failed = Run(
        "sleep-2", "sleep", "failed", 2, 3, {"user_id": None}, {"error": 'of user "eve\'x"'}
    )
    others = Run("sleep-3", "sleep", "done", 3, 4, {"user_id": "eve'x2"}, {})
    read = Run("backfill-1", "backfill", "done", 4, 5, {"sources": ["eve'x"]}, {})
    for run in (asleep, failed, others, read):
        store.runs.write(run)
    assert erase_from_ledger(store, "eve'x") == 2
    hidden = pseudonym("eve'x", store.salt)
    assert store.runs.get("sleep-1") == replace(asleep, request={"user_id": hidden})
    assert store.runs.get("sleep-2").report == {"error": f"of user '{hidden}'"}
    assert [store.runs.get(run.id) for run in (others, read)] == [others, read]
    runs = Path(store.database.uri) / "runs.lance"
    named = [p for p in runs.rglob("*") if p.is_file() and b'"eve\'x"' in p.read_bytes()]
    assert [re.sub(r"/[^/]*$", "", str(p.relative_to(runs))) for p in named] == ["data"]
    assert erase_from_ledger(store, "eve'x") == 0


@pytest.mark.parametrize("said", ["id", "text", "id of a version"])
def test_what_a_failed_run_said_of_the_user_goes_before_the_rows(
    store: MemoryStore, put: Callable[..., None], store_config: StoreConfig, said: str
):
    """The rows alone tell it: an erase that left it would be done the next time, and not proved."""
    put(store, "eve-the-erased", "ada")
    shard, eve = store.shards[0], of_users(["eve-the-erased"])
    held = (shard.versions if said == "id of a version" else shard.entries).search().where(eve)
    secret = held.to_list()[0]["text" if said == "text" else "id"]
    for name in ("StoreError", "ComponentError"):
        report = {"error": f"{name}: no successor {secret!r}", "undecided": {secret: 1}}
        store.runs.write(Run(f"sleep-{name}", "sleep", "failed", 1, report=report))
    erased = erase_user(store, store_config, "eve-the-erased")
    erased.prove()
    assert erased.report["runs_named"] == 2
    assert naming(store, secret) == []
    assert store.runs.get("sleep-StoreError").report["undecided"] == {"erased with a user": 1}


def test_an_error_of_others_is_kept_and_one_that_may_be_of_anybody_is_not():
    kept = [
        "StoreError: the disk is full",
        "it was killed; online-1 went on",
        "KeyboardInterrupt: ",
    ]
    assert [without_error({"error": e}) for e in kept] == [{"error": e} for e in kept]
    hidden = {"error": "RayTaskError(ValueError): erased with a user"}
    assert without_error({"error": "RayTaskError(ValueError): bad text 'x'"}) == hidden
    assert without_error(hidden) == hidden
    assert without_error({"entries": 3}) == {"entries": 3}


@pytest.mark.parametrize("place", ["runs.lance/left", "_runs/sleep-1/left.bin"])
def test_an_erase_fails_before_the_rows_go_while_a_file_beside_them_holds_an_id(
    store: MemoryStore, put: Callable[..., None], store_config: StoreConfig, place: str
):
    """And is done only once that file is gone, however often it is tried."""
    put(store, "eve-the-erased")
    store.runs.write(Run("sleep-1", "sleep", "done", 1))
    left = Path(store.database.uri) / place
    left.parent.mkdir(parents=True, exist_ok=True)
    entry = store.shards[0].entries.search().to_list()[0]["id"]
    left.write_bytes(b"\0" * ((1 << 20) - 5) + entry.encode())  # across two blocks
    for _ in range(2):
        with pytest.raises(StoreError, match="holds an id of the user"):
            erase_user(store, store_config, "eve-the-erased")
    assert len(rows(store, "eve-the-erased")[0]) == 3
    left.unlink()
    erase_user(store, store_config, "eve-the-erased").prove()


def test_only_the_shard_of_the_user_is_read_to_prove_it(tmp_path: Path, put: Callable[..., None]):
    place = StoreConfig(uri=str(tmp_path), shards=3)
    store = MemoryStore.create(place, VectorModel("hash-16", 16))
    put(store, "eve-the-erased")
    number = store.shard_number("eve-the-erased")
    files = Proof.of(store, "eve-the-erased").files()
    assert {path.relative_to(tmp_path).parts[0] for path in files} == {
        f"{name}_{number:04}.lance" for name in ("entries", "messages", "versions")
    }


def test_the_pseudonym_of_a_user_differs_from_store_to_store(store: MemoryStore, tmp_path: Path):
    other = MemoryStore.create(StoreConfig(uri=str(tmp_path / "other")), store.model)
    again = MemoryStore.open(StoreConfig(uri=store.database.uri))
    names = [pseudonym("eve", s.salt) for s in (store, again, other)]
    assert names[0] == names[1] != names[2]


# --- what names a user -------------------------------------------------------------------------

LONG = "z" * 10_000


@pytest.mark.parametrize(
    ("user", "raw", "goes"),
    [
        ("eve", '{"user_id": "eve", "role": 1}', True),
        ("eve", '{"user_id": "bob", "name": "eve"}', False),
        ("eve", '{"sample_id": "eve", "conversation": 3}', True),
        ("eve", '{"question_id": "bob", "answer": "eve"}', False),
        ("eve", '{"name": "eve"}', True),
        ("eve", '[1, {"who": ["eve"]}]', True),
        ("eve", '{"text": "eve said"}', False),
        ("eve", '{"user_id": "eve", "content": "cut o', True),
        ("eve", '{"user_id": "eve2", "content": "cut o', False),
        ("42", '{"user_id": 42}', True),
        ("ünï", '{"user_id": "\\u00fcn\\u00ef", "content": "cu', True),
        ("ünï", '{"user_id": "ünï", "content": "cu', True),
        ('a"b', '{"user_id": "a\\"b", "content": "cu', True),
        (LONG, f'{{"user_id": "{LONG}'[:2_000], True),
        (LONG, '{"user_id": "zz', False),
        ("eve", "not JSON at all", False),
    ],
)
def test_a_raw_row_goes_with_the_user_it_names(user: str, raw: str, goes: bool):
    row = {"source": "in:1", "reason": "bad_json", "detail": "", "raw": raw}
    assert Traces(user).owns(row) is goes


def test_a_raw_row_without_an_owner_goes_by_its_place_in_the_input():
    row = {"source": "in:1", "reason": "wrong_type", "detail": "", "raw": '{"text": 3}'}
    assert Traces("eve", frozenset({"in:1"})).owns(row)
    assert not Traces("eve", frozenset({"in:10"})).owns(row)
    assert not Traces("eve", frozenset({"in:1"})).owns({**row, "raw": '{"user_id": "bob"}'})


def test_a_value_is_redacted_wherever_it_stands():
    value = {
        "by_user": {"eve": [1, "eve", {"who": "eve"}], "bob": 2},
        "eve": 3,
        "sources": ["eve"],
        "text": "of 'eve', not of 'event'",
    }
    hidden = "erased-1"
    assert Redaction("eve", hidden).of(value) == {
        "by_user": {hidden: [1, hidden, {"who": hidden}], "bob": 2},
        "eve": 3,
        "sources": ["eve"],
        "text": f"of '{hidden}', not of 'event'",
    }
