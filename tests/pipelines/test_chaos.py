"""Whatever is killed, at whatever moment: going on gives the store of an undisturbed run.

Every round kills one thing (SIGKILL) at a random moment of its writing: a worker, a committer,
the driver, or a whole node with its own Ray. `make chaos` runs hundreds of rounds, CHAOS_ROUNDS
and CHAOS_SEED choose others.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from lightmem_core.config import StoreConfig
from lightmem_core.long_term.store import MemoryStore

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "20"))
SEED = int(os.environ.get("CHAOS_SEED", "7"))
VICTIMS = ("driver", "committer", "worker", "driver", "node")
USERS, SESSIONS, TURNS = 16, 3, 8
CITIES = "Porto Oslo Quito Hanoi".split()
OF_THIS_RUN = {"run_id", "stored_at", "changed_by", "changed_at", "replaced_by", "replaced_at"}

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Place:
    """Where a round happens: its store, and the command's input and configuration."""

    store: Path
    input: Path
    config: Path
    launch: Callable[..., subprocess.Popen[str]]

    def start(self, command: str, node: bool = False) -> subprocess.Popen[str]:
        """Start `lightmem`, on the tests' Ray or as a node of its own."""
        source = [self.input] if command == "backfill" else []
        place = ["--config", self.config, "--store", self.store, "--json"]
        return self.launch(command, *source, *place, node=node)

    def finish(self, command: str) -> dict[str, Any]:
        return finished(self.start(command))

    def moments(self) -> int:
        """What has been written so far: table versions, and the files of a sleep phase."""
        files = ("*_0*.lance/_versions/*.manifest", "_runs/sleep-*/*/*")
        return sum(1 for pattern in files for _ in self.store.glob(pattern))


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)


def message(user: int, session: int, turn: int) -> dict[str, object]:
    """What is said again the same day is merged, another home supersedes the first."""
    said = [f"I now live in {CITIES[(user + session) % len(CITIES)]}.", "I play the violin."]
    other = f"Note {user} {session} {turn} is unlike others."
    return {
        "user_id": f"user-{user}",
        "session_id": f"s{session}",
        "position": turn,
        "role": "user",
        "content": said[turn % 2] if turn < 4 else other,
        "timestamp": 1_700_000_000 + session * 604_800 + turn * 60,
    }


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., subprocess.Popen[str]]
) -> Place:
    """A store that was backfilled in peace, in small commits."""
    folder = tmp_path_factory.mktemp("chaos")
    rows = [
        message(user, session, turn)
        for session in range(SESSIONS)
        for user in range(USERS)
        for turn in range(TURNS)
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fakes = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"
    config = yaml.safe_load(fakes.read_text())
    config["memory"] |= {"buffer_tokens": 64, "store": {"shards": 2}}
    config["pipelines"]["pools"][0] |= {"batch_size": 2, "cpus": 0.5}
    config["pipelines"] |= {"commit_buffers": 3, "sleep_entries_per_task": 60}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    place = Place(folder / "built", folder / "in.jsonl", folder / "config.yaml", launch)
    report = place.finish("backfill")
    assert report["messages"]["stored"] == len(rows)
    return place


def contents(store: Path) -> dict[str, Any]:
    """All rows but for the run that wrote them and the time, and what all runs report together."""
    opened = MemoryStore.open(StoreConfig(uri=str(store)))
    found: dict[str, Any] = {}
    for shard in opened.shards:
        for name in ("entries", "messages", "versions"):
            for row in getattr(shard, name).to_arrow().to_pylist():
                key = f"{name} {row.get('key') or row['id']}"
                assert key not in found, "a row was written twice"
                found[key] = {k: v for k, v in row.items() if k not in OF_THIS_RUN}
    reports = [run.report for run in opened.runs.latest(100) if run.status == "done"]
    for name in ("segments", "tokens_before", "merged", "superseded"):
        found[name] = sum(report.get(name, 0) for report in reports)
    for name in ("stored", "no_facts"):
        found[name] = sum(report["messages"][name] for report in reports if "messages" in report)
    return found


def processes(name: str) -> list[psutil.Process]:
    """The processes of the tests' Ray with such a title."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(name):
                found.append(process)
    return found


def kill(victim: str, process: subprocess.Popen[str], rng: random.Random) -> bool:
    """Kill a victim, if there is one."""
    titles = {"committer": ("ray::Committer",), "worker": ("ray::Map", "ray::decide_portion")}
    if victim in titles:
        found = [p for title in titles[victim] for p in processes(title)]
        if not found:
            return False
        rng.choice(found).kill()
        return True
    tree = psutil.Process(process.pid).children(recursive=True) if victim == "node" else []
    process.kill()
    for child in tree:
        with suppress(psutil.Error):
            child.kill()
    return True


def disturb(place: Place, command: str, victim: str, at: int, rng: random.Random) -> bool:
    """Run a command, kill the victim at a moment, and go on until all is done."""
    process = place.start(command, node=victim == "node")
    killed = False
    while process.poll() is None and not killed:
        time.sleep(0.005)
        if place.moments() >= at:
            time.sleep(rng.random() * 0.05)
            killed = kill(victim, process, rng)
    if victim in ("driver", "node") and killed:
        process.communicate()
        place.finish(command)
    else:
        finished(process)
    return killed


def rounds(
    place: Callable[[int], Place], command: str, moments: range, expected: dict[str, Any]
) -> None:
    """Half of all rounds, of a backfill or of a sleep phase."""
    kills: Counter[str] = Counter()
    for number in range((ROUNDS + 1) // 2):
        rng = random.Random(f"{SEED} {command} {number}")
        victim = VICTIMS[number % len(VICTIMS)]
        here = place(number)
        # Workers are done before the last moments, and those of a sleep phase before its commits.
        at = rng.choice(moments if victim in ("driver", "node") else moments[: len(moments) // 4])
        kills[victim] += disturb(here, command, victim, at, rng)
        assert contents(here.store) == expected, (command, number, victim, at)
        shutil.rmtree(here.store)
    told = f"{command}: {dict(kills)} killed, every store as undisturbed\n"
    sys.stdout.write(told)
    assert all(kills[victim] for victim in VICTIMS[: ROUNDS // 2])


def test_a_backfill_survives_whatever_is_killed(undisturbed: Place, tmp_path: Path):
    def place(number: int) -> Place:
        return replace(undisturbed, store=tmp_path / f"store-{number}")

    moments = range(undisturbed.moments())
    rounds(place, "backfill", moments, contents(undisturbed.store))


def test_a_sleep_phase_survives_whatever_is_killed(undisturbed: Place, tmp_path: Path):
    def place(number: int) -> Place:
        store = tmp_path / f"store-{number}"
        shutil.copytree(undisturbed.store, store)
        return replace(undisturbed, store=store)

    quiet = place(-1)
    before = quiet.moments()
    report = quiet.finish("sleep")
    assert report["merged"]
    assert report["superseded"]
    rounds(place, "sleep", range(before, quiet.moments()), contents(quiet.store))
