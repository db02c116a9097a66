"""What one event loop knows of a server: the connection, how fast it may ask, signs of life."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import ssl
from typing import TYPE_CHECKING

from lightmem_core.errors import ConfigError
from lightmem_core.llm.chat import ChatRequest, Rejected, Reply, TooLong
from lightmem_core.llm.governor import Governor, Window, now
from lightmem_core.llm.openai_options import OpenAIOptions
from lightmem_core.llm.patience import Signs
from lightmem_core.llm.responses import Answer, Failure, Server, Usage
from lightmem_core.protocols import Tokenizer

if TYPE_CHECKING:
    from openai import AsyncOpenAI

BYTES_PER_TOKEN = 4
NO_KEY = "none"  # what is sent where no key is set: many servers of one's own want none

log = logging.getLogger(__name__)


class Line:
    """The requests of one client on this event loop, and what the server did with them."""

    def __init__(self, options: OpenAIOptions, tokenizer: Tokenizer | None):
        self.loop = asyncio.get_running_loop()
        self.options = options
        self.tokenizer = tokenizer
        self.key = key_of(options)
        self.server = Server(options.base_url, options.model, options.api_key_env, bool(self.key))
        self.client = _client(options, self.key)
        self.window = Window(options.concurrency)
        self.governor = Governor(options.requests_per_minute, options.tokens_per_minute)
        self.signs = Signs()
        self.opens_at = 0.0
        self._replies = 0
        self._completed = 0

    async def opened(self) -> None:
        """Wait as long as the server asked to be left, and a little more, not all the same."""
        while (wait := self.opens_at - now()) > 0:
            await asyncio.sleep(wait * random.uniform(1, 1.1))

    def expected(self, request: ChatRequest) -> float:
        """Tokens that a request will take, by those of its kind so far."""
        reply = self._completed / self._replies if self._replies else request.max_tokens
        return _guess("".join(m["content"] for m in request.messages)) + reply

    def failed(self, failure: Failure, sent_at: float, expected: float) -> None:
        if failure.wait_s is not None:
            self.opens_at = max(self.opens_at, now() + failure.wait_s)
        if failure.kind == "busy":
            self.window.shrink(sent_at)
        if failure.kind != "down":  # what a lost request took is not known
            self.governor.settle(expected, 0)
        if isinstance(failure.error, Rejected | TooLong):
            self.signs.seen()

    def answered(
        self, request: ChatRequest, found: Answer, sent_at: float, expected: float
    ) -> Reply:
        self.signs.seen()
        usage = found.usage or self._counted(request, found.text)
        self._replies += 1
        self._completed += usage.completion_tokens
        self.window.grow()
        self.governor.settle(expected, usage.prompt_tokens + usage.completion_tokens)
        return Reply(
            text=found.text,
            model=self.options.model,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached,
            seconds=self.signs.replied_at - sent_at,
            finish=found.finish,
        )

    def given_up(self, words: str, silent: float) -> str:
        return (
            f"{self.server.url} gave no reply for {silent:.0f} seconds ({words}): see that it "
            "runs, then run the same command again; no call that was answered is paid for again"
        )

    def _counted(self, request: ChatRequest, text: str) -> Usage:
        """A budget must hold at servers that report no usage too."""
        if not self._replies:
            log.warning("%s reports no usage: its tokens are counted here", self.server.url)
        texts = [*(m["content"] for m in request.messages), text]
        *prompt, reply = self.tokenizer.count(texts) if self.tokenizer else map(_guess, texts)
        return Usage(prompt_tokens=sum(prompt), completion_tokens=reply)


def key_of(options: OpenAIOptions) -> str:
    """The key that the environment holds, "" if none. Raise ConfigError for what cannot be one."""
    key = os.environ.get(options.api_key_env, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the environment variable {options.api_key_env} holds what cannot be a key"
        )
    return key


def trusted(options: OpenAIOptions) -> ssl.SSLContext | bool:
    """Whose certificates are taken. Raise ConfigError if their file cannot be read."""
    try:
        return ssl.create_default_context(cafile=options.ca_file) if options.ca_file else True
    except OSError as error:
        raise ConfigError(f"cannot read memory.llm.options.ca_file: {error}") from error


def _client(options: OpenAIOptions, key: str) -> AsyncOpenAI:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    return AsyncOpenAI(
        api_key=key or NO_KEY,
        base_url=options.base_url,
        timeout=options.timeout_s,
        max_retries=0,
        http_client=DefaultAsyncHttpxClient(verify=trusted(options)),
    )


def _guess(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)
