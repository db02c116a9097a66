"""Signing in with a key, which then is in a cookie that only the pages read; and their files."""

import re
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from lightmem_serve.access import Access
from lightmem_serve.errors import refused
from lightmem_serve.explorer.places import ASSETS, COOKIE, HOME, LOGIN, LOGOUT, STATIC, local
from lightmem_serve.explorer.rendering import answer, asset

KEY = re.compile(r"[A-Za-z0-9_-]{1,200}")
HOURS = 12  # until one signs in again
ONE_YEAR = "public, max-age=31536000, immutable"
SENT_ANEW = "The key that was used here is not valid any more: sign in again."
router = APIRouter(include_in_schema=False)


@router.get("/")
async def root() -> Response:
    return RedirectResponse(HOME, 303)


@router.get(LOGIN)
async def login(request: Request, next: str = "", again: bool = False) -> Response:
    access: Access = request.app.state.access
    if access.ring is None:
        return RedirectResponse(local(next), 303)
    wrong = SENT_ANEW if again else ""
    return answer(request, "login.html", next=local(next), wrong=wrong)


@router.post(LOGIN)
async def sign_in(request: Request) -> Response:
    """Take a key that is valid now. It is checked again with each request."""
    _from_here(request)
    form = parse_qs((await request.body()).decode("utf-8", "replace"))
    key, next_ = (form.get(name, [""])[0].strip() for name in ("key", "next"))
    wrong = await _wrong(request, key)
    if wrong is not None:
        shown = {"next": local(next_), "wrong": wrong.detail}
        return answer(request, "login.html", wrong.status_code, **shown)
    went = RedirectResponse(local(next_), 303)
    _set(went, request, key)
    return went


@router.post(LOGOUT)
async def sign_out(request: Request) -> Response:
    _from_here(request)
    went = RedirectResponse(LOGIN, 303)
    went.delete_cookie(COOKIE, path=HOME, httponly=True, samesite="strict")
    return went


def _file(name: str) -> None:
    @router.get(f"{STATIC}/{name}")
    async def given() -> Response:
        return Response(asset(name), media_type=ASSETS[name], headers={"Cache-Control": ONE_YEAR})


for name in ASSETS:
    _file(name)


async def _wrong(request: Request, key: str) -> HTTPException | None:
    """Why a key does not open the server, None if it does."""
    access: Access = request.app.state.access
    client = request.client.host if request.client else None
    if not KEY.fullmatch(key):
        return refused(401, "That is not a key of this server.")
    try:
        await access.caller(Headers({"host": "localhost", "x-api-key": key}), client)
    except HTTPException as error:
        if error.status_code == 401:
            return refused(401, "This key opens nothing: it is not of this server, or revoked.")
        return error
    return None


def _set(answer: Response, request: Request, key: str) -> None:
    """Behind a proxy that ends TLS the request itself looks as if it had none."""
    secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
    kept = {"max_age": HOURS * 3600, "path": HOME, "secure": secure}
    answer.set_cookie(COOKIE, key, httponly=True, samesite="strict", **kept)


def _from_here(request: Request) -> None:
    """No page of another site signs anybody in or out."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise refused(403, "this form was sent from another site")
