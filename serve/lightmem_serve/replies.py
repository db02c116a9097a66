"""A model's reply on its way to the client, as it comes, and kept when it ends, however it ends."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
from anyio import CancelScope
from fastapi.responses import StreamingResponse
from starlette.types import Send

from lightmem_serve.openai_errors import error_body
from lightmem_serve.upstream import Upstream

EVENT_STREAM = "text/event-stream"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
DATA, DONE = b"data:", b"[DONE]"
Keep = Callable[[str], Awaitable[bool]]


class StreamedReply(StreamingResponse):
    """Passes the events on as they come. The turn is kept before the last event is sent: who has
    read it to its end finds it stored."""

    media_type = EVENT_STREAM

    def __init__(self, upstream: Upstream, response: httpx2.Response, keep: Keep):
        self.upstream, self.response, self.keep = upstream, response, keep
        self.said: list[str] = []
        self.kept = False
        super().__init__(self._passed_on(), headers=HEADERS)

    async def stream_response(self, send: Send) -> None:
        """A client that leaves ends this at any point."""
        try:
            await super().stream_response(send)
        finally:
            with CancelScope(shield=True):
                try:
                    await self._keep()
                finally:
                    await self.response.aclose()

    async def _passed_on(self) -> AsyncIterator[bytes]:
        rest = b""
        try:
            async for chunk in self.response.aiter_bytes():
                *lines, rest = (rest + chunk).split(b"\n")
                if DONE in [self._heard(line) for line in lines]:
                    await self._keep()
                if lines:
                    yield b"\n".join(lines) + b"\n"
        except httpx2.HTTPError as error:
            lost = self.upstream.lost(error)
            await self._keep()
            yield b"\n\ndata: %s\n\n" % json.dumps(error_body(502, lost.detail)).encode()
        else:
            yield rest

    def _heard(self, line: bytes) -> bytes:
        """The data of an event; what the model says in it is noted."""
        if not line.startswith(DATA):
            return b""
        data = line.removeprefix(DATA).strip()
        if data != DONE:
            self.said.append(said_in(data, "delta"))
        return data

    async def _keep(self) -> None:
        if not self.kept:
            self.kept = True
            await self.keep("".join(self.said))


def said_in(content: bytes, part: str) -> str:
    """What the first choice of a completion, or of a chunk of one, says; "" if it says nothing."""
    try:
        choices: Any = json.loads(content)["choices"]
        said = next(choice[part] for choice in choices if choice.get("index", 0) == 0)
        return said.get("content") or ""
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return ""
