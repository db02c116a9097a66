"""What a sleep phase looks at: only users with something new, in portions of about equal work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightmem_core import Config, load_config
from lightmem_core.long_term.news import MARGIN_MS
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Source
from lightmem_pipelines.files import RunFiles
from lightmem_pipelines.planning import Scope, plan_shard, portions_of

FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"
START = 10 * MARGIN_MS
Put = Callable[..., Entry]
Night = Callable[..., dict[str, list[str] | None]]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(FAKES, uri=str(tmp_path / "store"))


@pytest.fixture
def store(config: Config) -> MemoryStore:
    return MemoryStore.create(config.memory.store, VectorModel("hash-4", 4))


@pytest.fixture
def put(store: MemoryStore) -> Put:
    """Store an entry named by its user and its number, as written at a time."""

    def write(user: str, number: int, at: int, **other) -> Entry:
        source = (Source("s", number, "m"),)
        key = f"{user}{number}"
        made = Entry(key, user, "s", number, 0, "A", "x", "", number, None, source, stored_at=at)
        made = replace(made, vector=np.eye(4, dtype=np.float32)[0], **other)
        store.shards[0].entries.add(to_table([made], Entry).cast(store.shards[0].entries.schema))
        return made

    return write


@pytest.fixture
def night(config: Config, store: MemoryStore) -> Night:
    """Plan a phase that starts at a time, say that it ended so, and return what it would visit."""

    def plan(at: int, status: str = "done", config_id: str = "a", **asked):
        request = {"user_id": None, "every": False, "config": config_id, **asked}
        run = Run(f"sleep-{at}", "sleep", "running", at, request=request)
        plan_shard(config, Scope.of(store, run), 0)
        store.runs.write(replace(run, status=status))
        rows = RunFiles(config.memory.store.uri, run.id).rows_of("plan", "0000").to_pylist()
        return {row["user_id"]: row["new"] for row in rows}

    return plan


def test_the_first_night_visits_everyone_and_the_second_nobody(put: Put, night: Night):
    """Though what was stored right before the first might have come in after it."""
    for user, at in [("ada", 1), ("bob", START - 1), ("eve", START + 1)]:
        put(user, 0, at)
    assert night(START) == {"ada": None, "bob": None, "eve": None}
    assert night(START + 2) == {}
    assert night(START + 3 * MARGIN_MS) == {}


def test_only_what_was_written_or_changed_since_is_new(put: Put, night: Night):
    put("ada", 0, 1)
    put("bob", 0, 1)
    night(START)
    put("ada", 1, START + 5)
    put("bob", 1, 1, changed_at=START + 5, changed_by="online")
    put("eve", 0, 1, changed_at=START + 5, changed_by=f"sleep-{START}")
    put("zoe", 0, 1, changed_at=START + 5, changed_by="undo-1")
    assert night(START + 9) == {"ada": ["ada1"], "bob": ["bob1"]}


def test_what_came_in_while_a_night_ran_is_new_though_its_time_is_before(put: Put, night: Night):
    """A commit takes a while: an entry can be read only some time after it was stamped."""
    put("ada", 0, START - 2)
    night(START)
    put("ada", 1, START - 2)
    put("bob", 0, START - MARGIN_MS)
    assert night(START + 9) == {"ada": ["ada1"], "bob": ["bob0"]}
    assert night(START + 10) == {}


@pytest.mark.parametrize("other", [{"status": "failed"}, {"status": "planned"}, {"config_id": "b"}])
def test_a_night_that_did_not_end_or_judged_otherwise_covers_nothing(
    put: Put, night: Night, other: dict[str, str]
):
    put("ada", 0, 1)
    night(START, **other)
    assert night(START + 9) == {"ada": None}


def test_what_was_imported_since_is_new_though_it_was_stored_long_before(
    put: Put, night: Night, store: MemoryStore
):
    put("ada", 0, 1)
    night(START)
    night(START + 1, user_id="ada")
    store.runs.write(Run("import-1", "import", "done", START + 2, START + 4))
    put("bob", 0, 1)
    assert night(START + 3, user_id="bob") == {"bob": None}
    assert night(START + 5) == {"ada": None, "bob": None}
    assert night(START + 6) == {}


def test_every_one_can_be_visited_again(put: Put, night: Night):
    put("ada", 0, 1)
    night(START)
    assert night(START + 9, every=True) == {"ada": None}


def test_a_night_of_one_user_covers_that_user_alone(put: Put, night: Night):
    put("ada", 0, 1)
    put("bob", 0, 1)
    assert night(START, user_id="ada") == {"ada": None}
    assert night(START + 1, user_id="ada") == {}
    assert night(START + 2) == {"bob": ["bob0"]}
    put("ada", 1, START + 3)
    assert night(START + 4, user_id="bob") == {}
    assert night(START + 5) == {"ada": ["ada1"]}


def test_tombstones_are_not_visited(put: Put, night: Night):
    put("ada", 0, 1, superseded_by="ada1")
    assert night(START) == {}


def test_portions_hold_every_user_once_and_about_the_same_work():
    sizes = {f"user {n}": 60 for n in range(5_000)} | {"whale": 100_000, "seal": 4_000}
    portions = list(portions_of(sizes, 20_000))
    assert [user for users in portions for user in users] == list(sizes)
    assert ["whale"] in portions
    small = [len(users) for users in portions if "seal" not in users and "whale" not in users]
    assert max(small) == 328  # 328 x 60 entries are less than 20,000, and 60 more are not
    with_seal = next(users for users in portions if "seal" in users)
    assert len(with_seal) < 1 + (20_000 - 4_000) / 60  # its queues cost as much again
    many = list(portions_of({f"user {n}": 1 for n in range(2_500)}, 20_000))
    assert [len(users) for users in many] == [1_000, 1_000, 500]
