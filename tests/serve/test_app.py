"""The server on Ray Serve: real HTTP, a real local Ray and a store that a backfill wrote."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import openai
import pytest
import yaml
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from ray import serve

from lightmem_core import factory, load_config
from lightmem_core.config import Config
from lightmem_core.errors import ConfigError
from lightmem_core.long_term.retrieve import Query
from lightmem_pipelines.backfill import BackfillRequest, backfill
from lightmem_pipelines.cluster import ray_session
from lightmem_serve.app import AppArgs, build_app
from lightmem_serve.client import MemoryClient

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2] / "pipelines"
FAKES = ROOT / "configs" / "fakes.yaml"


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, _shared_llm_endpoint: Any, free_port: int
) -> Iterator[tuple[str, Config]]:
    """Without keys, and with Serve listening on this machine only."""
    folder = tmp_path_factory.mktemp("served")
    path, store = folder / "open.yaml", str(folder / "store")
    text = yaml.safe_load(FAKES.read_text()) | {"serve": {"auth": "off", "cpus": 0.2}}
    options = {"model": "echo", "base_url": _shared_llm_endpoint.url}
    text["memory"]["llm"] = {"use": "openai", "options": options}
    path.write_text(yaml.safe_dump(text))
    config = load_config(path, uri=store)
    with ray_session(config.pipelines.model_copy(update={"num_cpus": 2})):
        sample = str(ROOT / "samples" / "chats.jsonl")
        backfill(config, BackfillRequest((sample,), progress=False))
        serve.start(http_options={"host": "127.0.0.1", "port": free_port})
        serve.run(build_app(AppArgs(config=str(path), store=store)))
        yield f"http://127.0.0.1:{free_port}", config
        serve.shutdown()


def post(url: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_search_answers_what_the_retrieval_object_answers(server):
    url, config = server
    status, answer = post(
        f"{url}/search", {"user_id": "ada", "query": "moved to Porto", "limit": 3}
    )
    assert status == 200
    expected = factory.retrieval(config.memory)([Query("ada", "moved to Porto", 3)])[0]
    assert [r["id"] for r in answer["results"]] == [hit.entry.id for hit in expected]
    assert "Porto" in answer["results"][0]["memory"]
    assert answer["results"][0]["sources"]


def test_the_http_part_reads_by_itself_unless_there_are_readers(server, tmp_path):
    assert serve.status().applications["default"].deployments.keys() == {"Api", "Writer"}
    path = tmp_path / "readers.yaml"
    path.write_text(f"{FAKES.read_text()}\nserve: {{replicas: 2}}\n")
    app = build_app(AppArgs(config=str(path), store=str(tmp_path / "store")))
    readers = app._bound_deployment.init_args[1]._bound_deployment
    assert (readers.name, readers.num_replicas) == ("Reader", 2)


def test_a_user_never_sees_the_memories_of_another(server):
    url, _ = server
    for user in ("nobody", "ada' OR '1'='1", "%"):
        assert post(f"{url}/search", {"user_id": user, "query": "Porto"})[1] == {"results": []}


def test_times_bound_the_search(server):
    url, _ = server
    body = {"user_id": "ada", "query": "Porto", "until": "2025-03-01T00:00:00Z", "limit": 100}
    _, answer = post(f"{url}/search", body)
    assert answer["results"]
    assert all(r["said_at"] <= 1_740_787_200_000 for r in answer["results"])


@pytest.mark.parametrize(
    "body",
    [{"query": "x", "user_id": "ada", "limit": 0}, {"user_id": "ada"},
     {"user_id": "ada", "query": "x", "filter": "1=1"}, {"user_id": "", "query": "x"}],
)  # fmt: skip
def test_a_wrong_request_is_refused_and_says_why(server, body):
    url, _ = server
    status, answer = post(f"{url}/search", body)
    assert status == 422
    assert answer["detail"]


def test_the_writer_is_reached_and_its_errors_are_told(server):
    url, _ = server
    with MemoryClient(url) as client:
        assert client.health().embedder == "hash-384"
        (added,) = client.add("the barn has a red roof", user_id="bob").results
        found = client.search("red roof", user_id="bob", limit=100).results
        assert added.id in {memory.id for memory in found}
        assert client.flush("bob").entries >= 1
        said = {"user_id": "eve", "role": "user", "content": "hello", "timestamp": 1_700_000_000}
        job = client.create_job([said])
        while client.get_job(job.id).status != "completed":
            pass
        assert len(client.get_all(user_id="eve").results) == 1
        assert client.delete_all(user_id="eve").counts
    status, answer = post(f"{url}/search", {"user_id": "bob", "query": "x", "rerank": True})
    assert (status, "\n" in answer["detail"]) == (400, False), answer
    assert post(f"{url}/users/bob/sleep", {})[0] == 200


def test_a_chat_streams_and_a_client_that_leaves_is_noticed(server, llm_endpoint):
    url, _ = server
    llm_endpoint.plan(says="You said: {said}", pause=0.1)
    asked = {"model": "m", "messages": [{"role": "user", "content": "who moved to Porto?"}]}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        events = client.chat.completions.create(**asked, user="ada", stream=True)
        arrived = [time.monotonic() for _ in events]
        left = client.chat.completions.create(**asked, user="dan", stream=True)
        next(left)
        left.close()
    assert arrived[-1] - arrived[0] > 0.3
    assert "Porto" in llm_endpoint.heard()[0][0]["content"]
    with MemoryClient(url) as memories:
        assert "You said: who moved to Porto?" in str(memories.get_all(user_id="ada"))
        until = time.monotonic() + 10
        while not (kept := memories.get_all(user_id="dan").results) and time.monotonic() < until:
            time.sleep(0.1)
    assert "who moved to Porto?" in [memory.memory for memory in kept]


def test_agents_have_their_tools(server):
    url, _ = server

    async def used() -> Any:
        async with (
            httpx2.AsyncClient(headers={"X-User-Id": "ada"}, timeout=30) as http,
            Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
        ):
            return await client.call_tool("search_memories", {"query": "moved to Porto"})

    assert "Porto" in anyio.run(used).structured_content["memories"][0]["text"]


@pytest.mark.parametrize(
    ("memory", "words"),
    [("embedder: {use: nothing}", "unknown embedder"),
     ("llm: {use: openai, options: {model: m, modle: n}}", "no option 'modle'")],
)  # fmt: skip
def test_a_wrong_configuration_stops_it_before_it_is_deployed(tmp_path, memory, words):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(f"memory: {{{memory}}}")
    with pytest.raises(ConfigError, match=words):
        build_app(AppArgs(config=str(wrong), store=str(tmp_path / "store")))
