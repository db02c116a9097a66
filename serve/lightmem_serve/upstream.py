"""The language model behind the chat: a server of OpenAI's chat completions, or the summarizer."""

import json
import logging
from typing import Any

import httpx2
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lightmem_core.config import LLMConfig
from lightmem_core.errors import ConfigError
from lightmem_core.formats.fields import clean
from lightmem_core.hushed import hushed
from lightmem_core.llm.line import key_of, trusted
from lightmem_core.llm.openai_options import OpenAIOptions
from lightmem_core.llm.options import SUMMARIZER_URL
from lightmem_serve.errors import refused
from lightmem_serve.openai_errors import error_body

CONNECT_S = 10.0
OURS = (401, 403)  # what it says to the server's key, not to the client's
NO_KEY_ENV = "LIGHTMEM_SUMMARIZER_KEY"
NAMED = ("type", "param", "code")
log = logging.getLogger(__name__)


class Upstream:
    """Sends requests as they are, each once: who asks decides whether to ask again. Responses are
    open when they are given; `read` closes them."""

    def __init__(self, options: OpenAIOptions):
        """Raise ConfigError if the key or the certificates cannot be used."""
        self.options = options
        self.key = key_of(options)
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        self.client = httpx2.AsyncClient(
            base_url=options.base_url,
            headers={**headers, "accept-encoding": "identity"},
            timeout=httpx2.Timeout(options.timeout_s, connect=CONNECT_S),
            verify=trusted(options),
            limits=httpx2.Limits(max_connections=None),
        )

    @classmethod
    def of(cls, llm: LLMConfig | None) -> "Upstream | None":
        """None if no model is configured that can be asked over HTTP."""
        if llm is None or llm.use not in ("openai", "serve"):
            return None
        given = llm.options if llm.use == "openai" else _of_summarizer(llm.options)
        try:
            return cls(OpenAIOptions.of(given))
        except ValueError as error:
            raise ConfigError(f"memory.llm.options: {error}") from error

    async def complete(self, body: dict[str, Any]) -> httpx2.Response:
        content = json.dumps({**self.options.extra_body, **body}).encode()
        headers = {"content-type": "application/json"}
        return await self._send("POST", "/chat/completions", content=content, headers=headers)

    async def models(self) -> httpx2.Response:
        return await self._send("GET", "/models")

    async def read(self, response: httpx2.Response) -> bytes:
        try:
            return await response.aread()
        except httpx2.HTTPError as error:
            raise self.lost(error) from error
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        await self.client.aclose()

    def lost(self, error: httpx2.HTTPError) -> HTTPException:
        """What a client is told; the log has where the model is."""
        log.warning("the language model at %s: %r", self.options.base_url, error)
        if isinstance(error, httpx2.TimeoutException):
            return refused(504, "the language model did not answer in time")
        return refused(502, "the language model cannot be reached, or broke off")

    def refusal(self, response: httpx2.Response, content: bytes) -> JSONResponse:
        """What the model's server refuses, in OpenAI's shape."""
        status = response.status_code
        if status in OURS:
            log.error("the language model refuses the key of %s", self.options.api_key_env)
            return _answer(502, {"message": "the language model refuses this server's key"})
        after = response.headers.get("retry-after")
        error = _error(content)
        said = {name: error[name] for name in NAMED if error.get(name) is not None}
        said["message"] = error.get("message") or f"the language model answered {status}"
        told = {name: clean(hushed(str(value), self.key)) for name, value in said.items()}
        headers = {"Retry-After": after} if after else None
        return _answer(status if status >= 400 else 502, told, headers)

    async def _send(self, method: str, path: str, **sent: Any) -> httpx2.Response:
        try:
            request = self.client.build_request(method, path, **sent)
            return await self.client.send(request, stream=True)
        except httpx2.HTTPError as error:
            raise self.lost(error) from error


def _of_summarizer(given: dict[str, Any]) -> dict[str, Any]:
    """The summarizer's route for OpenAI's clients, which takes no key: none is sent."""
    same = {name: given[name] for name in ("model", "base_url", "timeout_s") if name in given}
    return {"base_url": SUMMARIZER_URL, "api_key_env": NO_KEY_ENV, **same}


def _error(content: bytes) -> dict[str, Any]:
    try:
        error = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {"message": error}


def _answer(
    status: int, told: dict[str, str], headers: dict[str, str] | None = None
) -> JSONResponse:
    own = error_body(status, told["message"])["error"]
    return JSONResponse({"error": {**own, **told}}, status, headers)
