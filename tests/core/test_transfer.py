"""What is exported and imported again is the same, id by id, whatever the shards."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from lightmem_core.config import StoreConfig
from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.errors import InputError, StoreError
from lightmem_core.long_term.embed import encode
from lightmem_core.long_term.render import embedding_text
from lightmem_core.long_term.restore import ImportCount, import_rows, read_manifest
from lightmem_core.long_term.retrieve import Query, Retrieval
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.long_term.transfer import ExportRequest, export
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Extracted, Message, Source

EMBEDDER = HashEmbedder(32)
MODEL = VectorModel.of(EMBEDDER)
USERS = ["ada", "x' OR '1'='1", "ünïcödé 😀\n用户"]
LOCAL = fs.LocalFileSystem()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., MemoryStore]:
    def make_store(name: str, shards: int = 1) -> MemoryStore:
        return MemoryStore.create(StoreConfig(uri=str(tmp_path / name), shards=shards), MODEL)

    return make_store


@pytest.fixture(scope="module")
def filled(
    tmp_path_factory: pytest.TempPathFactory,
    message: Callable[..., Message],
    entry: Callable[..., Entry],
) -> MemoryStore:
    """Some users in two shards; the first entry of each was changed twice. Not to be changed."""
    config = StoreConfig(uri=str(tmp_path_factory.mktemp("filled")), shards=2)
    store = MemoryStore.create(config, MODEL)
    for user in USERS:
        said = [f"{user} likes tea {at}" for at in range(3)]
        messages = [message(t, at, user_id=user, state="stored") for at, t in enumerate(said)]
        entries = [
            entry(t, at, user_id=user, sources=(Source("s1", at, messages[at].id),), event_at=at)
            for at, t in enumerate(said)
        ]
        vectors = encode(EMBEDDER, [embedding_text(e) for e in entries])
        entries = [replace(e, vector=v) for e, v in zip(entries, vectors, strict=True)]
        shard = store.shard_for(user)
        row = Extracted(user, tuple(messages), tuple(entries))
        shard.insert(to_table([row], Extracted), "run-1")
        for gen in (1, 2):
            changed = replace(entries[0], topic=f"changed {gen}", gen=gen, changed_by="night")
            shard.update(to_table([changed], Entry))
    return store


def imported(store: MemoryStore, folder: Path) -> dict[str, ImportCount]:
    manifest = read_manifest(LOCAL, str(folder), MODEL)
    return import_rows(store, LOCAL, str(folder), manifest, EMBEDDER)


def rows(store: MemoryStore) -> dict[str, pa.Table]:
    """All rows of a store, by table and in the order of their ids."""
    kinds = {"messages": "id", "entries": "id", "versions": "key"}
    return {
        kind: pa.concat_tables(getattr(s, kind).to_arrow() for s in store.shards).sort_by(key)
        for kind, key in kinds.items()
    }


def counts(found: dict[str, ImportCount], of: str) -> dict[str, int]:
    return {kind: getattr(count, of) for kind, count in found.items()}


def hits(store: MemoryStore) -> Iterator[tuple[str, float]]:
    found = Retrieval(EMBEDDER, store)([Query(user, "who likes tea?") for user in USERS])
    return ((hit.entry.id, hit.score) for of_user in found for hit in of_user)


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
@pytest.mark.parametrize("shards", [1, 5])
def test_a_round_trip_gives_the_same_rows_and_answers(
    filled: MemoryStore, make: Callable[..., MemoryStore], tmp_path: Path, format, shards: int
):
    written = export(filled, LOCAL, str(tmp_path / "out"), ExportRequest(format=format))
    assert written == {"messages": 9, "entries": 9, "versions": 6}
    other = make("other", shards)
    assert counts(imported(other, tmp_path / "out"), "added") == written
    assert rows(other) == rows(filled)  # vectors too, to the last bit
    assert list(hits(other)) == list(hits(filled))
    assert len(list(hits(other))) == 9


def test_importing_twice_changes_nothing(
    filled: MemoryStore, make: Callable[..., MemoryStore], tmp_path: Path
):
    written = export(filled, LOCAL, str(tmp_path / "out"), ExportRequest())
    other = make("other")
    imported(other, tmp_path / "out")
    before = rows(other)
    again = imported(other, tmp_path / "out")
    assert counts(again, "kept") == written
    assert rows(other) == before


def test_the_state_with_the_higher_gen_stays(
    filled: MemoryStore, make: Callable[..., MemoryStore], tmp_path: Path
):
    export(filled, LOCAL, str(tmp_path / "out"), ExportRequest())
    other = make("other")
    imported(other, tmp_path / "out")
    ahead, behind = make("ahead"), other
    imported(ahead, tmp_path / "out")
    _, second, third = ahead.shards[0].entries_of(["ada"])
    ahead.shards[0].update(to_table([replace(third, topic="newer", gen=1)], Entry))
    behind.shards[0].update(to_table([replace(second, topic="later", gen=1)], Entry))
    export(ahead, LOCAL, str(tmp_path / "later"), ExportRequest(("ada",)))
    assert counts(imported(other, tmp_path / "later"), "renewed")["entries"] == 1
    topics = [e.topic for e in other.shards[0].entries_of(["ada"])]
    assert topics == ["changed 2", "later", "newer"]


def test_an_import_that_was_cut_off_is_finished_by_the_next(
    filled: MemoryStore, make: Callable[..., MemoryStore], tmp_path: Path
):
    out = tmp_path / "out"
    export(filled, LOCAL, str(out), ExportRequest(format="jsonl"))
    whole = (out / "messages" / "0001.jsonl").read_bytes()
    (out / "messages" / "0001.jsonl").write_bytes(whole[:-20])
    other = make("other", 3)
    with pytest.raises(InputError, match=r"messages/0001.jsonl .*export again"):
        imported(other, out)
    assert rows(other)["entries"].num_rows == 9  # a message that is found has all its entries
    (out / "messages" / "0001.jsonl").write_bytes(whole)
    imported(other, out)
    assert rows(other) == rows(filled)


def test_only_the_named_users_are_exported(
    filled: MemoryStore, make: Callable[..., MemoryStore], tmp_path: Path
):
    request = ExportRequest((USERS[1], USERS[1]))
    written = export(filled, LOCAL, str(tmp_path / "out"), request)
    assert written == {"messages": 3, "entries": 3, "versions": 2}
    other = make("other")
    imported(other, tmp_path / "out")
    found = rows(other)
    assert {user for table in found.values() for user in table["user_id"].to_pylist()} == {USERS[1]}
    with pytest.raises(StoreError, match="the store holds nothing of user 'nobody'"):
        export(filled, LOCAL, str(tmp_path / "none"), ExportRequest(("ada", "nobody")))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_without_vectors_the_texts_are_embedded_again(
    filled: MemoryStore, make: Callable[..., MemoryStore], tmp_path: Path, format
):
    export(filled, LOCAL, str(tmp_path / "out"), ExportRequest(format=format, vectors=False))
    wide = HashEmbedder(64)
    config = StoreConfig(uri=str(tmp_path / "wide"))
    other = MemoryStore.create(config, VectorModel.of(wide))
    manifest = read_manifest(LOCAL, str(tmp_path / "out"), VectorModel.of(wide))
    import_rows(other, LOCAL, str(tmp_path / "out"), manifest, wide)
    for kind, table in rows(filled).items():
        bare = table.drop_columns([n for n in table.column_names if n == "vector"])
        assert rows(other)[kind].select(bare.column_names) == bare
    entries = other.shards[0].entries_of(USERS)
    expected = encode(wide, [embedding_text(e) for e in entries])
    np.testing.assert_array_equal([e.vector for e in entries], expected)


def test_lines_have_readable_keys(filled: MemoryStore, tmp_path: Path):
    export(filled, LOCAL, str(tmp_path / "out"), ExportRequest((USERS[2],), "jsonl"))
    (file,) = (tmp_path / "out" / "entries").iterdir()
    found = [json.loads(line) for line in file.read_text().splitlines()]
    row = next(row for row in found if row["said_at"] == 0)
    assert (row["user_id"], row["text"]) == (USERS[2], f"{USERS[2]} likes tea 0")
    assert len(row["vector"]) == 32
    assert row["sources"][0]["session_id"] == "s1"


# --- what is refused ---------------------------------------------------------------------------


def test_an_export_has_a_manifest_once_it_is_whole(
    filled: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    monkeypatch.setattr("lightmem_core.long_term.transfer._write_parquet", None)
    with pytest.raises(TypeError):
        export(filled, LOCAL, str(out), ExportRequest())
    with pytest.raises(InputError, match=r"holds no finished export: it has no manifest.json"):
        read_manifest(LOCAL, str(out), MODEL)
    monkeypatch.undo()
    export(filled, LOCAL, str(out), ExportRequest())
    assert not list(out.rglob("*.part"))
    with pytest.raises(InputError, match="holds an export already: name an empty folder"):
        export(filled, LOCAL, str(out), ExportRequest())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"embedder": "minilm"},
            r"vectors of minilm \(dimension 32\).*or export with --no-vectors",
        ),
        ({"dim": 8}, r"\(dimension 8\), but the configured embedder is hash-32 \(32\)"),
        ({"schema_version": "0"}, "schema version 0, this release reads 1"),
        ({"surprise": 1}, "is no manifest of an export"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    filled: MemoryStore, tmp_path: Path, change: dict[str, object], says: str
):
    export(filled, LOCAL, str(tmp_path), ExportRequest())
    place = tmp_path / "manifest.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | change))
    with pytest.raises(InputError, match=says):
        read_manifest(LOCAL, str(tmp_path), MODEL)
