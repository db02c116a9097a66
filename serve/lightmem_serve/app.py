"""The HTTP application: `serve run lightmem_serve.app:build_app config=lightmem.yaml`."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.handle import DeploymentHandle

from lightmem_core import factory, load_config
from lightmem_core.config import Config
from lightmem_core.long_term.retrieve import Hit, Query
from lightmem_core.long_term.store import MemoryStore
from lightmem_serve.schemas import Health, Memory, SearchRequest, SearchResponse

http = FastAPI(title="LightMem", description="Search in the memories of a user.")


@serve.deployment
class Retriever:
    """The retrieval of the batch side behind a queue: requests that arrive together are embedded
    together."""

    def __init__(self, config: Config):
        self.retrieval = factory.retrieval(config.memory)
        batched: Any = self.search
        batched.set_max_batch_size(config.serve.max_batch_size)
        batched.set_batch_wait_timeout_s(config.serve.batch_wait_ms / 1000)

    @serve.batch
    async def search(self, queries: list[Query]) -> list[list[Hit]]:
        return self.retrieval(queries)

    async def health(self) -> Health:
        """Ready means that a search can be answered: the model is run and the store is read."""
        self.retrieval([Query(user_id="", text="ready")])
        store = self.retrieval.store
        return Health(status="ok", embedder=store.model.name, shards=store.shard_count)


@serve.deployment
@serve.ingress(http)
class Api:
    def __init__(self, retriever: DeploymentHandle):
        self.retriever = retriever

    @http.post("/search")
    async def search(self, request: SearchRequest) -> SearchResponse:
        hits = await self.retriever.search.remote(request.to_query())
        return SearchResponse(results=[Memory.of(hit) for hit in hits])

    @http.get("/health")
    async def health(self) -> Health:
        return await self.retriever.health.remote()


class AppArgs(BaseModel):
    """Arguments on Serve's command line. Without `config` the built-in configuration is used."""

    model_config = ConfigDict(extra="forbid")

    config: str | None = None
    store: str | None = None


def build_app(args: AppArgs) -> serve.Application:
    """Raise ConfigError or StoreError before anything is deployed."""
    config = load_config(args.config, uri=args.store)
    factory.check(config.memory)
    MemoryStore.open(config.memory.store)
    retriever = Retriever.options(
        num_replicas=config.serve.replicas, ray_actor_options={"num_cpus": config.serve.cpus}
    )
    return Api.options(ray_actor_options={"num_cpus": 0.1}).bind(retriever.bind(config))
