"""What a client is told when a request fails: `{"detail": ...}`, a status and the request's id.

400 and 422 the request is wrong, 401 no valid key, 403 a key that does not open this, 404 no such
memory of this caller, 413 too large, 429 too many, 503 not now, 504 not in time.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from lightmem_core.errors import (
    ConfigError,
    ConflictError,
    LightMemError,
    NotFoundError,
    RequestError,
    StoreError,
)
from lightmem_core.formats.fields import BadField, clean
from lightmem_core.online.jobs import OtherUpload
from lightmem_serve.openai_errors import PREFIX, OpenAIProblem, error_body

NO_MEMORY = "there is no such memory"
RETRY_AFTER = {"Retry-After": "1"}
MCP_PATH = "/mcp"
INVALID_REQUEST = -32600  # in JSON-RPC
log = logging.getLogger(__name__)


class Problem(BaseModel):
    """Why a request failed."""

    detail: str


class WrongField(BaseModel):
    """`loc` is where in the request, such as ["body", "user_id"]."""

    loc: list[str | int]
    msg: str
    type: str


class WrongFields(BaseModel):
    """What is wrong with a request, one item for each field; or one line for all of it."""

    detail: list[WrongField] | str


DESCRIPTIONS: dict[int, str] = {
    400: "The request cannot be served as it is",
    401: "No valid key",
    403: "The key does not open this",
    404: "There is no such thing for this caller",
    409: "The state of the thing does not allow it",
    413: "Larger than the server's limits",
    415: "Not a body of this kind",
    429: "More requests than the key may make in a minute",
    500: "A fault of the server; its log has the request's id",
    501: "The server is not configured for this",
    502: "The language model cannot be reached, or broke off",
    503: "The server cannot do this now; try again",
    504: "Not answered in time; what was sent may have been stored",
}
ALWAYS = (400, 401, 403, 413, 429, 500, 503, 504)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, for OpenAPI, beside those that every route may give."""
    kinds = sorted({*ALWAYS, *statuses})
    found = {s: {"model": Problem, "description": DESCRIPTIONS[s]} for s in kinds}
    return {**found, 422: {"model": WrongFields, "description": "A field is wrong"}}


def documented_for_openai(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same for the routes below /v1."""
    found = documented(*statuses).items()
    return {s: {**about, "model": OpenAIProblem} for s, about in found}


def refused(status: int, detail: str, headers: Mapping[str, str] | None = None) -> HTTPException:
    return HTTPException(status, clean(detail), dict(headers) if headers else None)


def unable(error: LightMemError) -> HTTPException:
    """What stands in the way is the log's to say: it may name files, machines, other users."""
    log.warning("a request is refused for now: %s", error)
    return refused(503, "the server cannot do this now: try again", RETRY_AFTER)


@contextmanager
def told() -> Iterator[None]:
    """Tell the client what is wrong with its request. What is wrong with the store may pass; other
    errors are faults of the server, of which a client is told no more."""
    try:
        yield
    except NotFoundError as error:
        raise refused(404, NO_MEMORY) from error
    except ConflictError as error:
        raise refused(409, str(error)) from error
    except (ConfigError, RequestError) as error:
        raise refused(400, str(error)) from error
    except LightMemError as error:
        raise unable(error) from error
    except OtherUpload as error:
        raise refused(409, str(error)) from error
    except BadField as error:
        raise refused(422, error.detail) from error
    except TimeoutError as error:
        raise refused(504, "not answered in time") from error


def add_handlers(app: FastAPI) -> None:
    app.add_exception_handler(RequestValidationError, _wrong_fields)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(StoreError, _store)


class Refusal(JSONResponse):
    """Says why in `detail`; below /v1 as OpenAI's clients read it, at /mcp as those of MCP do."""

    def __init__(self, status: int, detail: Any, headers: Mapping[str, str] | None = None):
        self.detail, self.given = detail, dict(headers) if headers else None
        super().__init__({"detail": detail}, status, self.given)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body: dict[str, Any] = {"detail": self.detail}
        if scope["path"].startswith(PREFIX):
            body = error_body(self.status_code, self.detail)
        elif scope["path"] == MCP_PATH:
            error = {"code": INVALID_REQUEST, "message": self.detail}
            body = {"jsonrpc": "2.0", "id": None, "error": error}
        self.body = self.render(body)
        self.init_headers(self.given)
        await super().__call__(scope, receive, send)


def answer(status: int, detail: Any, headers: Mapping[str, str] | None = None) -> Refusal:
    return Refusal(status, detail, headers)


async def _wrong_fields(_: Request, error: Exception) -> Refusal:
    """The input is not repeated: it may be large, secret, or no text at all."""
    assert isinstance(error, RequestValidationError)
    found = [
        {"loc": [_shown(part) for part in e["loc"]], "msg": clean(e["msg"]), "type": e["type"]}
        for e in error.errors()[:20]
    ]
    return answer(422, found)


async def _http(_: Request, error: Exception) -> Refusal:
    assert isinstance(error, HTTPException)
    return answer(error.status_code, error.detail, error.headers)


async def _store(_: Request, error: Exception) -> Refusal:
    assert isinstance(error, StoreError)
    return answer(503, unable(error).detail, RETRY_AFTER)


def _shown(part: Any) -> Any:
    return part if isinstance(part, int) else clean(str(part))[:100]
