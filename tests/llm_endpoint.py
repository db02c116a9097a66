"""A program: OpenAI's chat completions, answered by form, counted, and failing on order.

    python tests/llm_endpoint.py --latency 0.05 --faults '[{"mode": "busy", "share": 0.2}]'

Prints its URL. POST /plan sets latency, faults, seed, context, key, model and others anew and
forgets what was counted; GET /stats tells it, GET /calls each call, GET /heard their messages. With
--log what was paid is known to the next process, too. Modes of faults are the methods of `Faulty`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import re
import ssl
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

from lightmem_core.config import Component
from lightmem_core.llm.chat import ChatRequest
from lightmem_core.llm.echo import EchoChat
from lightmem_core.plugins import load
from lightmem_core.protocols import Tokenizer

HTML = "<html><head><style>p {}</style></head><body><h1>Bad gateway</h1>sk-secret</body></html>"
FACTS = {"properties": {"facts": {}}}
UNPAID = {"html_200", "broken_envelope", "no_choices"}
STREAM = (
    b"HTTP/1.1 200 as ordered\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
Sent = bytes | tuple[list[bytes], bool]  # a response, or the parts of one and whether that is all


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and when: for a share of the requests, chosen by their content, each so
    many times; only those that hold `match`, from the `after`th request on and before `until`.

    `seconds` are those of Retry-After, of silence, or until it listens again.
    """

    mode: str
    share: float = 1.0
    times: int = 1
    match: str = ""
    after: int = 0
    until: float = float("inf")
    seconds: float | None = None
    date: bool = False


@dataclass(frozen=True)
class Plan:
    """`context`: the prompt tokens that fit; `key`, `model`: the only ones that are taken; `says`:
    the answer to who asks for no schema, with {said} for the last message; `pause`: seconds between
    the words of a stream."""

    latency: float = 0.0
    jitter: float = 0.0
    faults: tuple[Fault, ...] = ()
    seed: int = 0
    context: int | None = None
    key: str = ""
    model: str = ""
    says: str = ""
    pause: float = 0.0

    @classmethod
    def of(cls, given: dict[str, Any]) -> Plan:
        faults = tuple(Fault(**fault) for fault in given.pop("faults", ()))
        return cls(faults=faults, **given)


@dataclass
class Call:
    """A request, from when it was read (seconds since the start) to when it was answered.

    `paid`: a completion went out to a client that was still there, whatever its text.
    """

    number: int
    key: str
    stage: str
    started: float
    mode: str = ""
    ended: float | None = None
    status: int = 0
    paid: bool = False
    system_tokens: int = 0
    data_tokens: int = 0
    completion_tokens: int = 0
    asked: dict[str, Any] = field(default_factory=dict)  # the request without its messages


@dataclass
class Exchange:
    """A request that is being answered: what it says, what the answer will be."""

    body: dict[str, Any]
    call: Call
    fault: Fault | None = None
    text: str = ""
    finish: str = "stop"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    usage: bool = True
    raw: str | None = None
    hang_up: bool = False
    break_off: bool = False

    def fail(self, status: int, message: str, code: str | None = None, param: Any = None) -> None:
        error = {"message": message, "type": "error", "code": code, "param": param}
        self.status, self.raw = status, json.dumps({"error": error})

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream")) and self.raw is None

    def completion(self) -> str:
        said = {"role": "assistant", "content": self.text}
        choice = {"index": 0, "message": said, "finish_reason": self.finish}
        return json.dumps(self._envelope("", [choice]) | (self._usage() if self.usage else {}))

    def events(self) -> list[str]:
        """The same as a stream, word by word."""
        words = re.findall(r"\s*\S+|\s+", self.text)
        deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in words), {}]
        told = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        told[-1]["finish_reason"] = self.finish
        chunks = [self._envelope(".chunk", [choice]) for choice in told]
        if (self.body.get("stream_options") or {}).get("include_usage"):
            chunks.append(self._envelope(".chunk", []) | self._usage())
        return [*(json.dumps(chunk, ensure_ascii=False) for chunk in chunks), "[DONE]"]

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.call.key[:8]}",
            "object": f"chat.completion{kind}",
            "created": int(time.time()),
            "model": self.body.get("model"),
            "choices": choices,
        }

    def _usage(self) -> dict[str, Any]:
        call = self.call
        prompt = call.system_tokens + call.data_tokens
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": call.completion_tokens,
            "total_tokens": prompt + call.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": call.system_tokens},
        }
        return {"usage": usage}


class Faulty:
    """One method for each mode. Each spoils an exchange that is else ready to go."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint

    async def busy(self, exchange: Exchange, fault: Fault, status: int = 429) -> None:
        exchange.fail(status, "slow down", "rate_limit_exceeded")
        if fault.seconds is not None:
            date = formatdate(time.time() + fault.seconds, usegmt=True)
            exchange.headers["Retry-After"] = date if fault.date else str(fault.seconds)

    async def overloaded(self, exchange: Exchange, fault: Fault) -> None:
        await self.busy(exchange, fault, 503)

    async def html_500(self, exchange: Exchange, fault: Fault) -> None:
        exchange.status, exchange.raw, exchange.headers = 500, HTML, {"Content-Type": "text/html"}

    async def html_200(self, exchange: Exchange, fault: Fault) -> None:
        exchange.raw, exchange.headers = HTML, {"Content-Type": "text/html"}

    async def broken_envelope(self, exchange: Exchange, fault: Fault) -> None:
        exchange.raw = exchange.completion()[:-20]

    async def no_choices(self, exchange: Exchange, fault: Fault) -> None:
        exchange.raw = json.dumps(json.loads(exchange.completion()) | {"choices": []})

    async def no_usage(self, exchange: Exchange, fault: Fault) -> None:
        exchange.usage = False

    async def no_quota(self, exchange: Exchange, fault: Fault) -> None:
        exchange.fail(429, "You exceeded your current quota", "insufficient_quota")

    async def forbidden(self, exchange: Exchange, fault: Fault) -> None:
        exchange.fail(403, "this key may not use the model")

    async def bad_request(self, exchange: Exchange, fault: Fault) -> None:
        exchange.fail(400, "the request is bad: " + "very " * 200)

    async def no_schemas(self, exchange: Exchange, fault: Fault) -> None:
        if exchange.body.get("response_format", {}).get("type") == "json_schema":
            exchange.fail(400, "unknown response_format", param="response_format")

    async def refused(self, exchange: Exchange, fault: Fault) -> None:
        found = json.loads(exchange.completion())
        found["choices"][0]["message"] |= {"content": None, "refusal": "I cannot help with that."}
        exchange.raw = json.dumps(found)

    async def null(self, exchange: Exchange, fault: Fault) -> None:
        exchange.raw = exchange.completion().replace(json.dumps(exchange.text), "null")

    async def prose(self, exchange: Exchange, fault: Fault) -> None:
        exchange.text = f"Sure {{of course}}! Here it is:\n```json\n{exchange.text}\n```\nBye."

    async def cut(self, exchange: Exchange, fault: Fault) -> None:
        exchange.text = exchange.text[: len(exchange.text) // 2]

    async def length(self, exchange: Exchange, fault: Fault) -> None:
        await self.cut(exchange, fault)
        exchange.finish = "length"

    async def wrong_sources(self, exchange: Exchange, fault: Fault) -> None:
        exchange.text = json.dumps(_renumbered(json.loads(exchange.text)))

    async def no_json(self, exchange: Exchange, fault: Fault) -> None:
        exchange.text = "I would rather not."

    async def merge(self, exchange: Exchange, fault: Fault) -> None:
        """No fault, but a decision that an echo never takes."""
        exchange.text = json.dumps({"decision": {"action": "merge", "entry": 1}})

    async def silence(self, exchange: Exchange, fault: Fault) -> None:
        await asyncio.sleep(60 if fault.seconds is None else fault.seconds)
        exchange.hang_up = True

    async def hang_up(self, exchange: Exchange, fault: Fault) -> None:
        exchange.hang_up = True

    async def break_off(self, exchange: Exchange, fault: Fault) -> None:
        """A stream ends in the middle."""
        exchange.break_off = True

    async def down(self, exchange: Exchange, fault: Fault) -> None:
        await self.endpoint.close_for(1.0 if fault.seconds is None else fault.seconds)
        exchange.hang_up = True

    async def die(self, exchange: Exchange, fault: Fault) -> None:
        os._exit(3)


class Endpoint:
    def __init__(self, plan: Plan, tokenizer: Tokenizer, log: Path | None = None):
        self.tokenizer = tokenizer
        self.echo = EchoChat(tokenizer)
        self.faulty = Faulty(self)
        self.log = log
        self.tls: ssl.SSLContext | None = None
        self.server: asyncio.Server | None = None
        self.writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.restart(plan)
        if log is not None and log.exists():
            self.paid.update(json.loads(line)["key"] for line in log.read_text().splitlines())

    def restart(self, plan: Plan) -> None:
        self.plan = plan
        self.began = time.monotonic()
        self.calls: list[Call] = []
        self.paid: Counter[str] = Counter()
        self.hits: Counter[tuple[int, str]] = Counter()
        self.heard: deque[list[dict[str, Any]]] = deque(maxlen=100)
        self.in_flight = 0
        self.timeline: list[tuple[float, int]] = []

    async def listen(self, port: int) -> None:
        self.server = await asyncio.start_server(
            self._connection, "127.0.0.1", port, limit=2**24, backlog=1000, ssl=self.tls
        )
        self.port = self.server.sockets[0].getsockname()[1]

    async def close_for(self, seconds: float) -> None:
        """Refuse connections for a while, those that were open too."""
        if self.server is None:
            return
        self.server.close()
        self.server = None
        for writer in list(self.writers):
            writer.transport.abort()
        self._reopening = asyncio.get_running_loop().create_task(self._reopen(seconds))

    async def _reopen(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.listen(self.port)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            while raw := await self._next(reader, writer):
                parts, whole = ([raw], True) if isinstance(raw, bytes) else raw
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(self.plan.pause if len(parts) > 1 else 0)
                if not whole:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    async def _next(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Sent | None:
        """Read one request and give its response. None: hang up."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split()
        pairs = (line.split(": ", 1) for line in head[1:] if line)
        headers = {name.lower(): value for name, value in pairs}
        sent = await reader.readexactly(int(headers.get("content-length", 0)))
        if self.server is None:  # this connection was made before all were closed
            return None
        if path == "/v1/chat/completions":

            def gone() -> bool:
                return reader.at_eof() or writer.is_closing()

            return await self._completion(json.loads(sent), headers.get("authorization", ""), gone)
        if (method, path) == ("POST", "/plan"):
            self.restart(Plan.of(json.loads(sent)))
        answers: dict[str, Callable[[], Any]] = {
            "/v1/models": self.models,
            "/stats": self.stats,
            "/calls": self.each,
            "/heard": lambda: list(self.heard),
        }
        return _response(200, json.dumps(answers.get(path, dict)()), {})

    async def _completion(
        self, body: dict[str, Any], authorization: str, gone: Callable[[], bool]
    ) -> Sent | None:
        asked = {name: value for name, value in body.items() if name != "messages"}
        number = len(self.calls) + 1
        call = Call(number, _key(body), _stage(body), self._now(), asked=asked)
        calls = self.calls
        calls.append(call)
        self.heard.append(body["messages"])
        self._in_flight(1)
        try:
            exchange = Exchange(body, call)
            await self._prepare(exchange, authorization)
            if exchange.status == 200 and not exchange.hang_up:
                await asyncio.sleep(self.plan.latency * random.uniform(1, 1 + self.plan.jitter))
            return None if exchange.hang_up or gone() else self._sent(exchange)
        finally:
            call.ended = self._now()
            if calls is self.calls:  # no other plan has begun meanwhile
                self._in_flight(-1)

    async def _prepare(self, exchange: Exchange, authorization: str) -> None:
        """Fill in the answer, or what is wrong with the request, or what goes wrong on order."""
        call, plan = exchange.call, self.plan
        messages = exchange.body["messages"]
        counts = self.tokenizer.count([_content(m) for m in messages])
        system = sum(n for m, n in zip(messages, counts, strict=True) if m["role"] == "system")
        call.system_tokens, call.data_tokens = system, sum(counts) - system
        if plan.key and authorization != f"Bearer {plan.key}":
            return exchange.fail(401, f"Incorrect API key provided: {authorization[7:]}")
        if plan.model and exchange.body["model"] != plan.model:
            return exchange.fail(404, "The model does not exist", "model_not_found")
        if plan.context is not None and sum(counts) > plan.context:
            words = f"This model's maximum context length is {plan.context} tokens"
            return exchange.fail(400, words, "context_length_exceeded")
        exchange.text = await self._text(exchange.body, call)
        (call.completion_tokens,) = self.tokenizer.count([exchange.text])
        if fault := self._fault(call, exchange.body):
            call.mode = fault.mode
            await getattr(self.faulty, fault.mode)(exchange, fault)
        return None

    async def _text(self, body: dict[str, Any], call: Call) -> str:
        if self.plan.says and not _schema(body):
            return self.plan.says.replace("{said}", _content(body["messages"][-1]))
        if call.stage == "other":
            return "OK"
        schema = json.dumps(_schema(body) or FACTS)
        request = ChatRequest(tuple(body["messages"]), schema, body.get("max_tokens", 0))
        return (await self.echo.complete(request)).text

    def _fault(self, call: Call, body: dict[str, Any]) -> Fault | None:
        said = "\n".join(map(_content, body["messages"]))
        for number, fault in enumerate(self.plan.faults):
            draw = random.Random(f"{self.plan.seed} {number} {call.key}").random()
            due = fault.after < call.number <= fault.until and draw < fault.share
            if due and fault.match in said and self.hits[number, call.key] < fault.times:
                self.hits[number, call.key] += 1
                return fault
        return None

    def _sent(self, exchange: Exchange) -> Sent:
        call = exchange.call
        call.status = exchange.status
        call.paid = exchange.status == 200 and call.mode not in UNPAID
        if call.paid:
            self.paid[call.key] += 1
            if self.log is not None:
                with self.log.open("a") as file:
                    file.write(json.dumps(asdict(call)) + "\n")
        if exchange.streams:
            parts = [STREAM, *map(_chunk, exchange.events()), b"0\r\n\r\n"]
            whole = not exchange.break_off
            return (parts if whole else parts[: len(parts) // 2]), whole
        raw = exchange.completion() if exchange.raw is None else exchange.raw
        return _response(exchange.status, raw, exchange.headers)

    def _now(self) -> float:
        return time.monotonic() - self.began

    def _in_flight(self, change: int) -> None:
        self.in_flight += change
        self.timeline.append((self._now(), self.in_flight))

    def models(self) -> dict[str, Any]:
        name = self.plan.model or "echo"
        return {"object": "list", "data": [{"id": name, "object": "model"}]}

    def each(self) -> list[dict[str, Any]]:
        return [asdict(call) for call in self.calls]

    def stats(self) -> dict[str, Any]:
        """`repeated`: requests that were paid more than once, which nobody should do."""
        paid = [call for call in self.calls if call.paid]
        return {
            "calls": len(self.calls),
            "paid": sum(self.paid.values()),
            "repeated": sum(1 for times in self.paid.values() if times > 1),
            "modes": dict(Counter(call.mode for call in self.calls if call.mode)),
            "stages": {
                stage: _totals([call for call in paid if call.stage == stage])
                for stage in sorted({call.stage for call in paid})
            },
            "peak": max((n for _, n in self.timeline), default=0),
            "timeline": self.timeline,
        }


def _totals(calls: Sequence[Call]) -> dict[str, int]:
    fields = ("system_tokens", "data_tokens", "completion_tokens")
    return {"calls": len(calls)} | {f: sum(getattr(c, f) for c in calls) for f in fields}


def _response(status: int, body: str, headers: dict[str, str]) -> bytes:
    data = body.encode()
    lines = {"Content-Type": "application/json"} | headers | {"Content-Length": str(len(data))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} as ordered\r\n{head}\r\n".encode() + data


def _chunk(data: str) -> bytes:
    """An event of a stream, as HTTP sends a part of a body."""
    event = f"data: {data}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(event), event)


def _content(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))


def _key(body: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=16).hexdigest()


def _schema(body: dict[str, Any]) -> dict[str, Any] | None:
    return body.get("response_format", {}).get("json_schema", {}).get("schema")


def _stage(body: dict[str, Any]) -> str:
    """A request without a schema and without a second message is nobody's but the client's own."""
    asks = all(_content(message) for message in body["messages"][:2])
    schema = _schema(body) or (FACTS if len(body["messages"]) > 1 and asks else {})
    if not schema.get("properties"):
        return "other"
    return "extract" if "facts" in schema["properties"] else "update"


def _renumbered(reply: Any) -> Any:
    """The reply with every list of numbers pointing at messages that are not there."""
    if isinstance(reply, dict):
        return {name: _renumbered(value) for name, value in reply.items()}
    if isinstance(reply, list) and reply and all(isinstance(n, int) for n in reply):
        return [9999]
    return [_renumbered(item) for item in reply] if isinstance(reply, list) else reply


async def serve(args: argparse.Namespace) -> None:
    tokenizer = load("tokenizer", Component(use=args.tokenizer))
    faults = json.loads(args.faults)
    timing = {"latency": args.latency, "jitter": args.jitter}
    endpoint = Endpoint(
        Plan.of({"seed": args.seed, "faults": faults, **timing}), tokenizer, args.log
    )
    if args.cert:
        endpoint.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        endpoint.tls.load_cert_chain(args.cert)
    await endpoint.listen(args.port)
    sys.stdout.write(f"{'https' if args.cert else 'http'}://127.0.0.1:{endpoint.port}/v1\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that an answer takes")
    parser.add_argument("--jitter", type=float, default=0.0, help="share of it, at most on top")
    parser.add_argument("--faults", default="[]", help="a list of faults as JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", default="words")
    parser.add_argument("--log", type=Path, help="a file that keeps what was paid")
    parser.add_argument("--cert", type=Path, help="a certificate with its key: speak TLS")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
