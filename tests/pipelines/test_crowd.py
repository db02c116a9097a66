"""Many at once on one store: eight backfills, a reader, and one sleep phase after the other."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightmem_core import Config, factory, load_config
from lightmem_core.config import MemoryConfig
from lightmem_core.long_term.retrieve import Query
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import now_ms
from lightmem_pipelines.backfill import BackfillRequest, backfill
from lightmem_pipelines.sleep import SleepRequest, sleep

WRITERS = range(8)
SHARED = ["alba", "bruno"]  # whom every writer writes about
CITIES = "Porto Oslo Quito Hanoi Turin Lyon Cork Graz Gent Brno".split()  # the last is the latest
PATIENCE_S = 600

pytestmark = pytest.mark.ray


def session(user: str, number: int) -> Iterator[dict[str, object]]:
    """A home that changes with every session, a sentence that all sessions have, and others."""
    home = f"I now live in {CITIES[number % len(CITIES)]}."
    said = [home, "I play the violin.", *(f"Note {number} {turn} of {user}." for turn in range(6))]
    for turn, content in enumerate(said):
        yield {
            "user_id": user,
            "session_id": f"s{number}",
            "position": turn,
            "role": "user",
            "content": content,
            "timestamp": 1_700_000_000 + number * 604_800 + turn * 60,
        }


def input_of(writer: int) -> list[dict[str, object]]:
    """Two sessions of a user of its own, one of each shared user, and one that all writers have."""
    own = f"user-{writer}"
    sessions = [(own, 1), (own, 2), *((user, writer + 1) for user in SHARED), (SHARED[0], 0)]
    return [row for user, number in sessions for row in session(user, number)]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """Small batches and commits, so that there are many."""
    fakes = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"
    config = yaml.safe_load(fakes.read_text())
    config["memory"] |= {"buffer_tokens": 64, "store": {"shards": 2}}
    config["pipelines"]["pools"][0] |= {"batch_size": 2, "cpus": 0.1}
    config["pipelines"] |= {"commit_buffers": 2, "committers": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "config.yaml"


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    return json.loads(out)


@contextmanager
def searching(
    memory: MemoryConfig, users: Sequence[str]
) -> Iterator[tuple[list[int], Counter[str]]]:
    """Search one user after the other meanwhile. Yields when, and what was found wrong."""
    times: list[int] = []
    seen: Counter[str] = Counter()
    stop = threading.Event()

    def search() -> None:
        retrieve = factory.retrieval(memory)
        most: Counter[str] = Counter()
        while not stop.is_set():
            for user in users:
                (hits,) = retrieve([Query(user, "Where do I live? The violin", limit=100)])
                ids = [hit.entry.id for hit in hits]
                shard = retrieve.store.shard_for(user)
                known = len(shard.entries_of([user], tombstones=True))
                times.append(now_ms())
                seen["doubled"] += len(set(ids)) != len(ids)
                seen["of another"] += any(hit.entry.user_id != user for hit in hits)
                seen["hidden found"] += any(not hit.entry.active for hit in hits)
                seen["shrunk"] += known < most[user]
                most[user] = known

    def guarded() -> None:
        try:
            search()
        except Exception as error:  # noqa: BLE001
            seen[f"failed: {error!r}"] += 1

    reader = threading.Thread(target=guarded)
    reader.start()
    try:
        yield times, seen
    finally:
        stop.set()
        reader.join(PATIENCE_S)


def rows_of(config: Config) -> dict[str, tuple[str, str]]:
    """State and text of every message, text of every entry, by id."""
    found: dict[str, tuple[str, str]] = {}
    for shard in MemoryStore.open(config.memory.store).shards:
        for row in shard.messages.to_arrow().to_pylist():
            assert row["id"] not in found
            found[row["id"]] = (row["state"], row["content"])
        for row in shard.entries.to_arrow().to_pylist():
            assert row["id"] not in found
            found[row["id"]] = ("entry", row["text"])
    return found


def commits_of(config: Config, runs: Sequence[str]) -> list[int]:
    """When messages were stored by some runs."""
    shards = MemoryStore.open(config.memory.store).shards
    rows = [row for shard in shards for row in shard.messages.to_arrow().to_pylist()]
    return sorted({row["stored_at"] for row in rows if row["run_id"] in runs})


def active_texts(config: Config) -> list[tuple[str, str]]:
    """What each user's searches can find."""
    shards = MemoryStore.open(config.memory.store).shards
    rows = [row for shard in shards for row in shard.entries.to_arrow().to_pylist()]
    return sorted((r["user_id"], r["text"]) for r in rows if not r["superseded_by"])


def slept(config: Config) -> Run:
    return sleep(config, SleepRequest(progress=False))


def test_eight_backfills_a_reader_and_sleep_phases_at_once(
    tmp_path: Path,
    config_file: Path,
    launch: Callable[..., subprocess.Popen[str]],
    write_lines: Callable[..., str],
):
    config = load_config(config_file, uri=str(tmp_path / "store"))
    alone = load_config(config_file, uri=str(tmp_path / "alone"))
    files = [write_lines(f"{writer}.jsonl", input_of(writer)) for writer in WRITERS]
    first = write_lines("first.jsonl", [row for user in SHARED for row in session(user, 99)])
    backfill(config, BackfillRequest((first,), progress=False))
    place = ("--config", config_file, "--store", config.memory.store.uri, "--json")
    with searching(config.memory, [*SHARED, "user-3"]) as (reads, wrong):
        writers = [launch("backfill", file, *place) for file in files]
        nights = [slept(config)]
        while any(writer.poll() is None for writer in writers):
            nights.append(slept(config))
        reports = [finished(writer) for writer in writers]
    assert not +wrong
    assert sum(night.report["superseded"] for night in nights)

    commits = commits_of(config, [report["run"] for report in reports])
    written = range(commits[0], commits[-1])
    at_night = [range(night.started_at, night.finished_at) for night in nights]
    assert any(at in night for night in at_night for at in commits)
    assert any(at in night and at in written for night in at_night for at in reads)

    told = [report["messages"] for report in reports]
    assert sum(counts["read"] for counts in told) == sum(map(len, map(input_of, WRITERS)))
    assert sum(counts["duplicate"] for counts in told) == 8 * (len(WRITERS) - 1)

    backfill(alone, BackfillRequest((first, *files), progress=False))
    assert rows_of(config) == rows_of(alone)
    slept(config)
    slept(alone)
    assert active_texts(config) == active_texts(alone)
