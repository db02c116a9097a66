"""The users of a tenant, in the order of their ids."""

from collections.abc import AsyncIterator
from typing import Any

from lightmem_core.online.tenants import MARK
from lightmem_serve.access import Caller

PAGE = 1_000
LAST = "\U0010ffff"


async def stored_users(reader: Any, caller: Caller, after: str = "") -> AsyncIterator[str]:
    """The store's ids of all that the caller may name, those behind `after`; with those of agents
    and runs."""
    if caller.user_id:
        yield caller.user_id
        return
    for prefix in (caller.prefix,) if caller.tenant else ("", f"{MARK}/"):
        async for stored in _behind(reader, prefix, after):
            if caller.owns(stored) and (prefix or not stored.startswith(MARK)):
                yield stored


async def _behind(reader: Any, prefix: str, after: str) -> AsyncIterator[str]:
    """Without a prefix the ids of other tenants, which stand together, are not read through."""
    while page := await reader.users(PAGE, after, prefix):
        for stored in page:
            if not prefix and stored.startswith(MARK):
                break
            yield stored
        others = not prefix and any(stored.startswith(MARK) for stored in page)
        after = max(f"{MARK}{LAST}", after) if others else page[-1]
