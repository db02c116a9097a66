"""The laws of a whole run, on a real local Ray and a real store."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
import ray

from lightmem_core import Config
from lightmem_core.config import Component, InputConfig
from lightmem_core.errors import InputError
from lightmem_core.formats import Rejected
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.schema import from_table, to_table
from lightmem_core.types import History, Message
from lightmem_pipelines import reading
from lightmem_pipelines.backfill import BackfillRequest, backfill
from lightmem_pipelines.files import InputFile, RunFiles
from lightmem_pipelines.monitor import start_monitor
from lightmem_pipelines.operators import STEPS, PoolActor, Work
from lightmem_pipelines.replies import RunReplies

pytestmark = pytest.mark.ray

START = 1_700_000_000


def all_rows(files: RunFiles, kind: str) -> pa.Table:
    return pa.concat_tables(files.rows_of(kind, name) for name in files.names(kind))


def message(user: str, session: int, position: int, text: str | None = None) -> dict[str, Any]:
    return {
        "user_id": user,
        "session_id": f"s{session}",
        "position": position,
        "role": "user" if position % 2 == 0 else "assistant",
        "content": text or f"{user} says {session} {position}",
        "timestamp": START + session * 86_400 + position,
    }


def chats(*users: str, sessions: int = 3, length: int = 5) -> list[dict[str, Any]]:
    return [
        message(user, session, position)
        for user in users
        for session in range(sessions)
        for position in range(length)
    ]


def run(config: Config, *sources: str, **asked: Any) -> dict[str, Any]:
    return backfill(config, BackfillRequest(sources, progress=False, **asked)).report


def contents(config: Config) -> dict[str, tuple[Any, ...]]:
    """What is in the store, by entry id, less what differs between runs."""
    store = MemoryStore.open(config.memory.store)
    return {
        e.id: (e.user_id, e.text, e.said_at, e.event_at, e.sources, e.topic, e.vector.tobytes())
        for shard in store.shards
        for user in set(shard.entries.to_arrow()["user_id"].to_pylist())
        for e in shard.entries_of([user])
        if e.vector is not None
    }


def with_store(config: Config, **store: Any) -> Config:
    kept = config.memory.store.model_copy(update=store)
    return config.model_copy(update={"memory": config.memory.model_copy(update={"store": kept})})


def test_the_same_backfill_twice_stores_each_message_once_and_says_so(config, write_lines):
    source = write_lines("in.jsonl", chats("ada", "ben"))
    first, before = run(config, source), contents(config)
    second = run(config, source)
    assert (first["messages"]["stored"], first["entries"]) == (30, 30)
    assert (second["messages"]["duplicate"], second["messages"]["stored"]) == (30, 0)
    assert second["entries"] == 0
    assert contents(config) == before


def test_every_step_from_reading_to_committing_says_its_rows_and_seconds(config, write_lines):
    steps = run(config, write_lines("in.jsonl", chats("ada", "ben")))["steps"]
    stages = ("admit", "compress", "segment", "buffer", "extract", "embed")
    assert set(steps) == {"read", *stages, "commit"}
    assert steps["read"]["rows"] == 30
    assert steps["commit"]["rows"] == steps["embed"]["rows"] > 0
    assert steps["read"]["seconds"] > 0  # of two users a fake stage takes none that would show
    assert steps["commit"]["seconds"] > 0


def test_a_reader_that_is_made_to_wait_does_not_count_that(config, write_lines, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK_MESSAGES", 5)
    source = write_lines("in.jsonl", chats("ada", "ben"))
    monitor = start_monitor()
    reader = reading.Reader(RunFiles.of(config.memory.store, "run-1"), monitor)
    for _ in reader.messages({"path": [source]}, shards=1, parts=1):
        time.sleep(0.5)
    progress = ray.get(monitor.read.remote())
    assert progress.rows["read"] == 30
    assert progress.seconds["read"] < 6 * 0.5


@pytest.mark.parametrize("cuts", [(), (3,), (4,), (3, 4), (1, 2, 3, 4)])
def test_a_message_is_done_once_however_the_stages_are_spread(
    config: Config, cuts: tuple[int, ...]
):
    monitor = start_monitor()
    files = RunFiles.of(config.memory.store, "run-1")
    work = Work(config.memory, monitor, RunReplies.of(config.memory, files, monitor, capped=False))
    said = tuple(
        Message("ada", "s1", n, "user", f"note {n}", START + n, id=str(n)) for n in range(5)
    )
    rows = to_table([History("ada", said)], History)
    steps = list(STEPS.items())
    for start, end in pairwise((0, *cuts, len(steps))):
        rows = PoolActor(steps[start:end], work)(rows)
    progress = ray.get(monitor.read.remote())
    assert (progress.counts["messages"], progress.counts["entries"]) == (5, 5)


def test_a_file_that_is_gone_when_it_is_read_is_an_error_that_says_what_to_do(config, tmp_path):
    gone = InputFile(str(tmp_path / "gone.jsonl"), 5)
    reader = reading.Reader(RunFiles.of(config.memory.store, "run-1"), start_monitor())
    told = r"gone.jsonl cannot be read: .*leave it out"
    with pytest.raises(InputError, match=told):
        list(reader.messages({"path": [gone.path]}, shards=1, parts=1))
    with pytest.raises(InputError, match=told):
        reading.read_histories([gone], reader, grouped=False, shards=1)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.zst", "a.parquet"])
def test_a_packed_file_counts_for_what_it_holds(name: str):
    assert (
        reading._unpacked(InputFile(name, 10)) > reading._unpacked(InputFile("a.jsonl", 10)) == 10
    )


def test_new_sessions_of_known_users_add_to_what_is_there(config, write_lines):
    rows = chats("ada", "ben")
    run(config, write_lines("first.jsonl", [r for r in rows if r["session_id"] != "s2"]))
    later = run(config, write_lines("all.jsonl", rows))
    assert (later["messages"]["duplicate"], later["messages"]["stored"]) == (20, 10)
    assert len(contents(config)) == 30


def test_every_message_ends_in_one_state_and_bad_rows_are_named(config, write_lines):
    rows = [*chats("ada", sessions=1), message("ada", 0, 0), '{"user_id": ', {"role": "user"}]
    source = write_lines("in.jsonl", rows)
    report = run(config, source)
    messages = report["messages"]
    assert messages["read"] == 8
    assert (messages["stored"], messages["duplicate"]) == (5, 1)
    assert messages["quarantined"] == {"bad_json": 1, "missing_user": 1}

    newest = MemoryStore.open(config.memory.store).runs.newest()
    files = RunFiles(config.memory.store.uri, newest.id)
    rejected = from_table(all_rows(files, "quarantine"), Rejected)
    assert [r.source for r in rejected] == [f"{source}:7", f"{source}:8"]


def test_more_bad_rows_than_allowed_stop_the_run(config, write_lines):
    source = write_lines("in.jsonl", [*chats("ada"), *["not json"] * 5])
    with pytest.raises(InputError, match="--max-bad-rows 3"):
        run(config, source, max_bad_rows=3)
    assert MemoryStore.open(config.memory.store).runs.newest().status == "failed"
    assert run(config, source, max_bad_rows=5)["messages"]["stored"] == 15


def test_an_interrupted_run_is_finished_under_its_own_name(config, write_lines):
    rows = chats("ada", "ben")
    run(config, write_lines("part.jsonl", rows[:15]))
    ledger = MemoryStore.open(config.memory.store).runs
    started = ledger.newest()
    whole = write_lines("part.jsonl", rows)
    report = run(config, whole, resume=started.id)
    assert ledger.newest().id == started.id
    assert (report["messages"]["stored"], report["messages"]["duplicate"]) == (30, 0)


def test_a_failed_buffer_is_quarantined_and_can_be_tried_again(config, write_lines):
    source = write_lines("in.jsonl", chats("ada", "ben"))
    failing = Component(use="verbatim", options={"fails_on": "ben"})
    memory = config.memory.model_copy(update={"generator": failing})
    report = run(config.model_copy(update={"memory": memory}), source)
    assert report["messages"]["stored"] == 15
    assert report["messages"]["quarantined"] == {"failed_on_purpose": 15}
    again = run(config, source)
    assert (again["messages"]["stored"], again["messages"]["duplicate"]) == (15, 15)
    assert len(contents(config)) == 30


def test_grouped_input_gives_the_same_without_a_shuffle(config, write_lines, tmp_path):
    source = write_lines("in.jsonl", chats("ada", "ben"))
    run(config, source)
    grouped = InputConfig(grouped=True)
    pipelines = config.pipelines.model_copy(update={"input": grouped})
    other = with_store(config, uri=str(tmp_path / "other"))
    run(other.model_copy(update={"pipelines": pipelines}), source)
    assert contents(other) == contents(config)


def test_a_source_that_does_not_exist_is_named_before_anything_starts(config):
    with pytest.raises(InputError, match=r"nowhere\.jsonl names no input"):
        run(config, "nowhere.jsonl")
