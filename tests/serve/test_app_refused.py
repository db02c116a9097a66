"""What Ray Serve is not let do with the server, and what a server does no more."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import serve
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RaySystemError
from ray.serve.schema import ApplicationStatus

from lightmem_core import load_config
from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.errors import StoreError
from lightmem_core.long_term import reembed
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_pipelines.cluster import ray_session
from lightmem_serve.app import AppArgs, build_app
from lightmem_serve.deployments import Handles

pytestmark = pytest.mark.ray
FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"


@pytest.fixture
def refusal(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Deploy the server, listening on an address, and return what Serve says of it."""

    def refused(host: str, serving: str, **api: Any) -> str:
        path = tmp_path / "serve.yaml"
        path.write_text(f"{FAKES.read_text()}\nserve: {serving}\n")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        serve.start(http_options={"host": host, "port": port})
        app = build_app(AppArgs(config=str(path), store=str(tmp_path / "store")))
        if api:
            app = app._bound_deployment.options(**api).bind(*app._bound_deployment.init_args)
        with pytest.raises(RuntimeError):
            serve.run(app)
        found = serve.status().applications["default"]
        assert found.status == ApplicationStatus.DEPLOY_FAILED
        return "\n".join(part.message for part in found.deployments.values())

    with ray_session(load_config(FAKES).pipelines.model_copy(update={"num_cpus": 2})):
        yield refused
        serve.shutdown()


def test_without_keys_no_other_machine_is_answered(refusal):
    said = refusal("0.0.0.0", "{auth: off, cpus: 0.2}")
    assert "answers its own machine only, but Serve listens on 0.0.0.0" in said


def test_the_http_part_is_alone(refusal):
    said = refusal("127.0.0.1", "{auth: off, cpus: 0.2}", num_replicas=2)
    assert "which must be alone" in said


def test_a_server_of_the_old_vectors_refuses_to_read(start):
    with start(deployed=True) as running:
        asked = {"user_id": "ada", "query": "cats"}
        running.done("POST", "/search", asked)
        store = MemoryStore.open(running.config.memory.store)
        reembed.switch(store, reembed.next_generation(store, VectorModel.of(HashEmbedder(24))))
        end = time.monotonic() + 60
        while (reply := running.call("POST", "/search", asked)).status == 200:
            assert time.monotonic() < end, "it reads on"
            time.sleep(0.5)
        assert (reply.status, "cannot do this now" in str(reply.body)) == (503, True)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "error",
    [NodeDiedError("gone"), ObjectLostError("00" * 14, "", ""), RayActorError(),
     RaySystemError("gone")],
)  # fmt: skip
async def test_what_ray_lost_can_be_asked_for_again(error):
    class Lost:
        class search:
            @staticmethod
            async def remote(*args: Any) -> Any:
                raise error

    with pytest.raises(StoreError, match="being replaced"):
        await Handles(Lost()).search("x")  # pyright: ignore[reportArgumentType]
