"""What a search costs on a running server, and what becomes of requests that are too many for it.

    make bench-serve

Stores of 100,000 and 1,000,000 entries, 100 a user. Their vectors are made up; queries are embedded
by the real MiniLM. Of ten searches nine are of 500 busy users, one of any user. Clients wait for
each answer before they ask again, on loopback and on the cores of the server. An answer's header
says how long its embedding and ranking took; the rest of what the client waited is HTTP and Ray
Serve, and `other` is all but embedding. Too many: requests come at twice the best rate, whether or
not others were answered. All that with Serve as it starts by itself, with its switches for
throughput, with larger batches, with a reader in a process of its own, and with OpenVINO.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import yaml
from bench_store import EACH, load, name
from measure import environment

from lightmem_core import factory, load_config
from lightmem_core.config import Component, Config
from lightmem_core.long_term.retrieve import Query
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.online.keys import KeyRing, NewKey
from lightmem_core.online.reader import OnlineReader

BUSY, ANY = 500, 0.1
CLIENTS = (1, 4, 16, 64)
LIMIT = 10
TUNED = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
MODES: dict[str, tuple[dict[str, str], str, dict[str, int]]] = {
    # what is in the environment, what computes the embeddings, and settings of `serve`
    "as Serve starts by itself": ({}, "torch", {}),
    "HAProxy, tuned for throughput": (TUNED, "torch", {}),
    "the same, eight embedded together": (TUNED, "torch", {"max_batch_size": 8}),
    "the same, in a reader of its own": (TUNED, "torch", {"max_batch_size": 8, "replicas": 1}),
    "HAProxy, and embeddings by openvino": (TUNED, "openvino", {}),
    "the same, eight embedded by openvino": (TUNED, "openvino", {"max_batch_size": 8}),
}
PROCESSES = ("Proxy", "Api", "Reader", "Writer")
WAIT_S = 60  # longer than a server may take
SERVER = Path(__file__).parents[1] / "serve_process.py"
TIMING = re.compile(r"(\w+);dur=([\d.]+)")


@dataclass
class Load:
    """What clients saw: the milliseconds of each answered request, all and by part, and how often
    each status. `users` is how many the store has."""

    users: int
    seconds: float = 0.0
    total: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: {"embed": [], "rank": []})
    statuses: Counter[int | str] = field(default_factory=Counter)
    chance: random.Random = field(default_factory=lambda: random.Random(3))

    def query(self) -> dict[str, object]:
        drawn = self.chance.random() < ANY
        user = self.chance.randrange(self.users if drawn else min(BUSY, self.users))
        words = " ".join(f"word{self.chance.randrange(5_000)}" for _ in range(4))
        text = f"what did she say about {words}?"
        return {"user_id": name(user), "query": text, "limit": LIMIT}

    def note(self, waited: float, parts: dict[str, float]) -> None:
        self.total.append(waited)
        for part, values in self.parts.items():
            values.append(parts[part])

    @property
    def rate(self) -> float:
        return len(self.total) / self.seconds

    def __str__(self) -> str:
        if not self.total:
            return "nothing was answered"
        total, embed, rank = map(np.array, (self.total, *self.parts.values()))
        p50, p95, p99 = np.percentile(total, [50, 95, 99])
        rest, other = np.median(total - embed - rank), np.median(total - embed)
        columns = (p50, p95, p99, np.median(embed), np.median(rank), rest, other)
        return f"{self.rate:7.1f}" + "".join(f"{value:9.2f}" for value in columns)


class Client:
    """Asks a server, and notes what it answers."""

    def __init__(self, session: aiohttp.ClientSession, url: str, load: Load):
        self.session, self.url, self.load = session, f"{url}/search", load

    async def ask(self) -> None:
        body, started = self.load.query(), time.perf_counter()
        try:
            async with self.session.post(self.url, json=body) as answer:
                await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            self.load.statuses[type(error).__name__] += 1
            return
        self.load.statuses[answer.status] += 1
        if answer.status == 200:
            waited = (time.perf_counter() - started) * 1000
            timing = TIMING.findall(answer.headers["Server-Timing"])
            self.load.note(waited, {part: float(ms) for part, ms in timing})


@dataclass(frozen=True)
class Asked:
    """A server, and how to reach it; `pid` is the process that started its Ray."""

    url: str
    key: str
    users: int
    pid: int

    def cpu(self) -> Counter[str]:
        """CPU seconds so far of the server's processes, by what they do."""
        spent: Counter[str] = Counter()
        for process in psutil.Process(self.pid).children(recursive=True):
            with suppress(psutil.Error):
                title = " ".join(process.cmdline())
                kind = next((kind for kind in PROCESSES if kind in title), "other")
                times = process.cpu_times()
                spent[kind] += times.user + times.system
        return spent

    async def waiting(self, clients: int, seconds: float) -> Load:
        """So many clients, each of which waits for its answer before it asks again."""
        load = Load(self.users)
        async with self._session() as session:
            client, end = Client(session, self.url, load), time.perf_counter() + seconds

            async def one() -> None:
                while time.perf_counter() < end:
                    await client.ask()

            await asyncio.gather(*(one() for _ in range(clients)))
        load.seconds = seconds
        return load

    async def arriving(self, rate: float, seconds: float) -> Load:
        """So many requests a second, whether or not those before were answered."""
        load = Load(self.users)
        async with self._session() as session:
            client, started = Client(session, self.url, load), time.perf_counter()
            asked = []
            for number in range(int(rate * seconds)):
                await asyncio.sleep(started + number / rate - time.perf_counter())
                asked.append(asyncio.create_task(client.ask()))
            await asyncio.gather(*asked)
        load.seconds = seconds
        return load

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            headers={"X-API-Key": self.key},
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=WAIT_S),
        )


def in_process(reader: OnlineReader, users: int, seconds: float) -> Load:
    """The store called directly: one search after the other."""
    load, end = Load(users), time.perf_counter() + seconds
    while time.perf_counter() < end:
        asked = load.query()
        query = Query(str(asked["user_id"]), str(asked["query"]), LIMIT)
        started = time.perf_counter()
        vectors = reader.embed([query])
        embedded = time.perf_counter()
        reader.answer([query], vectors)
        done = time.perf_counter()
        parts = {"embed": (embedded - started) * 1000, "rank": (done - embedded) * 1000}
        load.note((done - started) * 1000, parts)
    load.seconds = seconds
    return load


@contextmanager
def serving(config: Config, folder: Path, users: int, switches: dict[str, str]) -> Iterator[Asked]:
    """A server as a user starts it, until the block ends."""
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    ring = KeyRing(MemoryStore.open(config.memory.store).database)
    _, key = ring.create(NewKey(scopes=("read",), per_minute=10_000_000))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(SERVER), str(path), str(port)]
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **streams, env=os.environ | switches) as process:
        assert process.stdout is not None
        if not process.stdout.readline():  # it says a line once it answers
            raise SystemExit("the server does not start: its error stands above")
        try:
            yield Asked(f"http://127.0.0.1:{port}", key, users, process.pid)
        finally:
            process.communicate(timeout=60)


def measure(users: int, seconds: float, folder: Path) -> None:
    config = load_config(uri=str(folder / "store"), shards=16)
    embedder = factory.embedder(config.memory)
    store = MemoryStore.create(config.memory.store, VectorModel.of(embedder))
    load(store, range(users))
    print(f"\n{users * EACH:,} entries of {users:,} users")
    print(f"{'':28}    /s      p50      p95      p99    embed     rank     rest    other")
    reader = OnlineReader(config.memory)
    in_process(reader, users, seconds)
    show("in one process", in_process(reader, users, seconds))
    for label, (switches, runtime, settings) in MODES.items():
        print(label)
        embedder = Component(use="minilm", options={"runtime": runtime})
        memory = config.memory.model_copy(update={"embedder": embedder})
        settled = config.serve.model_copy(update=settings)
        served = config.model_copy(update={"memory": memory, "serve": settled})
        with serving(served, folder, users, switches) as asked:
            ask(asked, seconds)


def ask(asked: Asked, seconds: float) -> None:
    asyncio.run(asked.waiting(16, seconds))  # what is read and compiled once
    best = 0.0
    for clients in CLIENTS:
        before = asked.cpu()
        seen = asyncio.run(asked.waiting(clients, seconds))
        best = max(best, seen.rate)
        show(f"{clients} clients", seen)
        spent = {kind: s * 1000 / len(seen.total) for kind, s in (asked.cpu() - before).items()}
        told = ", ".join(f"{kind} {ms:.1f}" for kind, ms in sorted(spent.items()))
        print(f"{'':28}CPU ms a request: {told}")
    show(f"{2 * best:.0f} requests/s arrive", asyncio.run(asked.arriving(2 * best, seconds)))


def show(label: str, seen: Load) -> None:
    statuses = ", ".join(f"{count} x {status}" for status, count in seen.statuses.items())
    print(f"{label:26} {seen}   {statuses}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--seconds", type=float, default=20, help="of each load")
    args = parser.parse_args()
    print(environment())
    print("ms, of the answered requests; embed, rank, rest, other: medians")
    for users in args.users:
        with tempfile.TemporaryDirectory() as folder:
            measure(users, args.seconds, Path(folder))


if __name__ == "__main__":
    main()
