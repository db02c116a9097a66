"""What an OpenAI-compatible server answered, read as an answer or as a failure of some kind."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from lightmem_core.errors import ConfigError, LLMUnavailableError
from lightmem_core.llm.chat import Rejected, TooLong

WORDS = 300  # characters of a server's own words that an error may repeat
BUSY = {429, 503, 529}
PASSING = {408, 409, 425}
TOO_LONG = re.compile(
    r"context[ _-]?(length|window|size)|maximum model length|too long|too many tokens"
    r"|exceeds? .*\btokens|reduce the length",
    re.IGNORECASE,
)
TAGS = re.compile(r"<(style|script)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)
# What a server may not know, and the option that spares it.
OPTIONS = {
    "response_format": "structured: json_schema_without_lengths, json_object or none",
    "max_completion_tokens": "tokens_field: max_tokens",
    "max_tokens": "tokens_field: max_completion_tokens",
    "temperature": "temperature: server",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """`busy`: asked too much at once. `down`: gone or broken, and it may come back. `final`: asking
    again is of no use, and `error` says why. `wait_s` is how long the server asks to be left."""

    kind: Literal["busy", "down", "final"]
    words: str
    wait_s: float | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """How errors name a server, its model, and the variable that holds its key."""

    url: str
    model: str
    key_env: str
    has_key: bool


class Details(BaseModel):
    cached_tokens: int | None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: Details | None = None

    @property
    def cached(self) -> int:
        details = self.prompt_tokens_details
        return (details.cached_tokens if details else None) or 0


class Said(BaseModel):
    content: str | None = None
    refusal: str | None = None


class Choice(BaseModel):
    message: Said
    finish_reason: str | None = None


class Answer(BaseModel):
    """A completion, as far as it is needed here. A refusal stands for the text: it was paid for."""

    choices: list[Choice]
    usage: Usage | None = None

    @property
    def text(self) -> str:
        said = self.choices[0].message
        return said.content or said.refusal or ""

    @property
    def finish(self) -> Literal["stop", "length"]:
        cut = self.choices[0].finish_reason in ("length", "content_filter")
        return "length" if cut else "stop"


def answer(body: str) -> Answer | Failure:
    """Read what came with the status 200."""
    try:
        found = Answer.model_validate_json(body)
    except ValidationError:
        return Failure("down", f"an answer that is no completion: {shown(body)}")
    return found if found.choices else Failure("down", f"no choice in the answer: {shown(body)}")


def refusal(status: int, headers: Mapping[str, str], body: str, server: Server) -> Failure:
    """Read what came with a status of 400 or more."""
    error = _error(body)
    words = f"{status} {shown(str(error.get('message') or body))}".strip()
    if status == 429 and "insufficient_quota" in (error.get("code"), error.get("type")):
        return _final(words, LLMUnavailableError(_no_quota(server, words)))
    if status in BUSY:
        return Failure("busy", words, retry_after(headers))
    if status in PASSING or status >= 500:
        return Failure("down", words, retry_after(headers))
    if status in (401, 403):
        return _final(words, ConfigError(_wrong_key(server, words)))
    if status == 404:
        return _final(words, ConfigError(_not_there(server, words)))
    return _final(words, _bad_request(status, words, error, server))


def unreachable(error: Exception, server: Server) -> Failure:
    """Read why no answer came at all. A certificate that is not trusted will not be so later."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            words = f"its certificate is not trusted: {cause.verify_message}"
            advice = "name the file of the authority that signed it in memory.llm.options.ca_file"
            return _final(words, ConfigError(f"{server.url}: {words}; {advice}"))
    told = [_strerror(c) for c in causes if isinstance(c, OSError) and c.errno]
    return Failure("down", told[-1] if told else type(causes[-1]).__name__)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After asks for, as a number or as a date, or retry-after-ms."""
    millis, value = headers.get("retry-after-ms"), headers.get("retry-after", "")
    try:
        return max(0.0, float(millis) / 1000 if millis else float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return None


def shown(text: str) -> str:
    """A server's words on one line, without markup, cut."""
    line = " ".join(TAGS.sub(" ", text).split())
    return line if len(line) <= WORDS else f"{line[:WORDS]}..."


def told(error: BaseException) -> str:
    """An error of others on one line, cut."""
    return shown(f"{type(error).__name__}: {error}")


def _error(body: str) -> Mapping[str, Any]:
    """The error object, which OpenAI puts under `error` and some servers at the top."""

    class Envelope(BaseModel):
        error: dict[str, Any] | str | None = None
        message: str | None = None

    try:
        found = Envelope.model_validate_json(body)
    except ValidationError:
        return {}
    if isinstance(found.error, dict):
        return found.error
    return {"message": found.error or found.message}


def _bad_request(status: int, words: str, error: Mapping[str, Any], server: Server) -> Exception:
    if status == 413 or error.get("code") == "context_length_exceeded" or TOO_LONG.search(words):
        return TooLong(words)
    named = error.get("param")
    for field, option in OPTIONS.items():
        if named == field or (not named and field in words):
            return ConfigError(
                f"{server.url} does not take {field} ({words}): "
                f"set memory.llm.options.{option}, if that is what it means"
            )
    return Rejected(words)


def _wrong_key(server: Server, words: str) -> str:
    if server.has_key:
        return (
            f"{server.url} does not accept the key in {server.key_env} ({words}): set the "
            "environment variable to a key that may use the model, or name another in "
            "memory.llm.options.api_key_env"
        )
    return (
        f"{server.url} wants a key ({words}): set the environment variable {server.key_env}, "
        "where the model is asked"
    )


def _not_there(server: Server, words: str) -> str:
    return (
        f"{server.url} has no model {server.model!r} ({words}): correct model or base_url in "
        f"memory.llm.options; {server.url}/models lists what it has"
    )


def _no_quota(server: Server, words: str) -> str:
    return (
        f"the quota at {server.url} is used up ({words}): add to it and run the same command "
        "again; no call that was answered is paid for again"
    )


def _final(words: str, error: Exception) -> Failure:
    return Failure("final", words, error=error)


def _strerror(error: OSError) -> str:
    """In the system's words; those of asyncio hold the address again."""
    number = error.errno or 0
    return os.strerror(number) if number > 0 else shown(str(error.strerror))


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
