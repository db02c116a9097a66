"""kill -9 of a process that accepts messages and extracts them, and of one that changes entries."""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from runpy import run_path

import pytest

from lightmem_core import load_config
from lightmem_core.errors import NotFoundError
from lightmem_core.long_term.tables import of_users, read
from lightmem_core.long_term.versions import history_of
from lightmem_core.online.service import Incoming
from lightmem_core.online.writer import OnlineWriter

FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"
SCRIPT = Path(__file__).with_name("online_writer_to_kill.py")
CHANGES = Path(__file__).with_name("online_changes_to_kill.py")


def killed_after(seconds: float, uri: str, name: str, script: Path = SCRIPT) -> list[list[str]]:
    """What a process had acknowledged, some time after its first message, when it was killed."""
    command = [sys.executable, str(script), str(FAKES), uri, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(seconds)
        process.kill()
        lines += process.stdout.readlines()
    assert lines[0]
    return [line.rstrip("\n").split("\t") for line in lines if line.endswith("\n")]


def test_what_was_acknowledged_is_there_once_however_often_the_process_is_killed(tmp_path: Path):
    uri = str(tmp_path / "store")
    acknowledged = [
        row for n in range(3) for row in killed_after(0.3 + 0.37 * n, uri, f"round {n}")
    ]
    writer = OnlineWriter(load_config(FAKES, uri=uri), wait_s=5)
    for number in range(3):
        user = f"user {number}"
        mine = [(id_, text) for owner, id_, text in acknowledged if owner == user]
        again = writer.add(user, "s1", [Incoming("user", text) for _, text in mine])
        assert [a.message_id for a in again] == [id_ for id_, _ in mine]
        assert {a.state for a in again} == {"duplicate"}
        writer.flush(user)
        shard = writer.shared.store.shard_for(user)
        messages = read(shard.messages, of_users([user])).to_pylist()
        assert {id_ for id_, _ in mine} <= {m["id"] for m in messages}
        assert sorted(m["position"] for m in messages) == list(range(len(messages)))
        entries = sorted(e.text for e in shard.entries_of([user]))
        assert entries == sorted(m["content"] for m in messages)
    statuses = [run.status for run in writer.shared.store.runs.latest()]
    assert statuses == ["running", "failed", "failed", "failed"]
    writer.close()


@pytest.mark.parametrize(
    ("change", "active", "states"),
    [
        ("update", ["I like tea.", "It rains.", "It snows."], 2),
        ("delete", ["I like tea.", "It rains."], 2),
        ("sleep", ["I like tea.", "It rains."], 2),
        ("erase", [], 0),
    ],
)
def test_a_change_that_a_kill_cuts_off_is_whole_or_not_there_and_can_be_made_again(
    tmp_path: Path, change: str, active: list[str], states: int
):
    uri, script = str(tmp_path / "store"), run_path(str(CHANGES))
    done = [user for (user,) in killed_after(0.2, uri, change, CHANGES)]
    writer = OnlineWriter(load_config(FAKES, uri=uri), wait_s=5)
    store = writer.shared.store
    assert [run.status for run in store.runs.latest(None)].count("running") == 1  # its own
    assert len(done) < len(script["USERS"])  # it was cut off
    for user in script["USERS"]:
        shard = store.shard_for(user)
        before = sorted(entry.text for entry in shard.entries_of([user]))
        cut_off = change == "erase" and user not in done
        assert cut_off or before in (active, sorted(script["SAID"]))
        assert cut_off or (before == active) >= (user in done)
        if user not in done:
            with suppress(NotFoundError):  # it is deleted
                script["make"](writer, change, user)
        assert sorted(entry.text for entry in shard.entries_of([user])) == active
        entries = shard.entries_of([user], tombstones=True)
        chains = [history_of(shard, entry).states for entry in entries]
        assert max(map(len, chains), default=0) >= states - (change == "sleep")
        if change == "erase":
            assert read(shard.messages, of_users([user])).num_rows == 0
    writer.close()
