"""The laws of the sleep phase, on a real local Ray and a real store."""

from __future__ import annotations

from typing import Any

import pytest

from lightmem_core import Config
from lightmem_core.errors import StoreError
from lightmem_core.long_term.provenance import provenance
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.schema import from_table, schema_of
from lightmem_core.types import Decision, Entry
from lightmem_pipelines.backfill import BackfillRequest, backfill
from lightmem_pipelines.files import RunFiles
from lightmem_pipelines.sleep import SleepRequest, sleep

pytestmark = pytest.mark.ray

DAY = 86_400


def said(user: str, day: int, text: str) -> dict[str, Any]:
    return {
        "user_id": user,
        "session_id": f"day{day}",
        "role": "user",
        "content": text,
        "timestamp": 1_700_000_000 + day * DAY,
    }


def history(user: str) -> list[dict[str, Any]]:
    return [
        said(user, 1, "I live in Lisbon."),
        said(user, 2, "I am allergic to penicillin."),
        said(user, 3, "I am allergic to penicillin."),
        said(user, 4, "I live in Porto."),
        said(user, 5, "I am allergic to penicillin."),
    ]


@pytest.fixture
def filled(config: Config, write_lines) -> Config:
    rows = [row for user in ("ada", "ben", "cleo") for row in history(user)]
    backfill(config, BackfillRequest((write_lines("in.jsonl", rows),), progress=False))
    return config


def entries(config: Config, user: str, tombstones: bool = False) -> list[Entry]:
    store = MemoryStore.open(config.memory.store)
    return store.shard_for(user).entries_of([user], tombstones=tombstones)


def test_repeats_are_merged_with_their_sources_and_changes_supersede(filled):
    report = sleep(filled, SleepRequest(progress=False)).report
    assert (report["entries"], report["merged"], report["superseded"]) == (15, 6, 3)
    active = entries(filled, "ada")
    assert [e.text for e in active] == ["I live in Porto.", "I am allergic to penicillin."]
    assert [s.session_id for s in active[1].absorbed] == ["day2", "day3"]
    assert len(entries(filled, "ada", tombstones=True)) == 5


def test_sleeping_again_changes_nothing(filled):
    sleep(filled, SleepRequest(progress=False))
    before = {e.id: e.gen for e in entries(filled, "ada", tombstones=True)}
    again = sleep(filled, SleepRequest(progress=False)).report
    assert (again["merged"], again["superseded"]) == (0, 0)
    assert {e.id: e.gen for e in entries(filled, "ada", tombstones=True)} == before


def test_a_phase_for_one_user_leaves_the_others_alone(filled):
    report = sleep(filled, SleepRequest(user_id="ben", progress=False)).report
    assert (report["users"], report["merged"]) == (1, 2)
    assert len(entries(filled, "ben")) == 2
    assert len(entries(filled, "ada")) == 5


def test_users_in_small_tasks_and_in_one_task_end_the_same(filled):
    small = filled.pipelines.model_copy(update={"sleep_entries_per_task": 1})
    report = sleep(
        filled.model_copy(update={"pipelines": small}), SleepRequest(progress=False)
    ).report
    assert (report["merged"], report["superseded"]) == (6, 3)
    for user in ("ada", "ben", "cleo"):
        assert [e.text for e in entries(filled, user)] == [
            "I live in Porto.",
            "I am allergic to penicillin.",
        ]


def test_every_decision_is_saved_and_every_entry_tells_its_story(filled):
    run = sleep(filled, SleepRequest(progress=False))
    files = RunFiles(filled.memory.store.uri, run.id)
    saved = from_table(files.read_rows("decisions", schema_of(Decision)), Decision)
    assert sorted((d.user_id, d.action) for d in saved if d.user_id == "ada") == [
        ("ada", "merge"),
        ("ada", "merge"),
        ("ada", "supersede"),
    ]
    store = MemoryStore.open(filled.memory.store)
    porto = next(e for e in entries(filled, "ada") if "Porto" in e.text)
    story = provenance(store, porto.id[:10])
    assert [m.content for m in story.messages] == ["I live in Porto."]
    assert [(e.text, e.changed_by) for e in story.replaced] == [("I live in Lisbon.", run.id)]
    lisbon = provenance(store, story.replaced[0].id)
    assert lisbon.successor is not None
    assert lisbon.successor.id == porto.id


def test_what_was_merged_is_not_stored_again_by_a_repeated_backfill(filled, tmp_path):
    sleep(filled, SleepRequest(progress=False))
    source = str(tmp_path / "in.jsonl")
    report = backfill(filled, BackfillRequest((source,), progress=False)).report
    assert report["messages"]["duplicate"] == 15
    assert len(entries(filled, "ada")) == 2


def test_an_unknown_user_is_an_error_that_names_it(filled):
    with pytest.raises(StoreError, match="no memories of user 'zoe'"):
        sleep(filled, SleepRequest(user_id="zoe", progress=False))
