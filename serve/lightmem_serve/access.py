"""Who asks: from the key of a request to a `Caller`, who knows whose memories it may name."""

import hmac
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Annotated
from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from fastapi import Depends, Request
from starlette.datastructures import Headers

from lightmem_core.online.keys import SCOPES, Key, KeyRing, Scope
from lightmem_core.online.tenants import prefix_of, public_user, stored_user
from lightmem_core.types import Entry
from lightmem_serve.errors import NO_MEMORY, refused

SCHEMES = ("bearer", "token")
MINUTE = 60.0
CHALLENGE = {"WWW-Authenticate": "Bearer"}
NO_OWNER = "At least one identifier (user_id, agent_id, run_id) is required."


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, in a tenant. `user_id` is the store's id of the one user that a key opens, "" if
    it opens all of the tenant. Admin may what read and write may."""

    tenant: str = ""
    user_id: str = ""
    scopes: tuple[Scope, ...] = SCOPES
    key_id: str = ""

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes

    def owner(
        self, user_id: str | None, agent_id: str | None = None, run_id: str | None = None
    ) -> str:
        """The store's id of whose memories are meant. Without a user they are the agent's, or else
        the run's; a key of one user means that user. Refuse another one's."""
        if self.user_id:
            if user_id and self._stored(user_id) != self.user_id:
                raise refused(403, "this key does not open the memories of that user")
            return self.user_id
        if not (user_id or agent_id or run_id):
            raise refused(400, NO_OWNER)
        return self._stored(user_id, agent_id, run_id)

    def owns(self, stored: str) -> bool:
        mine = public_user(self.tenant, stored) is not None
        return mine and self.user_id in ("", stored)

    def own(self, entry: Entry | None) -> Entry:
        """The entry, if it is this caller's. Else it is as if there were none."""
        if entry is None or not self.owns(entry.user_id):
            raise refused(404, NO_MEMORY)
        return entry

    def shown(self, stored: str) -> str | None:
        """A user's id as the tenant knows it, None for what belongs to an agent or a run."""
        return public_user(self.tenant, stored) or None

    @property
    def prefix(self) -> str:
        return prefix_of(self.tenant)

    def _stored(self, user_id: str | None, agent: str | None = "", run: str | None = "") -> str:
        try:
            return stored_user(self.tenant, user_id or "", agent or "", run or "")
        except ValueError as error:
            raise refused(422, str(error)) from error


@dataclass(slots=True)
class Bucket:
    """Requests that a key may make: `rate` a second, and at most `room` at once."""

    room: float
    rate: float
    left: float
    at: float

    def take(self, now: float) -> float:
        """Take one; return 0, or in how many seconds there will be one."""
        self.left = min(self.room, self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left < 1:
            return (1 - self.left) / self.rate
        self.left -= 1
        return 0.0


@dataclass(slots=True)
class Access:
    """Finds out who asks. Without a ring of keys everybody on this machine may do anything."""

    ring: KeyRing | None
    per_minute: int
    clock: Callable[[], float] = time.monotonic
    buckets: dict[str, Bucket] = field(default_factory=dict)

    async def caller(self, headers: Headers, client: str | None) -> Caller:
        """Raise HTTPException: 401 without a valid key, 429 if it was used too often."""
        if self.ring is None:
            _refuse_remote(headers, client)
            return Caller()
        token = _token(headers)
        if older_s := self.ring.due(token):
            await run_sync(self.ring.refresh, older_s)
        key = self.ring.find(token) if token else None
        if key is None:
            raise refused(401, "give a valid key as X-API-Key or Authorization: Bearer", CHALLENGE)
        self._count(key)
        return Caller(key.tenant, key.user_id, key.scopes, key.id)

    def _count(self, key: Key) -> None:
        room = float(key.per_minute or self.per_minute)
        now = self.clock()
        bucket = self.buckets.get(key.id)
        if bucket is None or bucket.room != room:
            bucket = self.buckets[key.id] = Bucket(room, room / MINUTE, room, now)
        if wait := bucket.take(now):
            header = {"Retry-After": str(int(wait) + 1)}
            raise refused(429, f"this key may make {room:.0f} requests a minute", header)


def _token(headers: Headers) -> str:
    """The one key of a request; two different ones are none."""
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    bearer = rest.strip() if scheme.lower() in SCHEMES else ""
    own = headers.get("x-api-key", "").strip()
    if own and bearer and not hmac.compare_digest(own.encode(), bearer.encode()):
        return ""
    return own or bearer


def _refuse_remote(headers: Headers, client: str | None) -> None:
    """Without keys only this machine is answered: no other one, nothing that a proxy hands on, and
    no page of another site that the browser of this machine shows."""
    host = urlsplit(f"//{headers.get('host', '')}").hostname
    origin = headers.get("origin")
    page = urlsplit(origin).hostname if origin else "localhost"
    forwarded = "forwarded" in headers or "x-forwarded-for" in headers
    if forwarded or not all(map(is_loopback, (client, host, page))):
        raise refused(403, "this server has no keys and answers its own machine only")


def is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return host is not None and ip_address(host).is_loopback
    except ValueError:
        return False


async def current_caller(request: Request) -> Caller:
    """The caller that the guard in front of all routes has found. Like all that routes depend on it
    is awaited: a plain function would be called in another thread, and be waited for."""
    return request.state.caller


Asking = Annotated[Caller, Depends(current_caller)]


def needs(scope: Scope) -> Callable[[Caller], Awaitable[None]]:
    """A dependency of routes that only keys of this scope open."""

    async def check(caller: Asking) -> None:
        if not caller.may(scope):
            raise refused(403, f"this needs a key with the scope {scope}")

    return check
