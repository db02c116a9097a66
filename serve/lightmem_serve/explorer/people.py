"""The users that a caller may pick from, a page at a time."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from lightmem_core.online.tenants import MARK
from lightmem_serve.access import Caller
from lightmem_serve.users import stored_users

SIZE = 60


@dataclass(frozen=True, slots=True)
class People:
    """Ids as the tenant knows them, in order; `after` is the last of them if there are more."""

    ids: list[str]
    after: str | None


def may_list(caller: Caller) -> bool:
    """As in the API: a key that only reads is told of nobody."""
    return caller.may("admin") and not caller.user_id


def may_see_runs(caller: Caller) -> bool:
    """Runs are those of all tenants."""
    return may_list(caller) and not caller.tenant


async def people(reader: Any, caller: Caller, after: str, starts: str) -> People:
    """Those behind `after` whose ids begin so."""
    found: list[str] = []
    behind = caller.owner(after) if after else ""
    async for stored in _stored(reader, caller, behind, starts):
        if shown := caller.shown(stored):
            found.append(shown)
        if len(found) > SIZE:
            break
    return People(found[:SIZE], found[SIZE - 1] if found[SIZE:] else None)


async def _stored(reader: Any, caller: Caller, after: str, starts: str) -> AsyncIterator[str]:
    if not starts:
        async for stored in stored_users(reader, caller, after):
            yield stored
        return
    if starts.startswith(MARK):  # no user's id does
        return
    while page := await reader.users(SIZE + 1, after, caller.prefix + starts):
        for stored in page:
            if caller.owns(stored):
                yield stored
        after = page[-1]
