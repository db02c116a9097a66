"""`use: openai`: any server that speaks OpenAI's chat completions, asked with patience.

The client's own retries are off: how often, how fast and how long a server is asked is decided
here, for all requests together.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import ssl
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator

from lightmem_core.config import Model
from lightmem_core.errors import ConfigError, LLMUnavailableError
from lightmem_core.llm.chat import ChatRequest, Rejected, Reply
from lightmem_core.llm.governor import Governor, Window, now
from lightmem_core.llm.responses import Answer, Failure, Server, answer, refusal, unreachable
from lightmem_core.protocols import Tokenizer

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OPENAI = "https://api.openai.com/v1"
LONGEST_PAUSE = 30  # times pause_s
BYTES_PER_TOKEN = 4
PROBE = ChatRequest(({"role": "user", "content": "Say OK."},), "", 16)

log = logging.getLogger(__name__)


class OpenAIOptions(Model):
    """What `memory.llm.options` may hold. Limits hold for each process that asks the model.

    The key is read from the environment variable `api_key_env` and kept nowhere else. A request is
    repeated until `give_up_s` passed without any reply; one that fails `attempts` times while the
    server answers others is rejected. Pauses start at `pause_s` and double. `structured` is for
    servers that know less than JSON schemas, `temperature: server` for those that allow only their
    own, `extra_body` for what else a server takes. TLS is always verified, against `ca_file` too.
    """

    model: str = Field(min_length=1)
    base_url: str = OPENAI
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = Field(default=16, ge=1)
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    timeout_s: float = Field(default=120, gt=0)
    give_up_s: float = Field(default=600, ge=0)
    attempts: int = Field(default=6, ge=1)
    pause_s: float = Field(default=1, gt=0)
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    temperature: float | Literal["server"] | None = None
    tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    extra_body: dict[str, Any] = Field(default={}, repr=False)
    ca_file: str | None = None

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("give the name of an environment variable, not the key itself")
        return name

    @field_validator("base_url")
    @classmethod
    def _a_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give the URL up to /v1, such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("a URL holds no key: name its environment variable in api_key_env")
        return url.rstrip("/")


class OpenAIChat:
    """Asks a server of OpenAI's chat completions. `tokenizer` counts where the server does not.

    It may be made anywhere and sent to another process: the connection is made by the first
    request, on the event loop that it comes from.
    """

    def __init__(self, tokenizer: Tokenizer | None = None, **options: Any):
        try:
            self.options = OpenAIOptions(**options)
        except ValidationError as error:
            raise ValueError(_problems(error)) from None
        if find_spec("openai") is None:
            raise ImportError("the OpenAI client is missing", name="openai")
        self.name = self.options.model
        self.tokenizer = tokenizer
        self._line: _Line | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_line": None}

    @property
    def in_flight(self) -> int:
        """Requests that are sent and not answered, now."""
        return self._line.in_flight if self._line else 0

    async def complete(self, request: ChatRequest) -> Reply:
        """Raise TooLong or Rejected for this request, LLMUnavailableError when the server stays
        away, ConfigError when no request at all can succeed."""
        line = self._current()
        patience = _Patience(line)
        while True:
            async with line.window.place():
                outcome = await self._attempt(line, request)
                if isinstance(outcome, Reply):
                    return outcome
                if outcome.kind == "down":  # it keeps its place: an outage meets no more requests
                    await self._judge(line, patience, outcome)
                    await asyncio.sleep(patience.pause(outcome))
            if outcome.error:
                raise outcome.error
            if outcome.kind == "busy":
                await asyncio.sleep(patience.pause(outcome))

    async def aclose(self) -> None:
        """Close the connections. Another request makes new ones."""
        line, self._line = self._line, None
        if line is not None:
            await line.client.close()

    def _current(self) -> _Line:
        loop = asyncio.get_running_loop()
        if self._line is None or self._line.loop is not loop:
            self._line = _Line(self.options)
        return self._line

    async def _judge(self, line: _Line, patience: _Patience, failure: Failure) -> None:
        """Raise Rejected if the server works and it is this request that always fails.

        Where no other request can tell, a tiny one is sent to see.
        """
        if patience.failed_at is None:
            return
        alive = line.replied_at > patience.failed_at
        if not alive:
            outcome = await self._attempt(line, PROBE)
            alive = isinstance(outcome, Reply) or isinstance(outcome.error, Rejected)
        patience.alone += alive
        if patience.alone >= self.options.attempts:
            raise Rejected(f"failed {patience.failures + 1} times, last: {failure.words}")

    async def _attempt(self, line: _Line, request: ChatRequest) -> Reply | Failure:
        await line.opened()
        expected = line.expected(request)
        await line.governor.admit(expected)
        sent_at, found = now(), await self._sent(line, request)
        if isinstance(found, Failure):
            line.failed(found, sent_at, expected)
            return found
        reply = self._reply(request, found, now() - sent_at)
        line.answered(reply, expected)
        return reply

    async def _sent(self, line: _Line, request: ChatRequest) -> Answer | Failure:
        """One HTTP request. Its errors hold the key in their headers: none of them goes on."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        create = line.client.chat.completions.with_raw_response.create
        line.in_flight += 1
        try:
            async with asyncio.timeout(self.options.timeout_s):
                body = (await create(**self._body(request))).text
        except (TimeoutError, APITimeoutError):
            return Failure("down", f"no answer in {self.options.timeout_s:g} seconds")
        except APIStatusError as error:
            text = line.hushed(error.response.text)
            return refusal(error.status_code, error.response.headers, text, line.server)
        except APIConnectionError as error:
            return unreachable(error, line.server)
        finally:
            line.in_flight -= 1
        return answer(body)

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        options = self.options
        body: dict[str, Any] = {
            "model": options.model,
            "messages": [{k: _utf8(v) for k, v in m.items()} for m in request.messages],
            self._tokens_field: request.max_tokens,
            "extra_body": options.extra_body or None,
        }
        if options.temperature != "server":
            given = options.temperature
            body["temperature"] = request.temperature if given is None else given
        if request.schema and options.structured != "none":
            body["response_format"] = _response_format(options.structured, request.schema)
        return body

    @cached_property
    def _tokens_field(self) -> str:
        newest = "max_completion_tokens" if self.options.base_url == OPENAI else "max_tokens"
        return self.options.tokens_field or newest
