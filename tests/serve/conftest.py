"""Servers on a real port over a real store: in this process and without Ray, or as deployed."""

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml

from lightmem_core import load_config
from lightmem_core.config import Config
from lightmem_core.factory import embedder
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.online.keys import UNKNOWN_S, KeyRing, NewKey
from lightmem_serve.api import access_of, create_app, server_of
from lightmem_serve.reading import AsyncReader
from lightmem_serve.writing import AsyncWriter

TESTS = Path(__file__).parents[1]
FAKES = TESTS.parent / "pipelines" / "configs" / "fakes.yaml"


@dataclass
class Reply:
    status: int
    body: Any
    headers: dict[str, str]


@dataclass
class Running:
    """A server, and the key that its calls use unless they name another. `app` is what it runs."""

    url: str
    config: Config
    ring: KeyRing
    app: Any = None
    key: str = ""
    keys: dict[str, str] = field(default_factory=dict)

    def make_key(self, **asked: Any) -> str:
        key, text = self.ring.create(NewKey(**asked))
        self.keys[text] = key.id
        time.sleep(UNKNOWN_S)  # the server may just have looked for another
        return text

    def call(self, method: str, path: str, body: Any = None, **options: Any) -> Reply:
        """`options`: the `key`, "" for none, and `headers`; a body of bytes is sent as it is."""
        key = options.get("key", self.key)
        headers = {"X-API-Key": key} if key else {}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if data is not None:
            headers["content-type"] = "application/json"
        headers |= options.get("headers", {})
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return _reply(answer.status, answer)
        except urllib.error.HTTPError as error:
            return _reply(error.code, error)

    def done(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """The answer to a call that must succeed."""
        reply = self.call(method, path, body, **options)
        assert reply.status == 200, (method, path, reply)
        return reply.body

    def say(self, user: str, *texts: str, flush: bool = True, **other: Any) -> list[dict]:
        """Have a user say something; return what was added."""
        messages = [{"role": "user", "content": text} for text in texts]
        body = {"messages": messages, "user_id": user, "async_mode": not flush, **other}
        return self.done("POST", "/memories", body)["results"]

    def texts(self, user: str, **options: Any) -> set[str]:
        found = self.done("GET", f"/memories?user_id={user}", **options)["results"]
        return {memory["memory"] for memory in found}


def _reply(status: int, answer: Any) -> Reply:
    text = answer.read().decode()
    headers = {name.lower(): value for name, value in answer.headers.items()}
    is_json = headers.get("content-type", "").partition(";")[0] == "application/json"
    return Reply(status, json.loads(text) if is_json else text, headers)


def unused_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


@contextmanager
def run_server(config: Config, host: str = "127.0.0.1") -> Iterator[Running]:
    """Serve the store of a configuration until the block ends."""
    writer = AsyncWriter(config)
    store = writer.writer.shared.store
    served = server_of(store, AsyncReader(config), writer, config.serve, config.memory.llm)
    app = create_app(served, access_of(store, config.serve))
    port = unused_port(host)
    settings = uvicorn.Config(app, host=host, port=port, log_level="warning", lifespan="on")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    running = Running(f"http://{host}:{port}", config, KeyRing(store.database), app)
    if config.serve.auth == "keys":
        running.key = running.make_key(scopes=["admin"])
    yield running
    server.should_exit = True
    thread.join()
    writer.writer.close()


@contextmanager
def served_by_ray(config: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """The server of a configuration on Ray Serve, in a process that starts a Ray of its own."""
    command = [sys.executable, str(TESTS / "serve_process.py"), str(config), str(port)]
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **streams, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        while (line := process.stdout.readline()) != "ready\n":
            assert line, "the server did not start"
        yield process
        if process.poll() is None:
            process.stdin.close()
            process.wait(timeout=60)


@contextmanager
def run_deployed(config: Config, folder: Path) -> Iterator[Running]:
    """Serve the store of a configuration as users do, until the block ends."""
    path, port = folder / "serve.yaml", unused_port()
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    model = VectorModel.of(embedder(config.memory))
    store = MemoryStore.create(config.memory.store, model)
    running = Running(f"http://127.0.0.1:{port}", config, KeyRing(store.database))
    running.key = running.make_key(scopes=["admin"])
    with served_by_ray(path, port):
        yield running


def fake_config(folder: Path, llm: str = "", generator: str = "verbatim", **serve: Any) -> Config:
    """Fakes in place of every model; what waits is extracted when a test says so. `llm` is the URL
    of a model to chat with, `llm_use` how it is reached."""
    use = serve.pop("llm_use", "openai")
    config = load_config(FAKES, uri=str(folder / "store"))
    tree = config.model_dump()
    tree["memory"]["generator"] = {"use": generator}
    tree["serve"] |= {"flush_after_s": 600} | serve
    tree["memory"]["store"]["storage_options"] = {"aws_secret_access_key": "hidden-of-the-store"}
    if llm:
        tree["memory"]["llm"] = {"use": use, "options": {"model": "echo", "base_url": llm}}
    return Config.model_validate(tree)


@pytest.fixture(scope="session")
def start(
    tmp_path_factory: pytest.TempPathFactory, _shared_llm_endpoint: Any
) -> Callable[..., Any]:
    """Start a server, of a new store unless its `folder` is named, by itself or `deployed` on Ray
    Serve; `other` are settings of its section."""

    def started(
        llm: str = _shared_llm_endpoint.url,
        folder: Path | None = None,
        deployed: bool = False,
        **other: Any,
    ) -> Any:
        place = folder or tmp_path_factory.mktemp("served")
        config = fake_config(place, llm, **other)
        return run_deployed(config, place) if deployed else run_server(config)

    return started


@pytest.fixture(scope="session")
def server(start: Callable[..., Any]) -> Iterator[Running]:
    """One that all tests share, each with users of its own."""
    with start(requests_per_minute=100_000) as running:
        yield running


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.ray)],
                ids=["by-itself", "deployed"])  # fmt: skip
def any_server(request: pytest.FixtureRequest, start: Callable[..., Any]) -> Iterator[Running]:
    """The routes by themselves, and as they are deployed on Ray Serve."""
    with start(deployed=request.param, requests_per_minute=100_000, cpus=0.2) as running:
        yield running


@pytest.fixture(scope="session")
def deploy() -> Callable[..., Any]:
    """Start a server on Ray Serve, of a configuration's path and on a port."""
    return served_by_ray


@pytest.fixture(scope="module")
def free_port() -> int:
    return unused_port()
