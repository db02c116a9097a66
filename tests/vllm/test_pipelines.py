"""Backfill and sleep through vLLM: on an actor, on Ray Serve, and behind servers of HTTP.

The model's weights are random: what it writes means nothing, but it fits the schema, and every
message and every call must be accounted for.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
import yaml
from openai import OpenAI
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from lightmem_core import factory, load_config
from lightmem_core.config import Config, StoreConfig
from lightmem_core.errors import ConfigError, LightMemError, LLMUnavailableError
from lightmem_core.formats import parse_file
from lightmem_core.history import ordered_history
from lightmem_core.llm.asking import together
from lightmem_core.llm.chat import ChatRequest, Rejected, Reply, TooLong
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.online.keys import KeyRing, NewKey
from lightmem_core.short_term import summarize
from lightmem_core.types import Buffer, Message
from lightmem_pipelines.backfill import BackfillRequest, backfill
from lightmem_pipelines.cluster import ray_session
from lightmem_pipelines.files import RunFiles
from lightmem_pipelines.replies import RunReplies, calls
from lightmem_pipelines.served import ServedChat
from lightmem_pipelines.sleep import SleepRequest, apply_planned, sleep

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[2]
FAKES = ROOT / "pipelines" / "configs" / "fakes.yaml"
DEPLOYED = ROOT / "serve" / "llm.yaml"
CONTEXT = 4096
WHOLE = 0.8  # of the replies at least were not cut off
QUARANTINED = 0.8  # of the messages at most: random weights name few of them
STARTED_S = 600  # at most, until a server answers
COMPACT = '{"backend": "xgrammar", "disable_any_whitespace": true}'  # else it writes blanks at will


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """CPUs are Ray's measure alone: eight do not need eight cores."""
    with ray_session(load_config(FAKES).pipelines.model_copy(update={"num_cpus": 8})):
        yield


@pytest.fixture(scope="module")
def store(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The memories of the sample."""
    uri = str(tmp_path_factory.mktemp("retrieved") / "store")
    sample = str(ROOT / "pipelines" / "samples" / "chats.jsonl")
    backfill(load_config(FAKES, uri=uri), BackfillRequest((sample,), progress=False))
    return uri


@pytest.fixture(scope="module")
def served(cluster: None, tiny_model: str, engine: dict[str, Any], store: str) -> Iterator[str]:
    """What the shipped YAML brings up, with the tiny model: retrieval and summarizer. Its URL."""
    tree = yaml.safe_load(DEPLOYED.read_text(encoding="utf-8"))
    retrieval, summarizer = tree["applications"]
    config = retrieval["args"]["config"]
    port = tree["http_options"]["port"] = free_port()
    route = {"model": "tiny", "base_url": f"http://127.0.0.1:{port}/llm/v1"}
    config["memory"]["llm"]["options"] |= route
    fakes = yaml.safe_load(FAKES.read_text(encoding="utf-8"))
    config["memory"] = fakes["memory"] | config["memory"]
    retrieval["args"] = {"config": {**fakes, **config}, "store": store}
    args = summarizer["args"]
    del args["accelerator_type"]
    args["placement_group_config"] = {"bundles": [{"CPU": 0.5}]}
    args["model_loading_config"] = {"model_id": "tiny", "model_source": tiny_model}
    args["engine_kwargs"] |= engine | {"max_model_len": CONTEXT}
    args["deployment_config"]["autoscaling_config"]["max_replicas"] = 1
    args["deployment_config"] |= {"ray_actor_options": {"num_cpus": 0}, "health_check_period_s": 2}
    args["ingress"] = {"ray_actor_options": {"num_cpus": 0.1}}
    serve.start(http_options=tree["http_options"])
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(tree))
    running = {"lightmem": "RUNNING", "summarizer": "RUNNING"}
    _wait(lambda: {n: a.status for n, a in serve.status().applications.items()} == running)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def api_server(tiny_model: str, engine: dict[str, Any]) -> Iterator[str]:
    """vLLM's own server, as its command starts it."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", tiny_model]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", str(CONTEXT), "--enable-prompt-tokens-details"]
    command += ["--max-num-seqs", str(engine["max_num_seqs"]), "--enforce-eager"]
    command += ["--structured-outputs-config", COMPACT]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        url = f"http://127.0.0.1:{port}"
        _wait(lambda: server.poll() is None and _answers(f"{url}/health"))
        yield url
        server.terminate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(done: Callable[[], bool]) -> None:
    until = time.monotonic() + STARTED_S
    while not done():
        assert time.monotonic() < until
        time.sleep(1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def check_replies(config: Config, run: Run, stage: Any, ask: Callable[[], object]) -> None:
    """What `ask` makes the stage ask again is all saved: every reply fits the schema of its own
    request, unless it was cut off, and the report counts all of them."""
    files = RunFiles.of(config.memory.store, run.id)
    stage.asking.saved = saved = RunReplies(files)
    saved.close(LLMUnavailableError("this was never asked"))
    requests, key_of = dict[str, ChatRequest](), stage.asking._key

    def remembered(request: ChatRequest) -> str:
        key = key_of(request)
        requests[key] = request
        return key

    stage.asking._key = remembered
    ask()
    replies = list(calls(files))
    assert {reply["stage"] for reply in replies} == {stage.asking.stage}
    assert {reply["key"] for reply in replies} == requests.keys()
    whole = [reply for reply in replies if reply["finish"] == "stop"]
    assert len(whole) >= WHOLE * len(replies)
    for reply in whole:
        found = json.loads(reply["text"], strict=False)
        jsonschema.validate(found, json.loads(requests[reply["key"]].schema))
    used = run.report["llm"]
    assert used["calls"] == len(replies)
    assert sum(used["models"].values()) == len(replies)
    tokens = sum(r["prompt_tokens"] + r["completion_tokens"] for r in replies)
    assert used["total"] == tokens > 0


def buffers_of(config: Config, chats: str) -> list[Buffer]:
    """What the stages fill, in this process."""
    memory, users = config.memory, dict[str, list[Message]]()
    with Path(chats).open("rb") as file:
        for row in parse_file(file, chats):
            assert isinstance(row, Message)
            users.setdefault(row.user_id, []).append(row)
    histories = [ordered_history(messages) for messages in users.values()]
    segmented = factory.segmentation(memory)(factory.compression(memory)(histories))
    return [b for b in factory.buffering(memory)(segmented) if b.segments]


def check_run(config: Config, chats: str) -> None:
    """A backfill and a sleep: every message ends in one state, and every call is counted."""
    filled = backfill(config, BackfillRequest((chats,), progress=False))
    messages = filled.report["messages"]
    bad = sum(messages["quarantined"].values())
    assert messages["read"] > 50
    assert messages["read"] == (
        messages["stored"] + messages["no_facts"] + messages["duplicate"] + bad
    )
    assert bad <= QUARANTINED * messages["read"]
    assert filled.report["entries"] > 3
    generator: Any = factory.extraction(config.memory).generator
    buffers = buffers_of(config, chats)
    check_replies(config, filled, generator, lambda: generator.generate(buffers))
    planned = sleep(config, SleepRequest(progress=False, dry_run=True))
    consolidation = factory.consolidation(config.memory)
    updater: Any = consolidation.updater
    (shard,) = MemoryStore.open(config.memory.store).shards
    rows = shard.entries.to_arrow()
    check_replies(config, planned, updater, lambda: list(consolidation.of_rows(rows)))
    slept = apply_planned(config, planned.id)
    assert slept.report["applied"]
    assert slept.report["entries"] == filled.report["entries"]
    assert slept.report["llm"] == planned.report["llm"]


def engines() -> set[psutil.Process]:
    """The processes of all engines on this machine."""
    return {p for p in psutil.process_iter() if p.name().startswith("VLLM")}


def engines_of(name: str) -> list[psutil.Process]:
    """Those of the engine that a process with this title has started."""
    return [p for p in engines() if any(name in " ".join(q.cmdline()) for q in p.parents())]


def request(words: str, schema: str = "") -> ChatRequest:
    return ChatRequest(({"role": "user", "content": words},), schema, 64)


def asked(chat: ServedChat, *requests: ChatRequest) -> list[Reply | Exception]:
    async def outcome(request: ChatRequest) -> Reply | Exception:
        try:
            return await chat.complete(request)
        except (TooLong, Rejected, LightMemError) as error:
            return error

    return together(map(outcome, requests))


def test_through_vllm_on_the_actors_of_a_pool(cluster, configured, chats, tiny_model, engine):
    before = engines()
    options = {"model": tiny_model, "max_model_len": CONTEXT, "engine": engine}
    check_run(configured({"use": "vllm", "options": options}), chats)
    _wait(lambda: engines() <= before)  # none outlives its run


def test_through_a_handle_of_the_summarizer_on_serve(served, configured, chats):
    check_run(configured({"use": "serve", "options": {"model": "tiny"}}), chats)


def test_through_the_summarizer_on_serve_by_http(served, configured, chats):
    options = {"model": "tiny", "base_url": f"{served}/llm/v1"}
    check_run(configured({"use": "openai", "options": options}), chats)


def test_through_the_server_of_vllm_by_http(api_server, cluster, configured, chats):
    options = {"model": "tiny", "base_url": f"{api_server}/v1"}
    check_run(configured({"use": "openai", "options": options}), chats)


def test_one_yaml_serves_searches_and_clients_of_openai(served, store):
    client = OpenAI(base_url=f"{served}/llm/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["tiny"]
    form = {"name": "r", "strict": True, "schema": json.loads(summarize.schema(8))}
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "1 Ada: I moved to Porto."}],
        max_tokens=1024,
        response_format={"type": "json_schema", "json_schema": form},
    )
    found = json.loads(answer.choices[0].message.content or "", strict=False)
    jsonschema.validate(found, form["schema"])
    ring = KeyRing(MemoryStore.open(StoreConfig(uri=store)).database)
    _, key = ring.create(NewKey(user="ada"))
    request = urllib.request.Request(
        f"{served}/search",
        json.dumps({"query": "Porto"}).encode(),
        {"content-type": "application/json", "X-API-Key": key},
    )
    with urllib.request.urlopen(request, timeout=30) as found:
        assert json.load(found)["results"]
    chat = OpenAI(base_url=f"{served}/v1", api_key=key)
    asked: Any = [{"role": "user", "content": "Where is Porto?"}]
    assert chat.chat.completions.create(model="tiny", messages=asked, max_tokens=8).choices


def test_a_handle_says_what_does_not_fit(served):
    long, refused, good = asked(
        ServedChat(model="tiny"),
        request("Porto. " * 5_000),
        request("Porto", '{"type": "nothing"}'),
        request("Porto"),
    )
    assert type(long) is TooLong
    assert "Traceback" not in str(long)
    assert type(refused) is Rejected
    assert isinstance(good, Reply)


def test_a_deployment_that_is_not_there_is_a_mistake_of_the_configuration(served):
    (error,) = asked(ServedChat(model="tiny", app="nowhere"), request("Porto"))
    assert isinstance(error, ConfigError)
    assert "serve deploy" in str(error)


def test_a_replica_whose_engine_dies_is_replaced_and_its_calls_wait(served):
    chat = ServedChat(model="tiny", pause_s=0.5)
    (before,) = asked(chat, request("Porto"))
    for process in engines_of("Summarizer"):
        process.kill()
    replies = asked(chat, *(request("Porto") for _ in range(8)))
    assert {type(reply) for reply in (before, *replies)} == {Reply}
