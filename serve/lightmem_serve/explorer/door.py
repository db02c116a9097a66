"""What stands around the pages: the cookie is the key, answers are strict, errors are pages."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightmem_serve.explorer.places import COOKIE, HOME, is_page, url
from lightmem_serve.explorer.rendering import page

STRICT = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
KEPT = ("x-request-id", "retry-after")
TITLES = {
    400: "That cannot be shown",
    403: "This key does not open that",
    404: "There is nothing here",
    422: "That address is not right",
    429: "Too many requests for now",
    503: "The server cannot do this now",
    504: "That took too long",
}


@dataclass(slots=True)
class Door:
    """An ASGI application around all of the server. What is no page passes as it is."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_page(scope["path"]):
            await self.app(scope, receive, send)
        else:
            await self.app(_with_key(scope), receive, Dressed(scope, receive, send))


@dataclass(slots=True)
class Dressed:
    """Sends an answer with strict headers; one that says in JSON what is wrong becomes a page."""

    scope: Scope
    receive: Receive
    send: Send
    wrong: Message | None = None
    body: bytearray = field(default_factory=bytearray)

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("Cache-Control", "no-store")
            headers.update(STRICT)
            if message["status"] >= 400 and "json" in headers.get("content-type", ""):
                self.wrong = message
                return
        if self.wrong is None:
            await self.send(message)
            return
        self.body += message.get("body", b"")
        if not message.get("more_body"):
            await self._told(self.wrong)

    async def _told(self, wrong: Message) -> None:
        given = Headers(scope=wrong)
        answer = _answer(Request(self.scope), wrong["status"], bytes(self.body))
        same = {name: given[name] for name in KEPT if name in given}
        answer.headers.update({**STRICT, **same, "Cache-Control": "no-store"})
        await answer(self.scope, self.receive, self.send)


def _with_key(scope: Scope) -> Scope:
    """The request as if the key in its cookie were in its header, unless one is there."""
    headers = Headers(scope=scope)
    key = Request(scope).cookies.get(COOKIE, "")
    if not key or not key.isascii() or "x-api-key" in headers or "authorization" in headers:
        return scope
    return {**scope, "headers": [*scope["headers"], (b"x-api-key", key.encode())]}


def _answer(request: Request, status: int, body: bytes) -> Response:
    if status != 401:
        detail = _detail(body)
        title = TITLES.get(status, "Something went wrong")
        return HTMLResponse(page("error.html", title=title, detail=detail, status=status), status)
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    next_ = here if request.method == "GET" and here not in ("/", HOME) else None
    again = "1" if COOKIE in request.cookies else None
    answer = RedirectResponse(url("login", next=next_, again=again), 303)
    answer.delete_cookie(COOKIE, path=HOME, httponly=True, samesite="strict")
    return answer


def _detail(body: bytes) -> str:
    detail: Any = json.loads(body).get("detail", "")
    if isinstance(detail, list):
        fields: list[Mapping[str, Any]] = detail
        return "; ".join(f"{field['loc'][-1]}: {field['msg']}" for field in fields)
    return str(detail)
