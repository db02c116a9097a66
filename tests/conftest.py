"""Servers for the tests that need one, started on first use: of S3, and of language models."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from lightmem_core.config import StoreConfig
from lightmem_core.long_term.objects import s3_filesystem

SERVER = Path(__file__).with_name("s3_server.py")
ENDPOINT = Path(__file__).with_name("llm_endpoint.py")


@pytest.fixture(scope="session")
def s3_ports() -> Iterator[tuple[int, int]]:
    """The ports of a server: that keeps conditions, and that forgets them."""
    with subprocess.Popen(
        [sys.executable, str(SERVER)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        kept, forgetful = map(int, server.stdout.readline().split())
        yield kept, forgetful
        server.kill()


@pytest.fixture
def bucket(s3_ports: tuple[int, int]) -> Callable[..., StoreConfig]:
    """A store's place in an empty bucket, with what it takes to reach it."""
    name = f"bucket-{uuid4().hex[:8]}"

    def config(forgetful: bool = False, **options: str) -> StoreConfig:
        own = {
            "aws_endpoint": f"http://127.0.0.1:{s3_ports[forgetful]}",
            "aws_region": "us-east-1",
            "aws_access_key_id": "writer",
            "aws_secret_access_key": "HUSH-HUSH",
            "allow_http": "true",
        }
        return StoreConfig(uri=f"s3://{name}/deep/store", storage_options=own | options)

    s3_filesystem(config().storage_options, allow_bucket_creation=True).create_dir(name)
    return config


class LLMEndpoint:
    """A running llm_endpoint.py. `url` is what a client is given; `plan` says how it behaves."""

    def __init__(self, *options: str):
        self.process = subprocess.Popen(
            [sys.executable, str(ENDPOINT), *options], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def plan(self, *faults: dict[str, Any], **plan: Any) -> None:
        """Behave like this from now on, and forget what was counted."""
        self._ask("plan", {"faults": faults, **plan})

    def stats(self) -> dict[str, Any]:
        return self._ask("stats")

    def calls(self) -> list[dict[str, Any]]:
        return self._ask("calls")

    def heard(self) -> list[list[dict[str, Any]]]:
        """The messages of the last calls."""
        return self._ask("heard")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"{self.url[:-3]}/{path}", data, timeout=60) as answer:
            return json.load(answer)


@pytest.fixture(scope="session")
def start_llm_endpoint() -> Iterator[Callable[..., LLMEndpoint]]:
    """Start one with the options of its command line; it is killed when all tests are done."""
    started: list[LLMEndpoint] = []

    def start(*options: str) -> LLMEndpoint:
        started.append(LLMEndpoint(*options))
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.stop()


@pytest.fixture(scope="session")
def _shared_llm_endpoint(start_llm_endpoint: Callable[..., LLMEndpoint]) -> LLMEndpoint:
    return start_llm_endpoint()


@pytest.fixture
def llm_endpoint(_shared_llm_endpoint: LLMEndpoint) -> LLMEndpoint:
    """One that all tests share, each with a plan of its own."""
    _shared_llm_endpoint.plan()
    return _shared_llm_endpoint
