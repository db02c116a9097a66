"""Search, and the best memories as text for a prompt."""

from fastapi import APIRouter, Depends, Response

from lightmem_serve.access import Asking, needs
from lightmem_serve.backend import Serving, searched
from lightmem_serve.errors import documented, told
from lightmem_serve.models import ContextResponse, SearchResponse
from lightmem_serve.results import found_of
from lightmem_serve.schemas import ContextRequest, SearchRequest
from lightmem_serve.scoping import query_of

router = APIRouter(tags=["search"], dependencies=[Depends(needs("read"))])


@router.post("/search", response_model=SearchResponse, responses=documented())
async def search(asked: SearchRequest, caller: Asking, server: Serving) -> Response:
    """The memories of one user that answer a text, best first. The header Server-Timing says how
    many milliseconds its parts took."""
    found = await searched(server, query_of(caller, asked))
    parts = {"embed": found.embed_s, "rank": found.rank_s}
    timing = ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in parts.items())
    answer = SearchResponse(results=[found_of(hit, caller) for hit in found.hits])
    return Response(
        answer.model_dump_json(),  # as FastAPI would, without checking it again
        media_type="application/json",
        headers={"Server-Timing": timing},
    )


@router.post("/context", responses=documented())
async def context(asked: ContextRequest, caller: Asking, server: Serving) -> ContextResponse:
    """The best memories, with dates and speakers, as text of at most so many tokens."""
    query = query_of(caller, asked)
    with told():
        found = await server.reader.context(query, asked.tokens)
    server.metrics.tokens.inc(found.tokens)
    results = [found_of(hit, caller) for hit in found.hits]
    return ContextResponse(context=found.text, tokens=found.tokens, results=results)
