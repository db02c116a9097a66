"""The writer behind Ray Serve: what it has acknowledged outlives it."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from lightmem_core import load_config
from lightmem_core.config import Config
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.online.inbox import Inbox
from lightmem_core.online.service import Incoming
from lightmem_pipelines.cluster import ray_session
from lightmem_serve.deployments import writer_of

pytestmark = pytest.mark.ray

FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = load_config(FAKES, uri=str(tmp_path_factory.mktemp("write") / "store"))
    pipelines = config.pipelines.model_copy(update={"num_cpus": 2})
    return config.model_copy(update={"pipelines": pipelines})


@pytest.fixture(scope="module")
def handle(config: Config) -> Iterator[DeploymentHandle]:
    with ray_session(config.pipelines):
        serve.start(http_options={"host": None})  # pyright: ignore[reportArgumentType]
        yield serve.run(writer_of(config))
        serve.shutdown()


def of_user(number: int) -> list[Incoming]:
    return [Incoming("user", f"{number} says {at}") for at in range(2)]


def kill_writer(config: Config) -> None:
    """As the machine would. The lease tells the process."""
    leases = MemoryStore.open(config.memory.store).database.open_table("leases")
    (holder,) = [
        row["holder"]
        for row in leases.search().to_list()
        if row["id"] == "the online writer" and row["until"] > 0
    ]
    os.kill(int(holder.split("/")[1]), signal.SIGKILL)


def answered(call, patience_s: float = 120):
    """What a call gives once a replica is there to answer it."""
    end = time.monotonic() + patience_s
    while True:
        try:
            return call().result(timeout_s=60)
        except (RayError, TimeoutError):
            assert time.monotonic() < end
            time.sleep(0.2)


def test_what_was_acknowledged_outlives_a_killed_replica(config: Config, handle: DeploymentHandle):
    answers = [handle.add.remote(f"user {n}", "s1", of_user(n)) for n in range(20)]
    taken = [answer.result(timeout_s=60) for answer in answers]
    assert {a.state for one in taken for a in one} == {"accepted"}
    store = MemoryStore.open(config.memory.store)
    table = store.database.open_table("inbox_0000")
    assert len(table.list_versions()) < 20  # several requests share a commit
    kill_writer(config)
    again = answered(lambda: handle.add.remote("user 1", "s1", of_user(1)))
    assert [(a.message_id, a.state) for a in again] == [
        (a.message_id, "duplicate") for a in taken[1]
    ]
    assert answered(lambda: handle.flush.remote("user 1")) == 2
    entries = store.shards[0].entries_of(["user 1"])
    assert [e.text for e in entries] == ["1 says 0", "1 says 1"]
    assert len(Inbox.of(store, "user 2").everything()) == 38
    with pytest.raises(ValueError, match="content holds no text"):
        handle.add.remote("ada", "s1", [Incoming("user", " ")]).result(timeout_s=60)
    with pytest.raises(KeyError):
        handle.delete.remote("user 2", entries[0].id).result(timeout_s=60)
    assert handle.status.remote().result(timeout_s=60).waiting == 38
