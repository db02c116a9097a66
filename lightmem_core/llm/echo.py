"""A language model without a model: it answers by the form of the request, to test the rest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import regex

from lightmem_core.llm.chat import ChatRequest, Rejected, Reply
from lightmem_core.protocols import Tokenizer

LINE = regex.compile(r"(\d+) [^:\n]*: (.*)")  # "3 Ann: what she said", as requests are written


class EchoChat:
    """Gives each message as a fact of its own, and keeps every entry.

    A reply takes `latency_s`, and at most `concurrency` are given at once. A request that holds
    the text `fails_on` is refused, to test what becomes of it.
    """

    name = "echo"

    def __init__(
        self,
        tokenizer: Tokenizer,
        latency_s: float = 0.0,
        concurrency: int = 64,
        fails_on: str | None = None,
    ):
        self.tokenizer = tokenizer
        self.latency_s = latency_s
        self.slots = asyncio.Semaphore(concurrency)
        self.fails_on = fails_on

    async def complete(self, request: ChatRequest) -> Reply:
        data = request.messages[1]["content"]
        if self.fails_on is not None and self.fails_on in data:
            raise Rejected("failed on purpose")
        async with self.slots:
            await asyncio.sleep(self.latency_s)
        text = json.dumps(self._answer(request), ensure_ascii=False)
        *prompt, completion = self.tokenizer.count(
            [*(m["content"] for m in request.messages), text]
        )
        return Reply(text, self.name, sum(prompt), completion, seconds=self.latency_s)

    def _answer(self, request: ChatRequest) -> dict[str, object]:
        if "facts" in json.loads(request.schema)["properties"]:
            return {"facts": list(_facts(request.messages[1]["content"]))}
        return {"decision": {"action": "keep"}}


def _facts(data: str) -> Iterator[dict[str, object]]:
    for line in data.splitlines():
        if match := LINE.fullmatch(line):
            yield {"from": [int(match[1])], "text": match[2], "when": "", "topic": ""}
