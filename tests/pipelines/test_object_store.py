"""A run on an S3 server from the input to a search, and which files a URI names there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from lightmem_core import Config, factory
from lightmem_core.config import Component, StoreConfig
from lightmem_core.errors import InputError
from lightmem_core.long_term.objects import filesystem, s3_filesystem
from lightmem_core.long_term.retrieve import Query
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.transfer import ExportRequest, export
from lightmem_core.long_term.versions import history
from lightmem_pipelines.backfill import BackfillRequest, backfill
from lightmem_pipelines.erase import erase
from lightmem_pipelines.files import RunFiles, find_files, options_for
from lightmem_pipelines.reembed import ReembedRequest, reembed
from lightmem_pipelines.sleep import SleepRequest, sleep
from lightmem_pipelines.transfer import import_into
from lightmem_pipelines.undo import undo_run

DAY = 86_400
LISBON, NUTS = "I live in Lisbon.", "I am allergic to nuts."


def all_rows(files: RunFiles, kind: str) -> pa.Table:
    return pa.concat_tables(files.rows_of(kind, name) for name in files.names(kind))


@pytest.fixture
def place(bucket: Callable[..., StoreConfig]) -> StoreConfig:
    return bucket()


def put(place: StoreConfig, name: str, *rows: Any) -> str:
    """Write JSON lines beside the store, and return their URI."""
    uri = f"{place.uri}/../{name}".replace("/deep/store/..", "")
    system, path = filesystem(uri, place.storage_options)
    with system.open_output_stream(path) as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    return uri


def said(user: str, day: int, text: str) -> dict[str, Any]:
    time = 1_700_000_000 + day * DAY
    return {
        "user_id": user,
        "session_id": f"day{day}",
        "role": "user",
        "content": text,
        "timestamp": time,
    }


def with_memory(config: Config, **parts: Any) -> Config:
    return config.model_copy(update={"memory": config.memory.model_copy(update=parts)})


def found(config: Config, user: str) -> list[str]:
    hits = factory.retrieval(config.memory)([Query(user, NUTS, 5)])[0]
    return [hit.entry.text for hit in hits]


@pytest.mark.ray
def test_a_store_in_a_bucket_goes_through_all_that_can_be_done_with_one(
    config: Config, place: StoreConfig
):
    config = with_memory(config, store=place.model_copy(update={"shards": 2}))
    for user in ("ada", "ben"):
        talk = [said(user, day, text) for day, text in enumerate((LISBON, NUTS, NUTS))]
        put(place, f"chats/{user}.jsonl", *talk, "bad")
    root = place.uri.removesuffix("deep/store")
    source = f"{root}chats/*.jsonl"
    runs = [backfill(config, BackfillRequest((source,), progress=False)) for _ in range(2)]
    assert [run.report["messages"]["stored"] for run in runs] == [6, 0]
    assert runs[1].report["messages"]["duplicate"] == 6

    asleep = sleep(config, SleepRequest(progress=False))
    assert (asleep.report["entries"], asleep.report["merged"]) == (6, 2)
    saved = all_rows(RunFiles.of(config.memory.store, asleep.id), "decisions")
    assert sorted(saved["user_id"].to_pylist()) == ["ada", "ben"]
    assert found(config, "ada") == [NUTS, LISBON]

    assert undo_run(config, asleep.id).report["restored"] == 4
    assert found(config, "ada") == [NUTS, NUTS, LISBON]
    store = MemoryStore.open(config.memory.store)
    _, merged, _ = store.shard_for("ada").entries_of(["ada"])
    assert [state.active for state in history(store, merged.id).states] == [True, False, True]

    moved = with_memory(config, embedder=Component(use="hash", options={"dim": 24}))
    run = reembed(moved, ReembedRequest(drop_old=True, progress=False))
    assert (run.report["entries"], run.report["versions"]) == (6, 8)
    assert found(moved, "ada") == [NUTS, NUTS, LISBON]

    copy = f"{root}copy"
    system, folder = filesystem(copy, place.storage_options)
    store = MemoryStore.open(moved.memory.store)
    export(store, system, folder, ExportRequest(("ada",)))
    erase(moved, "ada")
    assert store.shard_for("ada").entries_of(["ada"], tombstones=True) == []
    assert len(found(moved, "ben")) == 3
    added = {
        kind: count["added"] for kind, count in import_into(moved, copy).report["rows"].items()
    }
    assert added == {"entries": 3, "versions": 4, "messages": 3}
    assert found(moved, "ada") == [NUTS, NUTS, LISBON]


def test_stars_in_a_uri_name_files_as_they_do_in_a_path(place: StoreConfig):
    for name in ("in/a.jsonl", "in/b.json", "in/deep/c.jsonl", "in/.hidden.jsonl", "d.jsonl"):
        put(place, name, {})
    root = place.uri.removesuffix("/deep/store")

    def found(pattern: str) -> list[str]:
        files = find_files([f"{root}/{pattern}"], place)
        return [file.path.removeprefix(f"{root}/") for file in files]

    assert found("in/*.jsonl") == ["in/a.jsonl"]
    assert found("in/**/*.jsonl") == ["in/a.jsonl", "in/deep/c.jsonl"]
    assert found("*/deep/*") == ["in/deep/c.jsonl"]
    assert found("in") == ["in/a.jsonl", "in/b.json", "in/deep/c.jsonl"]
    with pytest.raises(InputError, match="names no input"):
        found("in/*.parquet")


def test_options_are_given_to_the_stores_bucket_alone(place: StoreConfig):
    root = place.uri.removesuffix("deep/store")
    assert options_for(f"{root}chats/a.jsonl", place) == place.storage_options
    locked = place.model_copy(
        update={"uri": f"{place.uri.replace('s3:', 's3+ddb:')}?ddbTableName=t"}
    )
    assert options_for(f"{root}chats/a.jsonl", locked) == place.storage_options
    for other in ("s3://another/a.jsonl", f"{root[:-1]}2/a", "a.jsonl", "gs://b/a", "file:///b/a"):
        assert options_for(other, place) is None
    assert options_for("chats/a.jsonl", StoreConfig(storage_options={"a": "b"})) is None


def test_files_of_a_run_are_replaced_listed_and_cleared(place: StoreConfig):
    files = RunFiles.of(place, "run-1")
    assert "HUSH" not in repr(files)
    for number in (1, 2):
        files.write_json("read", "a", {"messages": number})
    assert (list(files.read_json("read")), files.names("read")) == ([{"messages": 2}], ["a"])
    files.clear("read")
    assert (files.names("read"), list(RunFiles.of(place, "run-2").read_json("x"))) == ([], [])
    assert s3_filesystem(place.storage_options).get_file_info("no/such").type == 0
