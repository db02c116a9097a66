"""What stands in front of every route: the request's id, who asks, its size and its time.

Whatever is not public needs a key, also what is mounted later: a route cannot forget it.
"""

import asyncio
import re
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightmem_core.config import LimitsConfig
from lightmem_core.errors import StoreError
from lightmem_serve.access import Access
from lightmem_serve.errors import RETRY_AFTER, answer, log, refused, unable
from lightmem_serve.metrics import Metrics

PUBLIC = frozenset({"/health", "/openapi.json"})
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# One that never closes goes to the end: else each quote in it would be tried as a beginning.
TEXTS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
LONG_WORK = re.compile(
    r"POST (/users/.+/(sleep|flush)|/reset|/v1/chat/completions|/mcp)|DELETE /memories"
)
JOBS = "/jobs"
FORM_BYTES, FORM_SECONDS, FORMS_AT_ONCE = 16_384, 10.0, 32  # of forms that are sent without a key
CHAT = "/v1/chat/completions"
Kind = Literal["key", "chat", "public", "form"]


@dataclass(slots=True)
class Guard:
    """An ASGI application around the routes. Who comes without a key takes no place of those that
    have one: of what is `public` no body is read, but for a little one of `forms`. Nor do chats,
    which wait for a language model."""

    app: ASGIApp
    access: Access
    limits: LimitsConfig
    metrics: Metrics
    public: frozenset[str] = PUBLIC
    forms: frozenset[str] = frozenset()
    in_flight: Counter[Kind] = field(default_factory=Counter)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answered(scope, receive, Answer(send, _request_id(scope)))

    async def _answered(self, scope: Scope, receive: Receive, send: "Answer") -> None:
        started = time.perf_counter()
        kind = self._kind(scope)
        self._entered(kind, 1)
        try:
            await self._limited(kind, scope, receive, send)
        except HTTPException as error:
            await _refuse(error, scope, receive, send)
        except StoreError as error:
            await _refuse(unable(error), scope, receive, send)
        except Exception:  # noqa: BLE001  whatever it is, the client is told of no more
            log.exception("request %s failed", send.request_id)
            await _refuse(_fault(send.request_id), scope, receive, send)
        finally:
            self._entered(kind, -1)
            self.metrics.count(scope, send.status, time.perf_counter() - started)

    def _kind(self, scope: Scope) -> Kind:
        if scope["path"] not in self.public:
            return "chat" if scope["path"] == CHAT else "key"
        return "form" if scope["path"] in self.forms and scope["method"] == "POST" else "public"

    def _entered(self, kind: Kind, by: int) -> None:
        self.in_flight[kind] += by
        self.metrics.in_flight.labels(kind).inc(by)

    async def _limited(self, kind: Kind, scope: Scope, receive: Receive, send: "Answer") -> None:
        apart = {"form": FORMS_AT_ONCE, "chat": self.limits.chats}
        if self.in_flight[kind] > apart.get(kind, self.limits.in_flight):
            raise refused(503, "the server has more requests than it can bear", RETRY_AFTER)
        try:
            async with asyncio.timeout(self._seconds(kind, scope)) as send.limit:
                scope.setdefault("state", {})["limit"] = send.limit
                await self._admitted(kind, scope, receive, send)
        except TimeoutError as error:
            raise refused(504, "not answered in time: what was sent may be stored") from error

    async def _admitted(self, kind: Kind, scope: Scope, receive: Receive, send: "Answer") -> None:
        headers = Headers(scope=scope)
        if kind in ("public", "form"):
            body = await _body(headers, receive, FORM_BYTES) if kind == "form" else b""
            await self.app(scope, Replay(body, receive), send)
            return
        client = scope["client"][0] if scope.get("client") else None
        caller = await self.access.caller(headers, client)
        scope.setdefault("state", {})["caller"] = caller
        job = scope["path"].rstrip("/") == JOBS
        limit = self.limits.job_bytes if job else self.limits.body_bytes
        body = await _body(headers, receive, limit)
        if not job and _depth(body, self.limits.depth) > self.limits.depth:
            raise refused(422, f"nested more than {self.limits.depth} levels deep")
        await self.app(scope, Replay(body, receive), send)

    def _seconds(self, kind: Kind, scope: Scope) -> float:
        if kind == "form":
            return min(FORM_SECONDS, self.limits.seconds)
        long = LONG_WORK.fullmatch(f"{scope['method']} {scope['path']}")
        return self.limits.work_seconds if long else self.limits.seconds


@dataclass(slots=True)
class Answer:
    """Sends an answer with the request's id. Once it has begun, a stream may take its time."""

    send: Send
    request_id: str
    status: int = 0
    limit: asyncio.Timeout | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-ID"] = self.request_id
            if self.limit is not None and self.limit.when() is not None:
                self.limit.reschedule(None)
        await self.send(message)


@dataclass(slots=True)
class Replay:
    """Gives a body that was read before, and then what follows: the end of the connection."""

    body: bytes
    receive: Receive
    given: bool = False

    async def __call__(self) -> Message:
        if self.given:
            return await self.receive()
        self.given = True
        return {"type": "http.request", "body": self.body, "more_body": False}


def allow(request: Request, seconds: float) -> None:
    """Give a request that much time from now on: what it asks for, its path does not tell."""
    request.state.limit.reschedule(asyncio.get_running_loop().time() + seconds)


async def _body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """All of a body. What is too large is not read to its end."""
    told = headers.get("content-length", "")
    parts: list[bytes] = []
    size, more = int(told) if told.isdecimal() else 0, True
    read = 0
    while more:
        if max(size, read) > limit:
            raise refused(413, f"a body has at most {limit:,} bytes")
        message = await receive()
        if message["type"] == "http.disconnect":
            raise refused(400, "the body ended too early")
        parts.append(message.get("body", b""))
        read += len(parts[-1])
        more = message.get("more_body", False)
    if read > limit:
        raise refused(413, f"a body has at most {limit:,} bytes")
    return b"".join(parts)


def _depth(body: bytes, enough: int) -> int:
    """How deep the brackets of a JSON text are nested; exact only where it is more than enough."""
    if body.count(b"[") + body.count(b"{") <= enough:
        return 0
    text = np.frombuffer(TEXTS.sub(b"", body), np.uint8)
    opened = (text == ord("[")) | (text == ord("{"))
    closed = (text == ord("]")) | (text == ord("}"))
    return int(np.cumsum(opened.astype(np.int32) - closed, dtype=np.int32).max(initial=0))


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def _fault(request_id: str) -> HTTPException:
    return refused(500, f"a fault of the server: see its log for {request_id}")


async def _refuse(error: HTTPException, scope: Scope, receive: Receive, send: Answer) -> None:
    """What has begun cannot be taken back: the client sees the answer end too early."""
    if not send.status:
        send.limit = None
        await answer(error.status_code, error.detail, error.headers)(scope, receive, send)
