"""What people and agents change online: single entries, a user's sleep, an erase."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from lightmem_core import factory, load_config
from lightmem_core.config import Config
from lightmem_core.errors import StoreError
from lightmem_core.long_term import restore
from lightmem_core.long_term.lease import Leases
from lightmem_core.long_term.reembed import Reembedding, next_generation, store_embedded
from lightmem_core.long_term.retrieve import Query
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.long_term.tables import now_ms
from lightmem_core.long_term.transfer import ExportRequest, export
from lightmem_core.long_term.undo import undo
from lightmem_core.long_term.versions import entries_as_of, history
from lightmem_core.online.service import Incoming
from lightmem_core.online.writer import OnlineWriter
from lightmem_core.types import DELETED, Entry

FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(FAKES, uri=str(tmp_path / "store"))


@pytest.fixture
def writer(config: Config) -> Iterator[OnlineWriter]:
    writer = OnlineWriter(config, wait_s=0)
    yield writer
    writer.close()


def written(writer: OnlineWriter, *texts: str, user: str = "ada", start: int = 0) -> list[Entry]:
    """Entries of these texts, said one after the other."""
    messages = [Incoming("user", t, at) for at, t in enumerate(texts, start)]
    writer.add(user, "s1", messages)
    writer.flush(user)
    return [e for e in all_of(writer.shared.store, user) if e.said_at >= start]


def all_of(store: MemoryStore, user: str = "ada") -> list[Entry]:
    return store.shard_for(user).entries_of([user], tombstones=True)


def texts(store: MemoryStore, user: str = "ada") -> list[str]:
    return [e.text for e in store.shard_for(user).entries_of([user])]


def found(config: Config, text: str, **other) -> list[str]:
    hits = factory.retrieval(config.memory)([Query("ada", text, 50, **other)])[0]
    return [hit.entry.text for hit in hits]


# --- single entries ----------------------------------------------------------------------------


def test_an_update_gets_a_new_vector_and_keeps_what_was(config: Config, writer: OnlineWriter):
    (old, other) = written(writer, "I live in Porto.", "It rains.")
    new = writer.update("ada", old.id, "I live in Lisbon.", '{"b": 1, "a": 2}')
    assert (new.text, new.gen, new.metadata) == ("I live in Lisbon.", 1, '{"a": 2, "b": 1}')
    expected = factory.embedder(config.memory).encode(["user: I live in Lisbon."])[0]
    (present, same) = all_of(writer.shared.store)
    assert present.vector is not None
    assert np.allclose(present.vector, expected)
    assert (same.gen, same.text) == (0, other.text)
    again = writer.update("ada", old.id, metadata="{}")
    assert (again.text, again.gen, again.metadata) == ("I live in Lisbon.", 2, "")
    told = history(writer.shared.store, old.id)
    assert [(s.text, s.metadata) for s in told.states] == [
        ("I live in Porto.", ""),
        ("I live in Lisbon.", '{"a": 2, "b": 1}'),
        ("I live in Lisbon.", ""),
    ]
    assert [v.replaced_by for v in told.versions] == [writer.shared.run_id] * 2


def test_a_deleted_entry_is_hidden_but_in_its_history(config: Config, writer: OnlineWriter):
    (old, _) = written(writer, "I live in Porto.", "It rains.")
    before = now_ms()
    writer.delete("ada", old.id)
    assert found(config, "Porto") == ["It rains."]
    assert "I live in Porto." in found(config, "Porto", as_of=before)
    told = history(writer.shared.store, old.id)
    assert (told.entry.deleted, told.entry.active) == (True, False)
    assert [s.deleted for s in told.states] == [False, True]
    assert [e.deleted for e in entries_as_of(writer.shared.store.shards[0], "ada", now_ms())] == [
        True,
        False,
    ]


@pytest.mark.parametrize("change", ["update", "delete"])
def test_only_the_users_own_active_entries_can_be_changed(writer: OnlineWriter, change: str):
    (mine,) = written(writer, "It rains.")
    (hers,) = written(writer, "It snows.", user="eve")
    (gone,) = written(writer, "It hails.", start=1)
    writer.delete("ada", gone.id)
    call = getattr(writer, change)
    for user, entry in (("eve", mine.id), ("ada", hers.id), ("ada", gone.id), ("ada", "' OR 1=1")):
        with pytest.raises(KeyError):
            call(user, entry, **({"text": "new"} if change == "update" else {}))
    store = writer.shared.store
    assert (texts(store), texts(store, "eve")) == (["It rains."], ["It snows."])


@pytest.mark.parametrize("wrong", [{"text": " "}, {"metadata": "[1]"}, {"metadata": "{"}])
def test_what_no_entry_can_hold_changes_nothing(writer: OnlineWriter, wrong: dict[str, str]):
    (entry,) = written(writer, "It rains.")
    with pytest.raises(ValueError, match=r"empty|object"):
        writer.update("ada", entry.id, **wrong)
    assert all_of(writer.shared.store)[0].gen == 0


def test_a_message_that_waits_can_be_changed_and_withdrawn(writer: OnlineWriter):
    taken = writer.add("ada", "s1", [Incoming("user", t) for t in ("one", "two", "three")])
    writer.delete("ada", taken[0].message_id)
    changed = writer.update("ada", taken[1].message_id, "TWO")
    assert (changed.text, changed.sources[0].message_id) == ("TWO", taken[1].message_id)
    assert texts(writer.shared.store) == ["TWO", "three"]
    assert writer.status().waiting == 0


def test_a_deleted_entry_stays_so_in_a_copy_of_the_store(
    config: Config, writer: OnlineWriter, tmp_path: Path
):
    """Exported and imported, and embedded anew; what carries metadata keeps it."""
    (old, new) = written(writer, "I live in Porto.", "It rains.")
    writer.update("ada", new.id, metadata='{"a": 1}')
    writer.delete("ada", old.id)
    system, folder = fs.LocalFileSystem(), str(tmp_path / "export")
    export(writer.shared.store, system, folder, ExportRequest())
    embedder = factory.embedder(config.memory)
    model = VectorModel.of(embedder)
    place = config.memory.store.model_copy(update={"uri": str(tmp_path / "copy"), "shards": 3})
    copy = MemoryStore.create(place, model)
    manifest = restore.read_manifest(system, folder, model)
    restore.import_rows(copy, system, folder, manifest, embedder)
    new_vectors = next_generation(copy, VectorModel("other", embedder.dim))
    for number, users in copy.by_shard(["ada"]).items():
        shards = copy.shards[number], new_vectors.shards[number]
        for rows in Reembedding(embedder)(*shards, users):
            store_embedded(shards[1], rows)
    for store in (copy, new_vectors):
        assert [(e.deleted, e.metadata) for e in all_of(store)] == [(True, ""), (False, '{"a": 1}')]
        assert len(history(store, old.id).versions) == 1


# --- sleep -------------------------------------------------------------------------------------


def test_a_sleep_changes_one_user_and_can_be_undone(config: Config, writer: OnlineWriter):
    for user in ("ada", "eve"):
        written(writer, "It rains.", "It rains.", "I like tea.", user=user)
    counts = writer.sleep("ada")
    assert counts == {"merge": 1, "supersede": 0, "update": 0, "delete": 0}
    store = writer.shared.store
    assert (texts(store), len(texts(store, "eve"))) == (["It rains.", "I like tea."], 3)
    run = next(run for run in store.runs.latest() if run.kind == "sleep")
    assert (run.status, run.report["merged"], run.report["applied"]) == ("done", 1, True)
    assert set(writer.sleep("ada").values()) == {0}
    report = undo(store, run.id, "undo-1")
    assert (report.restored, texts(store)) == (2, ["It rains.", "It rains.", "I like tea."])


def test_what_was_deleted_takes_no_part_in_a_sleep_or_its_undo(writer: OnlineWriter):
    (first, second, third) = written(writer, "It rains.", "It rains.", "It rains.")
    writer.delete("ada", first.id)
    assert writer.sleep("ada")["merge"] == 1
    run = next(run for run in writer.shared.store.runs.latest() if run.kind == "sleep")
    writer.delete("ada", third.id)
    assert texts(writer.shared.store) == []
    undo(writer.shared.store, run.id, "undo-1")
    states = {e.id: e.superseded_by for e in all_of(writer.shared.store)}
    assert states == {first.id: DELETED, second.id: "", third.id: DELETED}


def test_a_sleep_waits_for_nobody(config: Config, writer: OnlineWriter):
    written(writer, "It rains.", "It rains.")
    other = Leases(writer.shared.store.database).held("the sleep phase", "an import")
    with other, pytest.raises(StoreError, match="an import is under way"):
        writer.sleep("ada")
    assert writer.sleep("ada")["merge"] == 1


# --- erase -------------------------------------------------------------------------------------


def test_an_erase_leaves_nothing_in_any_file_and_the_writer_goes_on(
    config: Config, writer: OnlineWriter
):
    for user in ("ada-the-user", "eve"):
        written(writer, "It rains.", "It rains.", user=user)
    writer.sleep("ada-the-user")
    writer.add("ada-the-user", "s1", [Incoming("user", "It waits.")])
    ids = [e.id for e in all_of(writer.shared.store, "ada-the-user")]
    counts = writer.erase("ada-the-user")
    assert (counts["entries_0000"], counts["messages_0000"], counts["inbox_0000"]) == (2, 2, 1)
    for path in Path(config.memory.store.uri).rglob("*"):
        held = path.read_bytes() if path.is_file() else b""
        assert not any(i.encode() in held for i in (*ids, "ada-the-user")), path
    assert texts(writer.shared.store, "eve") == ["It rains.", "It rains."]
    assert writer.status().waiting == 0
    assert len(written(writer, "I am back.", user="ada-the-user")) == 1


def test_an_erase_is_refused_beside_another_run(writer: OnlineWriter):
    written(writer, "It rains.")
    other = Leases(writer.shared.store.database).held("backfill 1", "a backfill")
    with other, pytest.raises(StoreError, match="a backfill is under way"):
        writer.erase("ada")
    assert len(written(writer, "It snows.", start=1)) == 1
    assert texts(writer.shared.store) == ["It rains.", "It snows."]
