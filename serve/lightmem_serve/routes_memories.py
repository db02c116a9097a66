"""mem0's routes of memories: add, list, get, change, delete, and what a memory was."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request

from lightmem_core.config import LimitsConfig
from lightmem_core.metadata import EXPIRATION, parsed
from lightmem_core.online.service import Accepted, Incoming
from lightmem_core.types import Entry
from lightmem_serve.access import NO_OWNER, Asking, Caller, needs
from lightmem_serve.backend import Server, Serving
from lightmem_serve.errors import documented, refused, told
from lightmem_serve.guard import allow
from lightmem_serve.models import (
    Added,
    AddResponse,
    Done,
    Erased,
    Event,
    MemoriesResponse,
    Memory,
    UpdateResponse,
)
from lightmem_serve.results import added_of, events, memory_of, written_of
from lightmem_serve.schemas import (
    AddRequest,
    Id,
    Metadata,
    Owned,
    UpdateRequest,
    metadata_text,
)
from lightmem_serve.scoping import narrowed
from lightmem_serve.users import stored_users

PAGE = 1_000
router = APIRouter(prefix="/memories", tags=["memories"])
reads, writes, rules = (Depends(needs(scope)) for scope in ("read", "write", "admin"))
MemoryId = Annotated[str, Path(min_length=1, max_length=64)]


async def owned(
    user_id: Id | None = None, agent_id: Id | None = None, run_id: Id | None = None
) -> Owned:
    """Whose memories a query string means."""
    return Owned(user_id=user_id, agent_id=agent_id, run_id=run_id)


Whose = Annotated[Owned, Depends(owned)]


@router.post("", dependencies=[writes], responses=documented())
async def add_memories(
    asked: AddRequest,
    request: Request,
    caller: Asking,
    server: Serving,
    idempotency_key: Annotated[str | None, Header(max_length=256)] = None,
) -> AddResponse:
    """Remember messages. They are durable when this answers, and searches find them from then on.
    To send the same messages again stores nothing twice: those that name their time ever, those
    with the same Idempotency-Key ever, others for as long as the configuration says."""
    owner = caller.owner(asked.user_id, asked.agent_id, asked.run_id)
    if not asked.async_mode:
        allow(request, server.config.limits.work_seconds)
    with told():
        messages = asked.incoming(idempotency_key or "")
        check_limits(messages, server.config.limits)
        accepted = await server.writer.add(owner, asked.session, messages)
        for outcome in accepted:
            server.metrics.messages.labels(outcome.state).inc()
        if asked.async_mode:
            pairs = zip(accepted, messages, strict=True)
            return AddResponse(results=[added_of(*pair) for pair in pairs])
        await server.writer.flush(owner)
        return AddResponse(results=await _written(server, owner, accepted))


@router.get("", dependencies=[reads], responses=documented())
async def list_memories(
    whose: Whose,
    caller: Asking,
    server: Serving,
    top_k: Annotated[int | None, Query(ge=1, le=1_000)] = None,
    limit: Annotated[int | None, Query(ge=1, le=1_000)] = None,
    after: Annotated[str, Query(max_length=64)] = "",
    show_expired: bool = False,
) -> MemoriesResponse:
    """The memories of a user, newest first. Without a user, an agent or a run: of everyone, user by
    user, which needs a key with the scope admin."""
    size = top_k or limit or 100
    named = whose.user_id or whose.agent_id or whose.run_id or caller.user_id
    if not named:
        found = await _everyones(server, caller, size + 1, after, show_expired)
    else:
        owner = caller.owner(whose.user_id, whose.agent_id, whose.run_id)
        with told():
            wanted = narrowed(whose)
            found = await server.reader.list(owner, size + 1, after, wanted, show_expired)
    results = [memory_of(entry, caller) for entry in found[:size]]
    return MemoriesResponse(results=results, next=results[-1].id if len(found) > size else None)


@router.get("/{memory_id}", dependencies=[reads], responses=documented(404))
async def get_memory(memory_id: MemoryId, caller: Asking, server: Serving) -> Memory:
    """A memory by its id, or by that of a message: the first one that came of it."""
    return memory_of(await _entry(server, caller, memory_id), caller)


@router.put("/{memory_id}", dependencies=[writes], responses=documented(404, 409))
async def update_memory(
    memory_id: MemoryId, asked: UpdateRequest, caller: Asking, server: Serving
) -> UpdateResponse:
    """Change a memory. What it was stays in its history; a new text is found by what it says. The
    id of a message of which several came is refused, and they are named."""
    entry = await _entry(server, caller, memory_id)
    with told():
        said = _metadata(asked, entry)
        text = asked.text or asked.data
        changed = await server.writer.update(entry.user_id, memory_id, text, said)
    memory = memory_of(changed, caller)
    return UpdateResponse(message="Memory updated successfully!", memory=memory)


@router.delete("/{memory_id}", dependencies=[writes], responses=documented(404, 409))
async def delete_memory(memory_id: MemoryId, caller: Asking, server: Serving) -> Done:
    """Hide a memory from every search and list; its history stays. The id of a message means the
    one that came of it, or of several those that came of it alone. To erase a user: DELETE
    /memories?user_id="""
    entry = await _entry(server, caller, memory_id)
    with told():
        await server.writer.delete(entry.user_id, memory_id)
    return Done(message="Memory deleted successfully")


@router.get("/{memory_id}/history", dependencies=[reads], responses=documented(404))
async def memory_history(memory_id: MemoryId, caller: Asking, server: Serving) -> list[Event]:
    """What happened to a memory, oldest first."""
    entry = await _entry(server, caller, memory_id)
    with told():
        return events(await server.reader.history(entry.id, entry.user_id))


@router.delete("", dependencies=[rules], responses=documented())
async def delete_all(whose: Whose, caller: Asking, server: Serving) -> Erased:
    """Erase all of a user, physically: no file of the store holds the user any more. With an agent
    or a run beside the user, delete those memories only, and keep their history."""
    if not (whose.user_id or whose.agent_id or whose.run_id):
        raise refused(400, NO_OWNER)
    owner = caller.owner(whose.user_id, whose.agent_id, whose.run_id)
    named = (whose.user_id or caller.user_id, whose.agent_id, whose.run_id)
    with told():
        if sum(map(bool, named)) > 1:
            counts = {"deleted": await _deleted(server, owner, whose)}
        else:
            async with server.quiet:
                counts = await server.writer.erase(owner)
    return Erased(message="All relevant memories deleted", counts=counts)


async def _deleted(server: Server, owner: str, whose: Owned) -> int:
    """Delete what an agent or a run has of a user, a page at a time."""
    deleted = 0
    while page := await server.reader.list(owner, PAGE, "", narrowed(whose), True):
        for entry in page:
            await server.writer.delete(owner, entry.id)
        deleted += len(page)
    return deleted


async def _entry(server: Server, caller: Caller, memory_id: str) -> Entry:
    with told():
        return caller.own(await server.reader.get(memory_id, caller.user_id or None))


async def _written(server: Server, owner: str, accepted: Sequence[Accepted]) -> list[Added]:
    """The memories that came of these messages, and those of them that wait."""
    new = {outcome.message_id for outcome in accepted if outcome.state == "accepted"}
    ids = [outcome.message_id for outcome in accepted]
    return [written_of(entry, new) for entry in await server.reader.written(owner, ids)]


async def _everyones(
    server: Server, caller: Caller, size: int, after: str, show_expired: bool
) -> list[Entry]:
    """User by user, those behind the memory `after`."""
    if not caller.may("admin"):
        raise refused(400, NO_OWNER)
    first = (await _entry(server, caller, after)).user_id if after else ""
    found: list[Entry] = []
    with told():
        if first:
            found += await server.reader.list(first, size, after, None, show_expired)
        async for owner in stored_users(server.reader, caller, first):
            if len(found) >= size:
                break
            more = size - len(found)
            found += await server.reader.list(owner, more, "", None, show_expired)
    return found


def _metadata(asked: UpdateRequest, entry: Entry) -> str | None:
    """The new metadata, None if it stays. What is not named of the two is kept."""
    given: Metadata = dict(parsed(entry.metadata)) if asked.metadata is None else asked.metadata
    if not asked.model_fields_set & {"metadata", EXPIRATION}:
        return None
    kept = parsed(entry.metadata).get(EXPIRATION)
    given = {key: value for key, value in given.items() if key != EXPIRATION}
    if EXPIRATION not in asked.model_fields_set and kept is not None:
        given[EXPIRATION] = kept
    return metadata_text(given, asked.expiration_date)


def check_limits(messages: list[Incoming], limits: LimitsConfig) -> None:
    if len(messages) > limits.messages:
        raise refused(422, f"a request has at most {limits.messages:,} messages")
    longest: Any = max(len(m.content) + len(m.metadata) for m in messages)
    if longest > limits.characters:
        raise refused(422, f"a message has at most {limits.characters:,} characters")
