"""From what a request names to whose memories are asked, and which of them are wanted."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lightmem_core.long_term.retrieve import Query
from lightmem_core.online.filters import All, Either, Neither, Test, Tree, parse, user_of
from lightmem_core.online.tenants import stored_user
from lightmem_serve.access import Caller
from lightmem_serve.errors import refused, told
from lightmem_serve.schemas import ContextRequest, Owned, SearchRequest, milliseconds

Parsed = All | Either | Neither | Test


@dataclass(frozen=True, slots=True)
class Scoped:
    """The store's id of whose memories are meant, and a filter that may only narrow them."""

    owner: str
    wanted: Tree | None


def scoped(caller: Caller, asked: Owned, filters: dict[str, Any] | None) -> Scoped:
    """A user may be named beside the filters or in them, by a condition that must hold."""
    if not filters:
        return Scoped(caller.owner(asked.user_id, asked.agent_id, asked.run_id), None)
    with told():
        wanted = parse(filters, lambda user: stored_user(caller.tenant, user))
    named = user_of(wanted)
    if asked.user_id is None and named is not None and not caller.user_id:
        return Scoped(named, wanted)
    agent = asked.agent_id or _named(filters, "agent_id")
    run = asked.run_id or _named(filters, "run_id")
    return Scoped(caller.owner(asked.user_id, agent, run), wanted)


def query_of(caller: Caller, asked: SearchRequest | ContextRequest) -> Query:
    """Raise HTTPException for whom the caller may not ask about."""
    found = scoped(caller, asked, asked.filters)
    return Query(
        user_id=found.owner,
        text=asked.query,
        limit=asked.wanted,
        since=milliseconds(asked.since),
        until=milliseconds(asked.until),
        as_of=milliseconds(asked.as_of),
        session_id=asked.run_id or "",
        agent_id=asked.agent_id or "",
        wanted=found.wanted,
        threshold=asked.threshold,
        neighbours=asked.neighbours if isinstance(asked, SearchRequest) else 0,
        rerank=asked.rerank,
        show_expired=asked.show_expired,
    )


def narrowed(asked: Owned) -> Tree | None:
    """A filter on the agent and the run that a request names, None if it names neither."""
    named = {"agent_id": asked.agent_id, "run_id": asked.run_id}
    given = {key: value for key, value in named.items() if value}
    return parse(given) if given else None


def _named(filters: dict[str, Any], key: str) -> str | None:
    """The one value that a filter demands for a key."""
    values = set(_demanded(filters, key))
    if len(values) > 1:
        raise refused(400, f"the filter names several {key}s: name one")
    return values.pop() if values else None


def _demanded(filters: dict[str, Any], key: str) -> Iterator[str]:
    for name, value in filters.items():
        if name.upper() == "AND" and isinstance(value, list):
            for part in value:
                yield from _demanded(part, key)
        elif name == key:
            equal = value.get("eq") if isinstance(value, dict) else value
            if isinstance(equal, str) and equal not in ("", "*"):
                yield equal
