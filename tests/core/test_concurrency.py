"""Many processes write to one shard, one reads: nothing is lost, doubled or refused."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lightmem_core.long_term import tables
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import committed
from lightmem_core.long_term.versions import states_of
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Extracted, Message, Source

WRITER = Path(__file__).parent / "one_of_many_writers.py"
WRITERS = [f"writer-{number}" for number in range(8)]
BATCHES = 3
ROWS = 4


@pytest.fixture
def said(
    message: Callable[..., Message], entry: Callable[..., Entry], axis: Callable[..., np.ndarray]
) -> Callable[..., pa.Table]:
    """What a user said, in ROWS messages from a place on, each with its entry."""

    def buffer(user: str, start: int) -> Extracted:
        places = range(start, start + ROWS)
        messages = [message(f"said {at}", at, user_id=user, state="stored") for at in places]
        entries = [
            entry(m.content, m.position, user_id=user, vector=axis(m.position), sources=(source,))
            for m in messages
            for source in [Source(m.session_id, m.position, m.id)]
        ]
        return Extracted(user, tuple(messages), tuple(entries))

    def make(start: int, *users: str) -> pa.Table:
        return to_table([buffer(user, start) for user in users], Extracted)

    return make


@pytest.fixture
def writers(
    store: MemoryStore, tmp_path: Path, said: Callable[..., pa.Table]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes, all at their start: each will insert rows of its own and rows that all have."""
    store.shards[0].insert(said(0, "shared"), "before")
    for name in WRITERS:
        for batch in range(BATCHES):
            rows = said(batch * ROWS, name, "shared")
            with pa.ipc.new_file(tmp_path / f"{name}.{batch}.arrow", rows.schema) as file:
                file.write_table(rows)
    common = [sys.executable, str(WRITER), str(tmp_path / "store"), str(tmp_path)]
    started = [start_writer([*common, name], tmp_path / f"{name}.err") for name in WRITERS]
    while len(list(tmp_path.glob("*.ready"))) < sum(p.poll() is None for p in started):
        time.sleep(0.05)
    yield started
    for process in started:
        process.kill()
        process.wait()


def start_writer(command: list[str], errors: Path) -> subprocess.Popen[bytes]:
    with errors.open("wb") as file:
        return subprocess.Popen(command, stderr=file)


def check_while_written(shard: Shard, before: int) -> int:
    """A message that is found has its entry; no id is there twice; what was there stays."""
    known = shard.known([*WRITERS, "shared"])
    entries = shard.entries_of([*WRITERS, "shared"])
    assert len({e.id for e in entries}) == len(entries) >= before
    assert set(known) <= {source.message_id for e in entries for source in e.sources}
    return len(entries)


def test_eight_writers_a_reader_updates_and_compaction_on_one_shard(
    store: MemoryStore, tmp_path: Path, writers: list[subprocess.Popen[bytes]]
):
    shard = store.shards[0]
    (tmp_path / "go").touch()
    found, reads = 0, 0
    while any(process.poll() is None for process in writers):
        found, reads = check_while_written(shard, found), reads + 1
        time.sleep(0.2)
    errors = "\n".join(path.read_text() for path in tmp_path.glob("*.err"))
    assert [process.returncode for process in writers] == [0] * len(WRITERS), errors
    assert reads > 1

    each = BATCHES * ROWS
    assert [len(shard.entries_of([user])) for user in (*WRITERS, "shared")] == [each] * (
        len(WRITERS) + 1
    )
    assert check_while_written(shard, found) == each * (len(WRITERS) + 1)
    assert shard.messages.count_rows() == len(shard.known([*WRITERS, "shared"]))
    check_updates(shard, sum(int(p.read_text()) for p in tmp_path.glob("*.written")))


def check_updates(shard: Shard, written: int) -> None:
    """Each update that was written counts once, and what it replaced is kept once."""
    changed = shard.entries_of(["shared"])
    assert sum(e.gen for e in changed) == written > 0
    for entry, states in zip(changed, states_of(shard, changed).values(), strict=True):
        assert [state.gen for state in states] == list(range(entry.gen + 1))


# --- what is tried again -----------------------------------------------------------------------

CONFLICTS = [
    "lance error: Retryable commit conflict for version 26: This Rewrite transaction was preempted",
    "lance error: Too many concurrent writers. Attempted 5 times, but failed on retry_timeout",
]


class Crowded:
    """A commit that other writers are in the way of, so many times."""

    def __init__(self, error: Exception, times: int):
        self.error = error
        self.left = times
        self.tried = 0

    def __call__(self) -> str:
        self.tried += 1
        if self.tried <= self.left:
            raise self.error
        return "done"


@pytest.mark.parametrize("text", CONFLICTS)
@pytest.mark.parametrize("kind", [RuntimeError, OSError])
def test_a_commit_that_meets_other_writers_is_made_again(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], text: str
):
    monkeypatch.setattr(tables, "PAUSE_S", 0)
    crowded = Crowded(kind(text), tables.ATTEMPTS - 1)
    assert committed(store.shards[0].entries, crowded) == "done"
    with pytest.raises(kind, match=r"commit conflict|concurrent writers"):
        committed(store.shards[0].entries, Crowded(kind(text), tables.ATTEMPTS))


@pytest.mark.parametrize("error", [OSError("no space left"), ValueError("commit conflict")])
def test_another_error_is_not_tried_again(store: MemoryStore, error: Exception):
    crowded = Crowded(error, 1)
    with pytest.raises(type(error), match=str(error)):
        committed(store.shards[0].entries, crowded)
    assert crowded.tried == 1
