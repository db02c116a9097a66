"""Many commands at once on one store: eight backfills, a reader and a sleep phase."""

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

from lightmem_core import factory, load_config
from lightmem_core.config import MemoryConfig, StoreConfig
from lightmem_core.long_term.retrieve import Query
from lightmem_core.long_term.store import MemoryStore

WRITERS = range(8)
SHARED = ["alba", "bruno"]  # whom every writer writes about
CITIES = "Porto Oslo Quito Hanoi Turin Lyon Cork Graz".split()
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
def lightmem(
    tmp_path: Path, launch: Callable[..., subprocess.Popen[str]]
) -> Callable[..., subprocess.Popen[str]]:
    """Start a command on the store named."""
    fakes = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"
    config = yaml.safe_load(fakes.read_text())
    config["memory"] |= {"buffer_tokens": 64, "store": {"shards": 2}}
    config["pipelines"]["pools"][0] |= {"batch_size": 2, "cpus": 0.1}
    config["pipelines"] |= {"commit_buffers": 2, "committers": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    def start(store: str, *words: object) -> subprocess.Popen[str]:
        place = ["--config", tmp_path / "config.yaml", "--store", tmp_path / store, "--json"]
        return launch(*words, *place)

    return start


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    return json.loads(out)


@contextmanager
def searching(store: Path, memory: MemoryConfig, users: Sequence[str]) -> Iterator[Counter[str]]:
    """Search one user after the other meanwhile. Yields how often, and what was found wrong."""
    seen: Counter[str] = Counter()
    stop = threading.Event()

    def search() -> None:
        place = memory.model_copy(update={"store": StoreConfig(uri=str(store))})
        retrieve = factory.retrieval(place)
        most: Counter[str] = Counter()
        while not stop.is_set():
            for user in users:
                (hits,) = retrieve([Query(user, "Where do I live? The violin", limit=100)])
                ids = [hit.entry.id for hit in hits]
                shard = retrieve.store.shard_for(user)
                known = len(shard.entries_of([user], tombstones=True))
                seen["searches"] += 1
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
        yield seen
    finally:
        stop.set()
        reader.join(PATIENCE_S)


def rows_of(store: Path) -> dict[str, tuple[str, str]]:
    """State and text of every message, text of every entry, by id."""
    found: dict[str, tuple[str, str]] = {}
    for shard in MemoryStore.open(StoreConfig(uri=str(store))).shards:
        for row in shard.messages.to_arrow().to_pylist():
            assert row["id"] not in found
            found[row["id"]] = (row["state"], row["content"])
        for row in shard.entries.to_arrow().to_pylist():
            assert row["id"] not in found
            found[row["id"]] = ("entry", row["text"])
    return found


def test_eight_backfills_a_reader_and_a_sleep_phase_at_once(
    tmp_path: Path,
    lightmem: Callable[..., subprocess.Popen[str]],
    write_lines: Callable[..., str],
):
    memory = load_config(tmp_path / "config.yaml").memory
    files = [write_lines(f"{writer}.jsonl", input_of(writer)) for writer in WRITERS]
    first = write_lines("first.jsonl", [row for user in SHARED for row in session(user, 99)])
    finished(lightmem("store", "backfill", first))
    with searching(tmp_path / "store", memory, [*SHARED, "user-3"]) as seen:
        writers = [lightmem("store", "backfill", file) for file in files]
        finished(lightmem("store", "sleep"))
        reports = [finished(writer)["messages"] for writer in writers]
    assert seen.pop("searches") > len(SHARED)
    assert not +seen

    read = sum(len(input_of(writer)) for writer in WRITERS)
    assert sum(report["read"] for report in reports) == read
    assert sum(report["duplicate"] for report in reports) == 8 * (len(WRITERS) - 1)

    finished(lightmem("alone", "backfill", first, *files))
    assert rows_of(tmp_path / "store") == rows_of(tmp_path / "alone")

    finished(lightmem("store", "sleep"))
    finished(lightmem("alone", "sleep"))
    left = [active_texts(tmp_path / name) for name in ("store", "alone")]
    assert left[0] == left[1]


def active_texts(store: Path) -> list[tuple[str, str]]:
    """What each user's searches can find."""
    shards = MemoryStore.open(StoreConfig(uri=str(store))).shards
    rows = [row for shard in shards for row in shard.entries.to_arrow().to_pylist()]
    return sorted((r["user_id"], r["text"]) for r in rows if not r["superseded_by"])
