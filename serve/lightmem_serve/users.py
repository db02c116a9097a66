"""The users of a tenant, in the order of their ids."""

from collections.abc import AsyncIterator

from lightmem_core.online.tenants import MARK
from lightmem_serve.access import Caller
from lightmem_serve.backend import Reader

PAGE = 1_000
LAST = "\U0010ffff"


async def stored_users(reader: Reader, caller: Caller, after: str = "") -> AsyncIterator[str]:
    """The store's ids of all that the caller may name, those behind `after`; with those of agents
    and runs."""
    if caller.user_id:
        yield caller.user_id
        return
    for prefix, behind in _parts(caller, after):
        async for stored in _behind(reader, prefix, behind):
            if caller.owns(stored) and (prefix or not stored.startswith(MARK)):
                yield stored


def _parts(caller: Caller, after: str) -> list[tuple[str, str]]:
    """The prefixes of the ids, and behind which each begins: of the default tenant the users come
    first, then its agents and runs."""
    if caller.tenant:
        return [(caller.prefix, after)]
    others = f"{MARK}/"
    return [(others, after)] if after.startswith(others) else [("", after), (others, "")]


async def _behind(reader: Reader, prefix: str, after: str) -> AsyncIterator[str]:
    """Without a prefix the ids of other tenants, which stand together, are not read through."""
    while page := await reader.users(PAGE, after, prefix):
        for stored in page:
            if not prefix and stored.startswith(MARK):
                break
            yield stored
        others = not prefix and any(stored.startswith(MARK) for stored in page)
        after = max(f"{MARK}{LAST}", after) if others else page[-1]
