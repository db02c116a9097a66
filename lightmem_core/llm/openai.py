"""`use: openai`: any server that speaks OpenAI's chat completions, asked with patience.

The client's own retries are off: how often, how fast and how long a server is asked is decided
here, for all requests together.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from importlib.util import find_spec
from typing import Any

from lightmem_core.hushed import hushed
from lightmem_core.llm.chat import ChatRequest, Reply
from lightmem_core.llm.governor import now
from lightmem_core.llm.line import Line
from lightmem_core.llm.openai_options import OpenAIOptions, Structured
from lightmem_core.llm.patience import Patience, Server
from lightmem_core.llm.responses import Answer, Failure, answer, refusal, unreachable
from lightmem_core.protocols import Tokenizer


class OpenAIChat:
    """Asks a server of OpenAI's chat completions. `tokenizer` counts where the server does not.

    It may be made anywhere and sent to another process: the connection is made by the first
    request, on the event loop that it comes from.
    """

    def __init__(self, tokenizer: Tokenizer | None = None, **options: Any):
        self.options = OpenAIOptions.of(options)
        if find_spec("openai") is None:
            raise ImportError("the OpenAI client is missing", name="openai")
        self.name, self.key = self.options.model, self.options.key
        self.tokenizer = tokenizer
        self._line: Line | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_line": None}

    async def complete(self, request: ChatRequest) -> Reply:
        """Raise TooLong or Rejected for this request, LLMUnavailableError when the server stays
        away, ConfigError when no request at all can succeed."""
        line = self._current()
        probed = partial(self._probed, line)
        patience = Patience(Server(line.signs, self.options, probed, line.given_up))
        while True:
            async with line.window.place():
                async with patience.turn():
                    outcome = await self._attempt(line, request)
                if isinstance(outcome, Reply):
                    return outcome
                if outcome.kind == "down":  # it keeps its place: an outage meets no more requests
                    await patience.endure(outcome.words, outcome.wait_s)
            if outcome.error:
                raise outcome.error
            if outcome.kind == "busy":
                await asyncio.sleep(patience.pause(outcome.words, outcome.wait_s))

    async def aclose(self) -> None:
        """Close the connections. Another request makes new ones."""
        line, self._line = self._line, None
        if line is not None:
            await line.client.close()

    def _current(self) -> Line:
        loop = asyncio.get_running_loop()
        if self._line is None or self._line.loop is not loop:
            self._line = Line(self.options, self.tokenizer)
        return self._line

    async def _probed(self, line: Line, request: ChatRequest) -> Reply | None:
        outcome = await self._attempt(line, request)
        return outcome if isinstance(outcome, Reply) else None

    async def _attempt(self, line: Line, request: ChatRequest) -> Reply | Failure:
        await line.opened()
        expected = line.expected(request)
        await line.governor.admit(expected)
        sent_at, found = now(), await self._sent(line, request)
        if isinstance(found, Failure):
            line.failed(found, sent_at, expected)
            return found
        return line.answered(request, found, sent_at, expected)

    async def _sent(self, line: Line, request: ChatRequest) -> Answer | Failure:
        """One HTTP request. Its errors hold the key in their headers: none of them goes on."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        create = line.client.chat.completions.with_raw_response.create
        try:
            async with asyncio.timeout(self.options.timeout_s):
                body = (await create(**self._body(request))).text
        except (TimeoutError, APITimeoutError):
            return Failure("down", f"no answer in {self.options.timeout_s:g} seconds")
        except APIStatusError as error:
            text = hushed(error.response.text, line.key)
            return refusal(error.status_code, error.response.headers, text, line.server)
        except APIConnectionError as error:
            return unreachable(error, line.server)
        found = answer(body)  # a reply stays as it is, an error is cleared before it is cut short
        return found if isinstance(found, Answer) else answer(hushed(body, line.key))

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        options = self.options
        body: dict[str, Any] = {
            "model": options.model,
            "messages": [{k: _utf8(v) for k, v in m.items()} for m in request.messages],
            options.field_of_max_tokens: request.max_tokens,
            "extra_body": options.extra_body or None,
        }
        if options.temperature != "server":
            given = options.temperature
            body["temperature"] = request.temperature if given is None else given
        if request.schema and options.form != "none":
            body["response_format"] = _response_format(options.form, request.schema)
        return body


def _response_format(form: Structured, schema: str) -> dict[str, Any]:
    if form == "json_object":
        return {"type": "json_object"}
    bounded = json.loads(schema)
    wanted = bounded if form == "json_schema" else _without_lengths(bounded)
    named = {"name": "reply", "strict": True, "schema": wanted}
    return {"type": "json_schema", "json_schema": named}


def _without_lengths(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_lengths(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    text = schema.get("type") == "string"
    return {
        name: _without_lengths(value)
        for name, value in schema.items()
        if not (text and name in ("minLength", "maxLength"))
    }


def _utf8(text: str) -> str:
    """A lone half of a surrogate pair cannot be sent."""
    return text.encode("utf-8", "replace").decode("utf-8")
