"""kill -9 of every part of a server under load, and of all of it: what it acknowledged is there.

The server is one as users start it, with real HTTP and a Ray of its own.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from lightmem_core import load_config
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.online.keys import KeyRing, NewKey
from lightmem_serve.client import ApiError, MemoryClient

pytestmark = pytest.mark.ray

FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"
PARTS = ("Writer", "Api", "ProxyActor", "ServeController")
USERS = 3
PATIENCE_S = 120
PAGE = 1_000


@dataclass
class Server:
    """A running server; `process` is the one that started its Ray."""

    process: subprocess.Popen[str]

    def kill(self, part: str) -> None:
        """As the machine would."""
        found = [p for p in self._processes() if part in " ".join(p.cmdline())]
        assert found, f"there is no process of {part}"
        for process in found:
            process.kill()

    def kill_all(self) -> None:
        for process in [psutil.Process(self.process.pid), *self._processes()]:
            with suppress(psutil.Error):
                process.kill()
        self.process.wait()

    def _processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def until(done: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end, otherwise
        time.sleep(0.05)


@dataclass
class Clients:
    """One for each user, which sends message after message, each until it is acknowledged."""

    url: str
    key: str
    acknowledged: dict[str, list[tuple[str, str]]] = field(
        default_factory=lambda: {f"user {n}": [] for n in range(USERS)}
    )
    stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._send, args=(u,)) for u in self.acknowledged]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()

    def more(self, count: int) -> None:
        """Wait until each user has so many more messages acknowledged than now."""
        wanted = {user: len(taken) + count for user, taken in self.acknowledged.items()}
        until(
            lambda: all(len(self.acknowledged[user]) >= least for user, least in wanted.items()),
            "the server does not come back",
        )

    def find(self) -> None:
        """Wait until a search finds what was acknowledged."""
        with MemoryClient(self.url, self.key, retries=0, timeout_s=20) as client:

            def found() -> bool:
                with suppress(ApiError):
                    return bool(client.search("says", user_id="user 0").results)
                return False

            until(found, "nothing is found")

    def _send(self, user: str) -> None:
        number = 0
        with MemoryClient(self.url, self.key, retries=0, timeout_s=20) as client:
            while not self.stop.is_set():
                said = {"role": "user", "content": f"{user} says {number}",
                        "timestamp": 1_700_000_000 + number}  # fmt: skip
                try:
                    (taken,) = client.add([said], user_id=user).results
                except ApiError:
                    time.sleep(0.1)
                    continue
                self.acknowledged[user].append((taken.id, taken.memory))
                number += 1


@pytest.fixture(params=[0, 1], ids=["no readers", "a reader"])
def readers(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def config(tmp_path: Path, readers: int) -> Path:
    """Of a server that extracts what it was told after a moment, by fakes."""
    tree = yaml.safe_load(FAKES.read_text())
    tree["memory"] |= {"generator": {"use": "verbatim"}}
    tree["memory"]["store"] = {"uri": str(tmp_path / "store"), "shards": 2}
    tree["pipelines"] |= {"num_cpus": 2}
    tree["serve"] = {"cpus": 0.2, "flush_after_s": 0.5, "requests_per_minute": 100_000}
    tree["serve"]["replicas"] = readers
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def key(config: Path) -> str:
    memory = load_config(config).memory
    store = MemoryStore.create(memory.store, VectorModel("hash-384", 384))
    return KeyRing(store.database).create(NewKey(scopes=["admin"]))[1]


def test_what_a_server_acknowledged_outlives_each_of_its_parts_and_itself(
    config: Path, readers: int, key: str, free_port: int, deploy: Callable[..., Any]
):
    url = f"http://127.0.0.1:{free_port}"
    clients = Clients(url, key)
    with deploy(config, free_port) as process, clients.running():
        server = Server(process)
        clients.more(5)
        for part in (*PARTS, *["Reader"] * readers):
            server.kill(part)
            clients.more(5)
        clients.find()
        server.kill_all()
    with deploy(config, free_port), MemoryClient(url, key) as client:
        for user, taken in clients.acknowledged.items():
            client.flush(user)
            found = client.get_all(user_id=user, limit=PAGE).results
            held = Counter(memory.memory for memory in found)
            assert set(held.values()) == {1}
            assert {text for _, text in taken} <= held.keys()
            assert {memory.state for memory in found} == {"stored"}
            sources = {source.message_id for memory in found for source in memory.sources}
            assert {id for id, _ in taken} <= sources
