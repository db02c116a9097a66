"""The reader behind Ray Serve answers what it answers without, and says when it reads no more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from lightmem_core.config import (
    Component,
    Config,
    MemoryConfig,
    PipelinesConfig,
    ServeConfig,
    StoreConfig,
)
from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.errors import ConfigError, StoreError
from lightmem_core.long_term import reembed
from lightmem_core.long_term.retrieve import Query
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.online.filters import parse
from lightmem_core.online.inbox import Inbox, Waiting
from lightmem_core.online.reader import OnlineReader
from lightmem_pipelines.cluster import ray_session
from lightmem_serve.deployments import Handles, readers_of
from lightmem_serve.reading import AsyncReader

pytestmark = pytest.mark.ray

SAID = ("we adopted a beagle", "the roof leaks", "tickets to Lisbon", "my sister paints")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Of a store in which the same waits of eight users."""
    store = StoreConfig(uri=str(tmp_path_factory.mktemp("read") / "store"))
    embedder = Component(use="hash", options={"dim": 16})
    memory = MemoryConfig(tokenizer=Component(use="words"), embedder=embedder, store=store)
    made = MemoryStore.create(store, VectorModel.of(HashEmbedder(16)))
    rows = [
        Waiting(f"{user}{at}", f"user{user}", "s1", at, "user", text, at, "", "", "", "")
        for user in range(8)
        for at, text in enumerate(SAID)
    ]
    Inbox.of(made, "user0").accept(rows)
    pipelines, serving = PipelinesConfig(num_cpus=2), ServeConfig(replicas=2)
    return Config(memory=memory, pipelines=pipelines, serve=serving)


@pytest.fixture(scope="module")
def handle(config: Config) -> Iterator[DeploymentHandle]:
    with ray_session(config.pipelines):
        serve.start(http_options={"host": None})  # pyright: ignore[reportArgumentType]
        yield serve.run(readers_of(config))
        serve.shutdown()


def test_requests_at_once_are_answered_each_as_alone(config: Config, handle: DeploymentHandle):
    direct = OnlineReader(config.memory)
    queries = [
        Query(f"user{number % 8}", text, 2, wanted=parse({"run_id": "s1"}))
        for number, text in enumerate(SAID * 5)
    ]
    answers = [handle.search.remote(query) for query in queries]
    for query, answer in zip(queries, answers, strict=True):
        (expected,) = direct.search([query])
        assert [(h.entry.id, h.score) for h in answer.result(timeout_s=60).hits] == [
            (h.entry.id, h.score) for h in expected
        ]


def test_everything_else_is_answered_too_and_errors_keep_their_kind(
    config: Config, handle: DeploymentHandle
):
    direct = OnlineReader(config.memory)
    query = Query("user1", "beagle", 9)
    context = handle.context.remote(query, 30).result(timeout_s=60)
    assert context.text == direct.context(query, 30).text
    assert handle.users.remote(3).result(timeout_s=60) == ["user0", "user1", "user2"]
    listed = handle.list.remote("user2", 9).result(timeout_s=60)
    assert [entry.text for entry in listed] == list(reversed(SAID))
    assert handle.get.remote("21", "user2").result(timeout_s=60).text == SAID[1]
    assert handle.get.remote("21", "user3").result(timeout_s=60) is None
    with pytest.raises(KeyError, match="the user has no memory"):
        handle.history.remote("21", "user3").result(timeout_s=60)
    with pytest.raises(ValueError, match="begin with the first page"):
        handle.list.remote("user2", 9, "nothing").result(timeout_s=60)


@pytest.mark.anyio
async def test_the_http_part_is_told_the_error_itself(handle: DeploymentHandle):
    asked = Handles(handle)
    assert (await asked.search(Query("user1", "beagle", 9))).hits
    with pytest.raises(ConfigError, match="names no reranker"):
        await asked.search(Query("user1", "beagle", 9, rerank=True))


@pytest.mark.anyio
async def test_what_is_searched_is_read_while_the_query_waits_for_the_model(
    config: Config, monkeypatch: pytest.MonkeyPatch
):
    reader, read = AsyncReader(config), Event()
    prepare, embed = reader.reader.prepare, reader.reader.embed

    def prepared(user_id: str) -> None:
        prepare(user_id)
        read.set()

    def embedded(queries: Sequence[Query]) -> np.ndarray:
        assert read.wait(30), "nobody reads until the model is done"
        return embed(queries)

    monkeypatch.setattr(reader.reader, "prepare", prepared)
    monkeypatch.setattr(reader.reader, "embed", embedded)
    assert (await reader.search(Query("user1", "beagle"))).hits[0].entry.text == SAID[0]
    with pytest.raises(StoreError, match="half a character"):
        await reader.search(Query("\ud800", "what cannot be read is told"))


@pytest.mark.anyio
async def test_who_waited_for_the_model_is_not_answered_from_a_store_that_was_switched(
    config: Config, monkeypatch: pytest.MonkeyPatch
):
    reader = AsyncReader(config)
    embed = reader.reader.embed

    def switched_meanwhile(queries: Sequence[Query]) -> np.ndarray:
        reader.trouble = "the store was switched"
        return embed(queries)

    monkeypatch.setattr(reader.reader, "embed", switched_meanwhile)
    with pytest.raises(StoreError, match="was switched"):
        await reader.search(Query("user1", "beagle"))


@pytest.mark.anyio
async def test_nothing_is_read_once_the_store_has_other_vectors(config: Config, tmp_path: Path):
    place = StoreConfig(uri=str(tmp_path / "store"))
    store = MemoryStore.create(place, VectorModel.of(HashEmbedder(16)))
    memory = config.memory.model_copy(update={"store": place})
    reader = AsyncReader(config.model_copy(update={"memory": memory}))
    await reader.check_health()
    assert (await reader.search(Query("ada", "beagle"))).hits == []
    reembed.switch(store, reembed.next_generation(store, VectorModel.of(HashEmbedder(24))))
    with pytest.raises(StoreError, match="was switched"):
        await reader.check_health()
    for asked in (reader.search(Query("ada", "beagle")), reader.users(3), reader.get("0" * 32)):
        with pytest.raises(StoreError, match="configure that embedder"):
            await asked
