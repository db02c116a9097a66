"""Erase, export and import as a person uses them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem

from lightmem_core import Config, factory, load_config
from lightmem_core.errors import StoreError
from lightmem_core.formats import Rejected
from lightmem_core.long_term.embed import encode
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.long_term.tables import of_users
from lightmem_core.long_term.transfer import ExportRequest, export
from lightmem_core.schema import to_table
from lightmem_core.types import Decision, Entry, Extracted, Message, Source
from lightmem_pipelines import output
from lightmem_pipelines.erase import erase
from lightmem_pipelines.files import RunFiles
from lightmem_pipelines.planning import Scope, plan_shard
from lightmem_pipelines.transfer import import_into

FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"
USERS = ("ada", "eve-the-erased")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A store with two users, as a backfill and a sleep phase leave it; no Ray is needed."""
    config = load_config(FAKES, uri=str(tmp_path / "store"))
    embedder = factory.embedder(config.memory)
    store = MemoryStore.create(config.memory.store, VectorModel.of(embedder))
    for user in USERS:
        (vector,) = encode(embedder, [f"{user} likes tea"])
        store.shard_for(user).insert(to_table([_extracted(user, vector)], Extracted), "backfill-1")
    files = RunFiles(config.memory.store.uri, "sleep-1")
    decisions = [Decision(user, f"e-{user}", "merge", "x", 0.9, "same") for user in USERS]
    files.write_rows("decisions", "both", to_table(decisions, Decision))
    files.write_rows("decisions", "eve", to_table(decisions[1:], Decision))
    files.write_json("users", "known", {"users": dict.fromkeys(USERS, 1)})
    store.runs.write(Run("sleep-1", "sleep", "done", 1, 2, {"user_id": USERS[1]}))
    bad = [
        Rejected("in:1", "bad_json", "", '{"user_id": "eve-the-erased", "content": "secr'),
        Rejected("in:2", "missing_user", "", '{"content": "by ada", "for": "eve-the-erased"}'),
        Rejected("in:3", "bad_time", "", '{"user_id": "ada", "content": "eve-the-erased"}'),
        Rejected("in:eve-the-erased", "wrong_type", "", '{"content": 3}'),
    ]
    RunFiles(config.memory.store.uri, "backfill-1").write_rows(
        "quarantine", "in", to_table(bad, Rejected)
    )
    return config


def _extracted(user: str, vector: np.ndarray) -> Extracted:
    said = Message(
        user, "s", 0, "user", f"{user} likes tea", 1, source=f"in:{user}", id=f"m-{user}"
    )
    entry = Entry(
        f"e-{user}-0123456789", user, "s", 0, 0, user, f"{user} likes tea", "", 1, None,
        (Source("s", 0, said.id),), vector=vector,
    )  # fmt: skip
    return Extracted(user, (replace(said, state="stored"),), (entry,))


def left_of_runs(config: Config) -> dict[str, pa.Table]:
    folder = Path(config.memory.store.uri) / "_runs"
    return {str(p.relative_to(folder)): pq.read_table(p) for p in folder.rglob("*.parquet")}


def test_a_user_goes_from_the_tables_the_ledger_and_the_files_of_runs(config: Config):
    before = left_of_runs(config)
    run = erase(config, "eve-the-erased")
    assert {t["name"]: t["rows"] for t in run.report["tables"]}["entries_0000"] == 1
    assert run.report["run_files"] == {"files": 4, "rows": 6}
    assert run.report["runs_named"] == 1
    left = left_of_runs(config)
    assert left.keys() == {"sleep-1/decisions/both.parquet", "backfill-1/quarantine/in.parquet"}
    assert left["sleep-1/decisions/both.parquet"] == before["sleep-1/decisions/both.parquet"][:1]
    assert left["backfill-1/quarantine/in.parquet"]["source"].to_pylist() == ["in:3"]
    assert left["backfill-1/quarantine/in.parquet"] == before[
        "backfill-1/quarantine/in.parquet"
    ].slice(2, 1)
    (known,) = RunFiles(config.memory.store.uri, "sleep-1").read_json("users")
    assert list(known["users"].values()) == [1, 1]
    folder = Path(config.memory.store.uri)
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".parquet"]
    assert not [p for p in files if b"eve-the-erased" in p.read_bytes()]
    again = erase(config, "eve-the-erased")
    assert again.report["run_files"] == {"files": 0, "rows": 0}
    assert left_of_runs(config) == left


def asleep(config: Config) -> Path:
    """Plan a sleep, as its first step does, and return what it has seen."""
    store = MemoryStore.open(config.memory.store)
    request = {"user_id": None, "every": False, "config": "a"}
    run = Run("sleep-2", "sleep", "done", 5, request=request)
    store.runs.write(run)
    for number in range(store.shard_count):
        plan_shard(config, Scope.of(store, run), number)
    return Path(RunFiles.of(config.memory.store, run.id).folder("seen"))


def test_what_a_sleep_has_seen_of_the_user_goes_and_the_rest_stays(config: Config):
    (seen,) = asleep(config).iterdir()
    before = pq.read_table(seen)
    assert sorted(before["user_id"].to_pylist()) == sorted(USERS)
    erase(config, "eve-the-erased")
    left = pq.read_table(seen)
    assert left == before.filter(pc.equal(before["user_id"], "ada"))  # pyright: ignore[reportAttributeAccessIssue]
    files = [p for p in Path(config.memory.store.uri).rglob("*") if p.is_file()]
    assert not [p for p in files if b"e-eve-the-erased-" in p.read_bytes()]


def test_an_erase_that_was_cut_off_before_the_rows_went_is_finished_by_the_next(
    config: Config, monkeypatch: pytest.MonkeyPatch
):
    asleep(config)

    def dies(store: MemoryStore, user_id: str):
        store.shard_for(user_id).entries.delete(of_users([user_id]))
        raise OSError("it died")

    with monkeypatch.context() as patch:
        patch.setattr("lightmem_core.long_term.run_files.erase_rows", dies)
        with pytest.raises(OSError, match="died"):
            erase(config, "eve-the-erased")
    assert erase(config, "eve-the-erased").status == "done"
    files = [p for p in Path(config.memory.store.uri).rglob("*") if p.is_file()]
    assert not [p for p in files if b"e-eve-the-erased-" in p.read_bytes()]


def test_an_erase_that_finds_an_id_in_a_file_of_a_run_fails_each_time_until_it_is_gone(
    config: Config,
):
    """A file whose rows name nobody: what is left of the user must not be proven gone."""
    ids = pa.table({"state": ["e-eve-the-erased-0123456789@7"]})
    RunFiles.of(config.memory.store, "sleep-2").write_rows("seen", "0000", ids)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"0000.parquet holds an id of the user"):
            erase(config, "eve-the-erased")
        shard = MemoryStore.open(config.memory.store).shard_for("eve-the-erased")
        assert len(shard.entries_of(["eve-the-erased"])) == 1
    RunFiles.of(config.memory.store, "sleep-2").clear("seen")
    assert erase(config, "eve-the-erased").status == "done"


@pytest.mark.parametrize("name", [".half.parquet.77", "half.parquet"])
def test_a_file_that_was_cut_off_while_it_was_written_goes(config: Config, name: str):
    place = Path(config.memory.store.uri) / "_runs" / "sleep-1" / "decisions" / name
    whole = next(place.parent.glob("*.parquet")).read_bytes()
    place.write_bytes(whole[: len(whole) // 2])
    erase(config, "eve-the-erased")
    assert not place.exists()
    assert "sleep-1/decisions/both.parquet" in left_of_runs(config)


def test_a_file_of_an_unknown_kind_that_names_the_user_is_named(config: Config):
    place = Path(config.memory.store.uri) / "_runs" / "sleep-1" / "notes.txt"
    place.write_text("about eve-the-erased")
    with pytest.raises(StoreError, match=r"notes.txt may name the user") as raised:
        erase(config, "eve-the-erased")
    assert "eve" not in str(raised.value)
    run = MemoryStore.open(config.memory.store).runs.newest()
    assert (run.kind, run.status) == ("erase", "failed")
    place.unlink()
    assert erase(config, "eve-the-erased").id == run.id


def test_the_text_of_a_run_tells_what_an_erase_and_an_import_did(config: Config, tmp_path: Path):
    store = MemoryStore.open(config.memory.store)
    export(store, LocalFileSystem(), str(tmp_path / "out"), ExportRequest(("eve-the-erased",)))
    texts = [output.run_text(erase(config, "eve-the-erased")) for _ in range(2)]
    assert "entries_0000                1 rows gone" in texts[0]
    assert ["nothing of this user was found" in text for text in texts] == [False, True]
    imported = output.run_text(import_into(config, str(tmp_path / "out")))
    assert "entries           1 added         0 renewed" in imported


def test_the_commands_export_import_and_erase(
    config: Config, command: Callable[..., Any], tmp_path: Path
):
    options = ("--config", str(FAKES), "--store", config.memory.store.uri, "--json")
    out = str(tmp_path / "out")
    exported = command("export", "eve-the-erased", "--to", out, "--format", "jsonl", *options)
    assert json.loads(exported.stdout)["rows"] == {"messages": 1, "entries": 1, "versions": 0}
    asked = command("erase", "eve-the-erased", *options, answers="n\n")
    assert (asked.returncode, asked.stdout) == (1, "")
    erased = json.loads(command("erase", "eve-the-erased", "--yes", *options).stdout)
    assert (erased["status"], erased["searched"]) == ("done", "files")
    assert "eve" not in json.dumps(erased)
    gone = command("export", "eve-the-erased", "--to", str(tmp_path / "no"), *options)
    assert (gone.returncode, gone.stderr.count("\n")) == (1, 1)
    back = json.loads(command("import", out, *options).stdout)
    assert back["rows"]["entries"] == {"added": 1, "renewed": 0, "kept": 0}
    hits = json.loads(command("search", "eve-the-erased", "tea", *options).stdout)
    assert [hit["memory"] for hit in hits] == ["eve-the-erased likes tea"]
