"""The laws of the sleep phase, on a real local Ray and a real store."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from ray.exceptions import RayError

from lightmem_core import Config, factory
from lightmem_core.config import Component
from lightmem_core.errors import InputError, StoreError
from lightmem_core.long_term.embed import encode
from lightmem_core.long_term.provenance import provenance
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.schema import from_table, to_table
from lightmem_core.types import Decision, Entry, Source, stable_id
from lightmem_pipelines.backfill import BackfillRequest, backfill
from lightmem_pipelines.cli import lightmem
from lightmem_pipelines.deciding import ApplyPortions
from lightmem_pipelines.files import RunFiles
from lightmem_pipelines.sleep import SleepRequest, apply_planned, sleep

pytestmark = pytest.mark.ray

DAY = 86_400
USERS = ("ada", "ben", "cleo")
TALK = (
    "I live in Lisbon.",
    "I am allergic to penicillin.",
    "I am allergic to penicillin.",
    "I now live in Porto.",
    "I am allergic to penicillin.",
)
QUIET = SleepRequest(progress=False)
DRY = SleepRequest(progress=False, dry_run=True)


def all_rows(files: RunFiles, kind: str) -> pa.Table:
    return pa.concat_tables(files.rows_of(kind, name) for name in files.names(kind))


def entries_of_talk(config: Config, user: str) -> list[Entry]:
    vectors = encode(factory.embedder(config.memory), [f"user: {text}" for text in TALK])
    return [
        Entry(
            *(stable_id(user, day), user, f"day{day}", 0, 0, "user", text, "", day, None),
            sources=(Source(f"day{day}", 0, f"{user} {day}"),),
            stored_at=1,
            vector=vector,
        )
        for day, (text, vector) in enumerate(zip(TALK, vectors, strict=True), 1)
    ]


def write(config: Config, rows: list[Entry]) -> None:
    """Store new entries."""
    store = MemoryStore.open(config.memory.store)
    for row in rows:
        table = store.shard_for(row.user_id).entries
        table.add(to_table([row], Entry).cast(table.schema))


@pytest.fixture
def fill(config: Config, tmp_path: Path) -> Callable[..., Config]:
    """A store of some name in which each user has said the same."""

    def make(name: str = "store", **pipelines: Any) -> Config:
        place = config.memory.store.model_copy(update={"uri": str(tmp_path / name), "shards": 2})
        memory = config.memory.model_copy(update={"store": place})
        run = config.pipelines.model_copy(update=pipelines)
        made = config.model_copy(update={"memory": memory, "pipelines": run})
        MemoryStore.create(place, VectorModel.of(factory.embedder(memory)))
        write(made, [e for user in USERS for e in entries_of_talk(made, user)])
        return made

    return make


@pytest.fixture
def filled(fill: Callable[..., Config]) -> Config:
    return fill()


def entries(config: Config, user: str, tombstones: bool = False) -> list[Entry]:
    store = MemoryStore.open(config.memory.store)
    return store.shard_for(user).entries_of([user], tombstones=tombstones)


def rows(config: Config) -> list[str]:
    """All rows whole, but for who changed them and when."""
    found = [e for user in USERS for e in entries(config, user, tombstones=True)]
    return [repr(replace(e, changed_by="", changed_at=0, vector=None)) for e in found]


def online(config: Config, entry: Entry, **changes: Any) -> None:
    """Change an entry as a server would."""
    changed = replace(entry, gen=entry.gen + 1, changed_by="online", changed_at=5, **changes)
    shard = MemoryStore.open(config.memory.store).shard_for(entry.user_id)
    assert shard.update(to_table([changed], Entry)) == 0


def failed(config: Config, run_id: str) -> RunFiles:
    """Make a run one that was cut off."""
    ledger = MemoryStore.open(config.memory.store).runs
    ledger.write(replace(ledger.get(run_id), status="failed"))
    return RunFiles(config.memory.store.uri, run_id)


# --- what a phase does -------------------------------------------------------------------------


def test_repeats_are_merged_with_their_sources_and_changes_supersede(filled: Config):
    run = sleep(filled, QUIET)
    report = run.report
    assert (report["entries"], report["merged"], report["superseded"]) == (15, 6, 3)
    assert (report["users"], report["visited"], report["applied"]) == (3, 3, True)
    assert report["decided"] == {"merge": {"same words": 6}, "supersede": {"home": 3}}
    active = entries(filled, "ada")
    assert [e.text for e in active] == ["I now live in Porto.", "I am allergic to penicillin."]
    assert [s.session_id for s in active[1].absorbed] == ["day2", "day3"]
    changed = [e for e in entries(filled, "ada", tombstones=True) if e.gen]
    assert {(e.gen, e.changed_by) for e in changed} == {(1, run.id)}
    assert all(run.started_at <= e.changed_at <= run.finished_at for e in changed)
    assert {name: step["rows"] for name, step in report["steps"].items()} == {
        "plan": 15,
        "decide": 15,
        "apply": 9,
    }
    saved = all_rows(RunFiles(filled.memory.store.uri, run.id), "decisions")
    assert len(from_table(saved, Decision)) == 9
    porto = provenance(MemoryStore.open(filled.memory.store), active[0].id)
    assert [(e.text, e.changed_by) for e in porto.replaced] == [("I live in Lisbon.", run.id)]


def test_sleeping_again_changes_nothing_and_visits_nobody(filled: Config):
    sleep(filled, QUIET)
    before = rows(filled)
    again = sleep(filled, QUIET).report
    assert (again["visited"], again["decided"], again["entries"]) == (0, {}, 6)
    every = sleep(filled, SleepRequest(progress=False, every=True)).report
    assert (every["visited"], every["decided"]) == (3, {})
    assert rows(filled) == before


def test_in_bulk_in_small_tasks_and_one_user_at_a_time_end_the_same(fill: Callable[..., Config]):
    bulk, small, single = fill("bulk"), fill("small", sleep_entries_per_task=1), fill("single")
    sleep(bulk, QUIET)
    sleep(small, QUIET)
    for user in USERS[::-1]:
        report = sleep(single, SleepRequest(user_id=user, progress=False)).report
        assert (report["users"], report["merged"]) == (1, 2)
    assert rows(bulk) == rows(small) == rows(single)


def test_an_updater_that_raises_in_a_task_fails_the_run(filled: Config):
    updater = Component(use="rules", options={"near": "by a nose"})
    memory = filled.memory.model_copy(update={"updater": updater})
    before = rows(filled)
    with pytest.raises(RayError, match="not supported between"):
        sleep(filled.model_copy(update={"memory": memory}), QUIET)
    (run,) = MemoryStore.open(filled.memory.store).runs.latest(None)
    assert (run.status, "not supported between" in run.report["error"]) == ("failed", True)
    assert rows(filled) == before


def test_an_unknown_user_is_an_error_that_names_it(filled: Config):
    with pytest.raises(StoreError, match="no memories of user 'zoe'"):
        sleep(filled, SleepRequest(user_id="zoe", progress=False))


def test_what_was_merged_is_not_stored_again_by_a_repeated_backfill(config: Config, write_lines):
    said = [
        {"user_id": "ada", "session_id": f"day{day}", "role": "user", "content": text}
        | {"timestamp": 1_700_000_000 + day * DAY}
        for day, text in enumerate(TALK)
    ]
    request = BackfillRequest((write_lines("in.jsonl", said),), progress=False)
    backfill(config, request)
    sleep(config, QUIET)
    assert backfill(config, request).report["messages"]["duplicate"] == 5
    assert len(entries(config, "ada")) == 2


# --- first decided, then applied ---------------------------------------------------------------


def test_a_dry_run_changes_nothing_and_can_be_applied_later(fill: Callable[..., Config]):
    planned, direct = fill("planned"), fill("direct")
    before = rows(planned)
    run = sleep(planned, DRY)
    assert (run.status, run.report["applied"], run.report["merged"]) == ("planned", False, 6)
    assert rows(planned) == before
    files = RunFiles(planned.memory.store.uri, run.id)
    saved = all_rows(files, "decisions")
    applied = apply_planned(planned, run.id)
    assert (applied.id, applied.status, applied.report["applied"]) == (run.id, "done", True)
    assert all_rows(files, "decisions") == saved
    sleep(direct, QUIET)
    assert rows(planned) == rows(direct)
    with pytest.raises(InputError, match=r"is a sleep that is done: name a sleep that was planned"):
        apply_planned(planned, run.id)
    assert sleep(planned, QUIET).report["visited"] == 0


def test_online_changes_win_and_are_visited_the_next_night(filled: Config):
    run = sleep(filled, DRY)
    ada, ben = entries(filled, "ada"), entries(filled, "ben")
    online(filled, ada[0], text="I live in Lisbon, by the sea.")
    online(filled, ben[3], superseded_by=ben[4].id)
    late = replace(ada[4], id="late", session_id="day9", said_at=9, stored_at=run.started_at)
    write(filled, [late])
    report = apply_planned(filled, run.id).report
    assert report["dropped"] == {"changed meanwhile": 2}
    assert (report["merged"], report["superseded"]) == (6, 1)
    texts = [e.text for e in entries(filled, "ada")]
    assert texts == ["I live in Lisbon, by the sea.", "I now live in Porto.", TALK[4], TALK[4]]
    assert [e.text for e in entries(filled, "ben")] == ["I live in Lisbon.", TALK[4]]
    report = sleep(filled, QUIET).report
    assert (report["visited"], report["merged"]) == (1, 1)
    assert [e.id for e in entries(filled, "ada")][-1] == "late"


def test_updated_texts_are_embedded_and_deleted_entries_hidden(filled: Config):
    """Decisions as an updater of one's own might take them, in place of those that were saved."""
    run = sleep(filled, DRY)
    lisbon, allergic, _, porto, _ = entries(filled, "ada")
    text = "I lived in Lisbon and live in Porto now."
    store = MemoryStore.open(filled.memory.store)
    files = RunFiles(filled.memory.store.uri, run.id)
    shard = f"{store.shard_number('ada'):04}"
    (name,) = (name for name in files.names("decisions") if name.startswith(shard))
    decisions = [
        Decision("ada", lisbon.id, "update", porto.id, 0.5, "moved", text),
        Decision("ada", allergic.id, "delete", porto.id, 0.5, "wrong"),
    ]
    files.write_rows("decisions", name, to_table(decisions, Decision))
    report = apply_planned(filled, run.id).report
    assert (report["updated"], report["deleted"]) == (1, 1)
    found = entries(filled, "ada", tombstones=True)
    assert (found[0].id, found[0].text, found[0].absorbed) == (lisbon.id, text, porto.sources)
    (vector,) = encode(factory.embedder(filled.memory), [f"user: {text}"])
    np.testing.assert_allclose(found[0].vector, vector, atol=1e-6)
    assert (found[1].superseded_by, found[1].text) == (porto.id, allergic.text)


# --- what was cut off --------------------------------------------------------------------------


def test_a_phase_that_died_while_it_decided_decides_only_the_rest(fill: Callable[..., Config]):
    torn, whole = fill("torn", sleep_entries_per_task=1), fill("whole")
    run = sleep(torn, DRY)
    files = failed(torn, run.id)
    folder = Path(files.folder("decisions"))
    first, *rest = sorted(folder.iterdir())
    assert len(rest) == 2
    rest[0].unlink()
    with pytest.raises(InputError, match=f"finish that with `lightmem sleep --resume {run.id}`"):
        apply_planned(torn, run.id)
    written = first.stat().st_mtime_ns
    assert sleep(torn, DRY).id == run.id
    assert (first.stat().st_mtime_ns, rest[0].exists()) == (written, True)
    apply_planned(torn, run.id)
    sleep(whole, QUIET)
    assert rows(torn) == rows(whole)


def test_a_phase_that_died_while_it_applied_is_finished_under_its_name(
    fill: Callable[..., Config],
):
    torn, whole = fill("torn"), fill("whole")
    run = sleep(torn, DRY)
    files = failed(torn, run.id)
    shard = MemoryStore.open(torn.memory.store).shard_for("ada")
    names = [n for n in files.names("decisions") if int(n[:4]) == shard.number]
    ApplyPortions(files, names, {})(shard)
    before = rows(torn)
    finished = apply_planned(torn, run.id)
    assert (finished.report["merged"], finished.report["dropped"]) == (6, {})
    sleep(whole, QUIET)
    assert before != rows(torn) == rows(whole)
    with pytest.raises(InputError, match="is a sleep that is done: nothing is left of it"):
        sleep(torn, SleepRequest(progress=False, resume=run.id))


def test_an_interrupted_phase_is_resumed_by_its_name_with_its_own_configuration(filled: Config):
    run = sleep(filled, SleepRequest(user_id="ada", progress=False))
    failed(filled, run.id)
    queue = filled.memory.queue.model_copy(update={"theta": 0.9})
    other = filled.memory.model_copy(update={"queue": queue})
    resume = SleepRequest(progress=False, resume=run.id)
    with pytest.raises(InputError, match="decided with another updater, queue or embedder"):
        sleep(filled.model_copy(update={"memory": other}), resume)
    again = sleep(filled, resume)
    assert (again.id, again.status, again.report["merged"]) == (run.id, "done", 2)
    assert [len(entries(filled, user)) for user in USERS] == [2, 5, 5]


# --- the command -------------------------------------------------------------------------------


def test_the_command_shows_what_would_change_and_applies_it(filled: Config, tmp_path: Path):
    def told(*words: str) -> str:
        place = ("--store", filled.memory.store.uri, "--config", str(tmp_path / "c.yaml"))
        out = CliRunner().invoke(lightmem, ["sleep", *words, *place], catch_exceptions=False)
        assert out.exit_code == 0, out.output
        return out.stdout

    shown = filled.model_dump(mode="json")
    (tmp_path / "c.yaml").write_text(json.dumps(shown))
    text = told("--dry-run", "--examples", "1", "--no-progress")
    assert text.count("merge · same words · user ") == 1
    assert "  - 1 January 1970 user: I live in Lisbon.\n    1 January 1970 user: I now" in text
    run_id = text.partition("sleep planned: ")[2].split()[0]
    assert f"lightmem sleep --apply {run_id}" in text
    told_json = json.loads(told("--dry-run", "--json"))
    assert {e["action"] for e in told_json["examples"]} == {"merge", "supersede"}
    assert len(told_json["examples"]) == 6
    applied = json.loads(told("--apply", run_id, "--json"))
    assert (applied["run"], applied["status"], applied["merged"]) == (run_id, "done", 6)
    wrong = CliRunner().invoke(lightmem, ["sleep", "--apply", run_id, "--all"])
    assert (wrong.exit_code, "--apply stands alone" in wrong.output) == (2, True)
