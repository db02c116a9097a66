"""Errors in OpenAI's shape, for the routes below /v1: `{"error": {"message": ...}}`."""

from typing import Any

from pydantic import BaseModel

PREFIX = "/v1/"
INVALID = "invalid_request_error"
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class OpenAIError(BaseModel):
    """Why a request failed; `param` is the field that is wrong, `code` names the reason."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIProblem(BaseModel):
    """Why a request failed."""

    error: OpenAIError


def error_body(status: int, detail: Any, code: str | None = None) -> dict[str, Any]:
    """The body of a refusal: from one line, or from a list of wrong fields."""
    param = None
    if not isinstance(detail, str):
        places = [".".join(map(str, wrong["loc"][1:])) for wrong in detail]
        told = zip(places, (wrong["msg"] for wrong in detail), strict=True)
        param, detail = places[0], "; ".join(f"{place}: {msg}" for place, msg in told)
    kind = TYPES.get(status, INVALID if status < 500 else "server_error")
    error = OpenAIError(message=detail, type=kind, param=param, code=code)
    return OpenAIProblem(error=error).model_dump()
