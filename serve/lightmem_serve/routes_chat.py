"""OpenAI's chat completions in front of the configured model, with the user's memories in them."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx2
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from lightmem_core.long_term.retrieve import Query
from lightmem_serve.access import Asking, needs
from lightmem_serve.backend import Server
from lightmem_serve.block import block_of, with_block, without_blocks
from lightmem_serve.errors import documented_for_openai, refused, told
from lightmem_serve.openai_errors import OpenAIProblem
from lightmem_serve.replies import EVENT_STREAM, StreamedReply, said_in
from lightmem_serve.schemas import MOST_MESSAGES, Id
from lightmem_serve.turns import Turn, Turns, Unsaid, texts_of
from lightmem_serve.upstream import Upstream
from lightmem_serve.whose import owner_of, session_of

JSON = "application/json"
LONGEST_QUERY = 8_000  # characters, as in a search
MOST_MEMORIES = 100  # of which as many are told of as there is room for
NO_MODEL = (
    "this server has no language model to chat with: set memory.llm to {use: openai, options: "
    "{model: ..., base_url: ...}}, or {use: serve, options: {model: ...}}, in its configuration"
)
reads, writes = (Depends(needs(scope)) for scope in ("read", "write"))
router = APIRouter(prefix="/v1", tags=["chat"])


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)

    role: str = Field(min_length=1, max_length=64)
    content: str | list[Any] | None = None


class ChatRequest(BaseModel):
    """A request as OpenAI's; what is not named here is passed on as it is. `user` says whose
    memories, `metadata.session_id` to which session the turn belongs: neither is passed on."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)

    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    model: str | None = Field(default=None, min_length=1, max_length=256)
    user: Id | None = None
    metadata: dict[str, str] | None = None
    stream: StrictBool | None = None

    def passed_on(self) -> dict[str, Any]:
        """The request to the model, with the messages as the client had them."""
        body = self.model_dump(exclude_unset=True, exclude={"user", "metadata"})
        metadata = {k: v for k, v in (self.metadata or {}).items() if k != "session_id"}
        named = {"metadata": metadata} if metadata else {}
        return {**body, **named, "messages": without_blocks(body["messages"])}


@dataclass(slots=True)
class Chat:
    """What the routes need: the model, and the turns that were stored lately."""

    server: Server
    upstream: Upstream | None
    turns: Turns = field(init=False)

    def __post_init__(self) -> None:
        self.turns = Turns(self.server)

    async def aclose(self) -> None:
        await self.turns.aclose()
        if self.upstream is not None:
            await self.upstream.aclose()


async def current_chat(request: Request) -> Chat:
    return request.app.state.chat


async def current_model(chat: Annotated[Chat, Depends(current_chat)]) -> Upstream:
    if chat.upstream is None:
        raise refused(501, NO_MODEL)
    return chat.upstream


Chatting = Annotated[Chat, Depends(current_chat)]
Model = Annotated[Upstream, Depends(current_model)]


def _documented(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """As of other routes, in OpenAI's shape; the model's server may refuse in other ways too."""
    found = documented_for_openai(404, 501, 502)
    found["default"] = {"model": OpenAIProblem, "description": "As the language model refuses"}
    shapes = {JSON: {"type": "object"}, EVENT_STREAM: {"type": "string"}}
    content = {kind: {"schema": shapes[kind]} for kind in kinds}
    return {**found, 200: {"content": content, "description": "As the language model answers"}}


@router.get("/models", dependencies=[reads], responses=_documented(JSON), response_class=Response)
async def list_models(model: Model) -> Response:
    """The models that the language model's server offers."""
    response = await model.models()
    return await _whole(model, response)


@router.post(
    "/chat/completions",
    dependencies=[reads, writes],
    responses=_documented(JSON, EVENT_STREAM),
    response_class=Response,
)
async def chat_completions(
    asked: ChatRequest, request: Request, caller: Asking, chat: Chatting, model: Model
) -> Response:
    """Have the model reply with the user's memories in mind, and remember the turn. The user is
    that of the key, or else named by `user` or the header X-User-Id; the session by the header
    X-Session-Id or `metadata.session_id`, or else it is that of the day (UTC)."""
    owner = owner_of(request.headers, caller, asked.user)
    given = (asked.metadata or {}).get("session_id")
    session = session_of(request.headers, given, f"chat-{datetime.now(UTC):%Y-%m-%d}")
    body = {**asked.passed_on(), "model": asked.model or model.options.model}
    turn = await chat.turns.begin(owner, session, body["messages"])
    body["messages"] = await _with_memories(chat.server, turn, body["messages"])

    async def keep(reply: str) -> bool:
        return await chat.turns.keep(turn, reply)

    response = await model.complete(body)
    if response.status_code == 200 and _is_stream(response):
        return StreamedReply(model, response, keep)
    answer = await _whole(model, response)
    if answer.status_code == 200:
        stored = await keep(said_in(bytes(answer.body), "message"))
        answer.headers["X-Memory-Stored"] = "true" if stored else "false"
    return answer


async def _with_memories(
    server: Server, turn: Turn, messages: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The conversation, with what is remembered that bears on what the user said."""
    if not turn.said:
        return messages
    wanted = Unsaid(texts_of(messages))
    query = Query(turn.owner, turn.said[:LONGEST_QUERY], limit=MOST_MEMORIES, wanted=wanted)
    with told():
        found = await server.reader.context(query, server.config.chat_memory_tokens)
    server.metrics.tokens.inc(found.tokens)
    return with_block(messages, block_of(found.text)) if found.text else messages


async def _whole(model: Upstream, response: httpx2.Response) -> Response:
    content = await model.read(response)
    if response.status_code != 200:
        return model.refusal(response, content)
    try:
        json.loads(content)
    except ValueError as error:
        raise refused(502, "the language model answered what cannot be read") from error
    return Response(content, media_type=JSON)


def _is_stream(response: httpx2.Response) -> bool:
    return response.headers.get("content-type", "").startswith(EVENT_STREAM)
