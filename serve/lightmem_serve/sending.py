"""How the clients send a call, when they send it again, and the errors they raise."""

import random
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2

from lightmem_core.errors import LightMemError
from lightmem_serve.calls import Call

A = TypeVar("A")
BUSY = (429, 503)  # the server has done nothing, or nothing that cannot be done again
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
WORK_S = 630.0


class ApiError(LightMemError):
    """The server refused a request: `status`, why, and the id under which its log has it. Status 0:
    it could not be reached."""

    def __init__(self, status: int, detail: str, request_id: str = ""):
        where = f" (request {request_id})" if request_id else ""
        super().__init__(f"{f'{status}: ' if status else ''}{detail}{where}")
        self.status, self.detail, self.request_id = status, detail, request_id


class AccessError(ApiError):
    """The key is missing, revoked, or does not open this."""


class NotFoundError(ApiError):
    """There is no such memory or job that this key opens."""


class BusyError(ApiError):
    """Too many requests, or a server that cannot do it now, also after all retries."""


KINDS = {401: AccessError, 403: AccessError, 404: NotFoundError, 429: BusyError, 503: BusyError}


@dataclass(frozen=True, slots=True)
class Settings:
    """`retries` after the first try. A request may take `timeout_s`, and work on all that a user
    has `work_timeout_s`, by default a little longer than the server allows itself."""

    host: str
    api_key: str | None
    timeout_s: float
    retries: int
    work_timeout_s: float = WORK_S

    def __post_init__(self) -> None:
        if not self.host.startswith(("http://", "https://")):
            raise ValueError("host is the server's URL, such as http://127.0.0.1:8000")

    @property
    def headers(self) -> dict[str, str]:
        return {"X-API-Key": self.api_key} if self.api_key else {}


def request_of(call: Call[Any], settings: Settings) -> dict[str, Any]:
    query = {name: value for name, value in call.query.items() if value is not None}
    parts = {"method": call.method, "url": call.path, "params": query, "headers": call.headers}
    timeout = settings.work_timeout_s if call.long else settings.timeout_s
    return {**parts, "content": call.body, "timeout": max(timeout, settings.timeout_s)}


def raise_unless_again(
    error: httpx2.TransportError, call: Call[Any], settings: Settings, tried: int
) -> None:
    """A request that never arrived can always be sent again, one that may have only if repeating it
    does no harm; long work that was not waited for would only be done twice at once."""
    unsent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
    goes_on = call.long and isinstance(error, httpx2.TimeoutException)
    if tried == settings.retries or not (unsent or (call.repeatable and not goes_on)):
        what = f"{settings.host} did not answer {call.method} {call.path}"
        raise ApiError(0, f"{what}: {error or type(error).__name__}") from error


def pause_after(tried: int, reply: httpx2.Response | None = None) -> float:
    """What the server asks for, or else a while that doubles, of random length."""
    asked = reply.headers.get("retry-after", "") if reply is not None else ""
    if asked.isdecimal():
        return min(float(asked), LONGEST_PAUSE_S)
    return min(FIRST_PAUSE_S * 2**tried, LONGEST_PAUSE_S) * random.uniform(0.5, 1)


def answer_of(call: Call[A], reply: httpx2.Response) -> A:
    if reply.status_code == 200:
        lines = reply.content.splitlines()
        content = b"[%s]" % b",".join(lines) if call.lines else reply.content
        return call.answer.validate_json(content)
    request_id = reply.headers.get("x-request-id", "")
    kind = KINDS.get(reply.status_code, ApiError)
    raise kind(reply.status_code, _detail(reply), request_id)


def _detail(reply: httpx2.Response) -> str:
    """Why a request was refused, in one line."""
    try:
        detail = reply.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return reply.reason_phrase or "no reason was given"
    if isinstance(detail, str):
        return detail
    places = ((".".join(map(str, wrong["loc"])), wrong["msg"]) for wrong in detail)
    return "; ".join(f"{place}: {msg}" for place, msg in places)
