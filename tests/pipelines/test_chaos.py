"""Whatever is killed, at whatever moment: going on gives the store of an undisturbed run.

Every round kills one thing (SIGKILL) while it is at work: a task or an actor of either command, a
committer in the middle of a commit, the driver, or a whole node with its own Ray. A round whose
victim was missed is repeated. `make chaos` runs hundreds of rounds, CHAOS_ROUNDS and CHAOS_SEED
choose others.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from lightmem_core import Config, load_config
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore
from lightmem_pipelines.backfill import BackfillRequest, backfill
from lightmem_pipelines.sleep import SleepRequest, sleep

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "20"))
SEED = int(os.environ.get("CHAOS_SEED", "7"))
TRIES = 25  # to catch a victim at work
PAUSE_S = 0.05  # at most, from a moment to the kill; mostly less: some tasks take a few ms
AT_WORK = {  # how the titles begin that Ray gives to processes
    "committer": ("ray::Committer.",),
    "stages": ("ray::MapWorker(",),
    "input": ("ray::MapBatches(Reader", "ray::HashShuffle"),
    "commit": ("ray::MapBatches(Commit",),
    "plan": ("ray::_planned",),
    "decisions": ("ray::decide_portion",),
    "vectors": ("ray::embed_updates",),
}
VICTIMS = {
    "backfill": ("committer", "driver", "stages", "input", "commit", "node"),
    "sleep": ("committer", "driver", "plan", "decisions", "vectors", "node"),
}
COMMANDS = ("driver", "node")  # victims for which one is started, to be killed
FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"
USERS, SESSIONS, TURNS = 10, 2, 8
CITIES = "Porto Oslo Quito Hanoi".split()

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Place:
    """Where a round happens: its store, and the command's input and configuration."""

    store: Path
    input: Path
    config: Path
    launch: Callable[..., subprocess.Popen[str]]
    stored_rows: Callable[[Config], dict[str, Any]]

    def start(self, command: str, node: bool) -> subprocess.Popen[str]:
        """Start `lightmem`, on the tests' Ray or as a node of its own."""
        source = [self.input] if command == "backfill" else []
        place = ["--config", self.config, "--store", self.store, "--json"]
        return self.launch(command, *source, *place, node=node)

    @property
    def own_config(self) -> Config:
        return load_config(self.config, uri=str(self.store))

    def run(self, command: str) -> Run:
        """The same work from this process, which is spared the start of another."""
        if command == "sleep":
            return sleep(self.own_config, SleepRequest(progress=False))
        return backfill(self.own_config, BackfillRequest((str(self.input),), progress=False))

    def contents(self) -> dict[str, Any]:
        """All rows, and what all runs report together."""
        config = self.own_config
        ledger = MemoryStore.open(config.memory.store).runs.latest(None)
        reports = [run.report for run in ledger if run.status == "done"]
        found = self.stored_rows(config)
        for name in ("segments", "tokens_before", "merged", "superseded", "updated", "deleted"):
            found[name] = sum(report.get(name, 0) for report in reports)
        for name in ("stored", "no_facts"):
            found[name] = sum(r["messages"][name] for r in reports if "messages" in r)
        return found

    def moment(self) -> int:
        """How much has been written so far: table versions, and the files of a sleep phase."""
        files = ("*_0*.lance/_versions/*.manifest", "_runs/sleep-*/*/*")
        return sum(1 for pattern in files for _ in self.store.glob(pattern))


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
def empty(
    tmp_path_factory: pytest.TempPathFactory,
    launch: Callable[..., subprocess.Popen[str]],
    stored_rows: Callable[[Config], dict[str, Any]],
) -> Place:
    """An input and a configuration that makes small commits; there is no store yet."""
    folder = tmp_path_factory.mktemp("chaos")
    places = [(u, s, t) for s in range(SESSIONS) for u in range(USERS) for t in range(TURNS)]
    lines = (json.dumps(message(*place)) for place in places)
    (folder / "in.jsonl").write_text("".join(line + "\n" for line in lines))
    config = yaml.safe_load(FAKES.read_text())
    config["memory"] |= {"buffer_tokens": 32, "store": {"shards": 2}}
    config["memory"]["updater"] = {"use": "updaters:EveryAction"}
    config["pipelines"]["pools"][0] |= {"batch_size": 2, "cpus": 0.5}
    config["pipelines"] |= {"commit_buffers": 3, "sleep_entries_per_task": 30}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return Place(folder / "store", folder / "in.jsonl", folder / "config.yaml", launch, stored_rows)


@dataclass(frozen=True)
class Undisturbed:
    """A command that ran in peace: what it wrote, and when each victim was seen at work."""

    place: Place
    contents: dict[str, Any]
    moments: dict[str, Sequence[int]]


def undisturbed(place: Place, command: str) -> Undisturbed:
    first = place.moment()
    seen: dict[str, list[int]] = {victim: [first] for victim in AT_WORK}

    def watch() -> bool:
        moment, present = place.moment(), titles().values()
        for victim, starts in AT_WORK.items():
            if any(title.startswith(starts) for title in present):
                seen[victim].append(moment)
        return False

    with meanwhile(watch):
        report = place.run(command).report
    if command == "sleep":
        assert all(report[done] for done in ("merged", "superseded", "updated", "deleted"))
    else:
        assert report["messages"]["stored"] == USERS * SESSIONS * TURNS
    moments = dict.fromkeys(COMMANDS, range(first, place.moment()))
    return Undisturbed(place, place.contents(), moments | seen)


@pytest.fixture(scope="module")
def filled(empty: Place) -> Undisturbed:
    return undisturbed(empty, "backfill")


# --- to kill -----------------------------------------------------------------------------------


@contextmanager
def meanwhile(look: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Look again and again until that is true or the block ends, and tell then which it was."""
    over = threading.Event()

    def watch() -> bool:
        while not (stop := look()) and not over.wait(0.005):
            pass
        return stop

    with ThreadPoolExecutor(1) as executor:
        watching = executor.submit(watch)
        try:
            yield watching.result
        finally:
            over.set()


@lru_cache(maxsize=1)
def processes(quarter_second: int) -> list[psutil.Process]:
    """Those of the tests' Ray. To list them takes longer than some of their tasks."""
    return psutil.Process().children(recursive=True)


def titles() -> dict[psutil.Process, str]:
    return {process: title_of(process) for process in processes(int(4 * time.monotonic()))}


def title_of(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def kill_at_work(victim: str, rng: random.Random) -> bool:
    """Kill a process while it does what it is to be killed at, if there is one."""
    if not (found := [i for i in titles().items() if i[1].startswith(AT_WORK[victim])]):
        return False
    process, title = rng.choice(found)
    time.sleep(rng.random() ** 4 * PAUSE_S)
    return title_of(process).startswith(title.partition(".")[0]) and killed(process)


def kill_command(victim: str, process: psutil.Process, rng: random.Random) -> bool:
    """Kill a command, and with a node all that belongs to it."""
    time.sleep(rng.random() ** 4 * PAUSE_S)
    tree = process.children(recursive=True) if victim == "node" else []
    for one in (process, *tree):
        killed(one)
    return True


def killed(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        process.kill()
        return True
    return False


def disturb(place: Place, command: str, victim: str, at: int, rng: random.Random) -> bool:
    """Run a command, kill the victim at a moment, and go on until all is done. Return whether the
    victim was killed."""
    if victim not in COMMANDS:
        with meanwhile(lambda: place.moment() >= at and kill_at_work(victim, rng)) as caught:
            place.run(command)
        return caught()
    process = place.start(command, node=victim == "node")
    whole = psutil.Process(process.pid)
    with meanwhile(lambda: place.moment() >= at and kill_command(victim, whole, rng)):
        _, errors = process.communicate(timeout=300)
    if process.returncode == 0:
        return False
    assert process.returncode == -signal.SIGKILL, errors
    place.run(command)
    return True


def rounds(make: Callable[[], Place], command: str, quiet: Undisturbed, capsys: Capture) -> None:
    """Half of all rounds, of a backfill or of a sleep phase, and a line that tells of them."""
    kills: Counter[str] = Counter()
    count, missed, started = (ROUNDS + 1) // 2, 0, time.monotonic()
    for number, victim in enumerate(islice(cycle(VICTIMS[command]), count)):
        rng, moments = random.Random(f"{SEED} {command} {number}"), quiet.moments[victim]
        for _ in range(TRIES):
            here, at = make(), rng.choice(moments)
            caught = disturb(here, command, victim, at, rng)
            assert here.contents() == quiet.contents, (command, number, victim, at)
            shutil.rmtree(here.store)
            if caught:
                break
            missed, moments = missed + 1, [m for m in moments if m < at] or moments
        else:
            pytest.fail(f"no {victim} could be caught at work in a {command}")
        kills[victim] += 1
    each = (time.monotonic() - started) / (count + missed)
    told = ", ".join(f"{n} {victim}" for victim, n in kills.items())
    told = f"\n{command}: {count} kills with seed {SEED} ({told}), every store as undisturbed"
    with capsys.disabled():
        sys.stdout.write(f"{told}; {missed} missed and repeated, {each:.1f} s a round\n")


def test_a_backfill_survives_whatever_is_killed(
    filled: Undisturbed, tmp_path: Path, capsys: Capture
):
    make = partial(replace, filled.place, store=tmp_path / "store")
    rounds(make, "backfill", filled, capsys)


def test_a_sleep_phase_survives_whatever_is_killed(
    filled: Undisturbed, tmp_path: Path, capsys: Capture
):
    def make() -> Place:
        shutil.copytree(filled.place.store, tmp_path / "store")
        return replace(filled.place, store=tmp_path / "store")

    quiet = undisturbed(make(), "sleep")
    shutil.rmtree(quiet.place.store)
    rounds(make, "sleep", quiet, capsys)
