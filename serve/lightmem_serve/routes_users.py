"""What is done for all that a user has: sleep, flush; users, runs and the reset of a tenant."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query

from lightmem_core.online.tenants import LONGEST_ID
from lightmem_serve.access import Asking, needs
from lightmem_serve.backend import Serving
from lightmem_serve.errors import documented, refused, told
from lightmem_serve.models import Erased, Flushed, RunsResponse, Slept, UsersResponse
from lightmem_serve.results import run_of
from lightmem_serve.users import stored_users

router = APIRouter(tags=["users"])
writes, rules = (Depends(needs(scope)) for scope in ("write", "admin"))
UserId = Annotated[str, Path(min_length=1, max_length=LONGEST_ID)]


@router.get("/users", dependencies=[rules], responses=documented())
async def list_users(
    caller: Asking,
    server: Serving,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    after: Annotated[str, Query(max_length=LONGEST_ID)] = "",
) -> UsersResponse:
    """Users that have anything."""
    found: list[str] = []
    with told():
        behind = caller.owner(after) if after else ""
        async for stored in stored_users(server.reader, caller, behind):
            if shown := caller.shown(stored):
                found.append(shown)
            if len(found) > limit:
                break
    return UsersResponse(results=found[:limit], next=found[limit - 1] if found[limit:] else None)


@router.post("/users/{user_id:path}/sleep", dependencies=[writes], responses=documented(404))
async def sleep(user_id: UserId, caller: Asking, server: Serving) -> Slept:
    """Consolidate a user's memories: what was said again is merged, what has changed superseded.
    `lightmem undo` takes it back."""
    owner = caller.owner(user_id)
    with told():
        return Slept(decisions=await server.writer.sleep(owner))


@router.post("/users/{user_id:path}/flush", dependencies=[writes], responses=documented(404))
async def flush(user_id: UserId, caller: Asking, server: Serving) -> Flushed:
    """Extract now what waits of a user."""
    owner = caller.owner(user_id)
    with told():
        return Flushed(entries=await server.writer.flush(owner))


@router.post("/reset", dependencies=[rules], responses=documented())
async def reset(caller: Asking, server: Serving, confirm: Literal["all"] | None = None) -> Erased:
    """Erase all users of the tenant, physically. Only with `confirm=all`."""
    if confirm is None:
        raise refused(400, "this erases all users of the tenant: say so with ?confirm=all")
    counts: dict[str, int] = {"users": 0}
    with told():
        owners = [stored async for stored in stored_users(server.reader, caller)]
        for owner in owners:
            async with server.quiet:
                gone = await server.writer.erase(owner)
            counts["users"] += 1
            for table, rows in gone.items():
                counts[table] = counts.get(table, 0) + rows
    return Erased(message="All memories reset", counts=counts)


@router.get("/runs", dependencies=[rules], responses=documented())
async def list_runs(
    caller: Asking,
    server: Serving,
    kind: Annotated[str, Query(max_length=64)] = "",
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    after: Annotated[str, Query(max_length=100)] = "",
) -> RunsResponse:
    """Runs on the store, newest first, of a kind (such as backfill or sleep) or of all. They are of
    all tenants: only for a key of the default tenant."""
    if caller.tenant or caller.user_id:
        raise refused(403, "runs are shown to keys of the default tenant that open all users")
    with told():
        found = await server.reader.runs(kind, limit + 1, after)
    results = [run_of(run) for run in found[:limit]]
    return RunsResponse(results=results, next=results[-1].id if len(found) > limit else None)
