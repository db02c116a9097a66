"""MCP over streamable HTTP at /mcp: the tools for agents.

Each request is answered for itself and carries its own key: there are no sessions that another key
could go on with, and no streams that stand open.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import mcp_types as types
from mcp.server import Server as Protocol
from mcp.server import ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import GenerateJsonSchema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from lightmem_core.formats.fields import clean
from lightmem_serve.access import current_caller
from lightmem_serve.backend import Server
from lightmem_serve.errors import MCP_PATH, refused, told
from lightmem_serve.schemas import DEFAULT_SESSION
from lightmem_serve.tools import TOOLS, Asked, Tool
from lightmem_serve.whose import owner_of, session_of

USERS = frozenset({"user_id", "user", "agent_id", "run_id"})
INSTRUCTIONS = (
    "The long-term memory of one user. Search it before you answer what may have been said before, "
    "and add what is worth remembering. Whose memory it is need not be said."
)
log = logging.getLogger(__name__)
Context = ServerRequestContext[Any, Request]


@dataclass(slots=True)
class Tools:
    """The tools of a server, as an ASGI application."""

    server: Server
    manager: StreamableHTTPSessionManager

    @classmethod
    def of(cls, server: Server) -> "Tools":
        protocol = Protocol(
            "lightmem",
            version=version("lightmem-ray"),
            instructions=INSTRUCTIONS,
            on_list_tools=_listed,
            on_call_tool=lambda context, asked: tools.called(context, asked),
        )
        size = server.config.limits.body_bytes
        manager = StreamableHTTPSessionManager(protocol, stateless=True, max_request_body_size=size)
        tools = cls(server, manager)
        return tools

    @property
    def route(self) -> Route:
        """Only POST: the server has nothing to say that it is not asked for."""
        return Route(MCP_PATH, endpoint=self, methods=["POST"])

    def run(self) -> AbstractAsyncContextManager[None]:
        """As long as this is open requests are answered; once only."""
        return self.manager.run()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.manager.handle_request(scope, receive, send)

    async def called(
        self, context: Context, asked: types.CallToolRequestParams
    ) -> types.CallToolResult:
        """What a tool gives, or in one line why it cannot, for the model to read."""
        tool = BY_NAME.get(asked.name)
        if tool is None:
            return _failed(f"there is no tool {clean(asked.name)!r:.80}")
        assert context.request is not None
        try:
            given = tool.takes.model_validate(asked.arguments or {})
            return _given(await self._run(tool, given, context.request))
        except ValidationError as error:
            return _failed(_wrong(tool, error))
        except HTTPException as error:
            return _failed(error.detail)
        except Exception:  # whatever it is, the client is told of no more
            log.exception("the tool %s failed", tool.name)
            return _failed("a fault of the server: its log has more")

    async def _run(self, tool: Tool, given: BaseModel, request: Request) -> BaseModel:
        caller = await current_caller(request)
        if not caller.may(tool.scope):
            raise refused(403, f"this needs a key with the scope {tool.scope}")
        owner = owner_of(request.headers, caller)
        session = session_of(request.headers, None, DEFAULT_SESSION)
        limits = self.server.config.limits
        with told():
            async with asyncio.timeout(limits.work_seconds if tool.long else limits.seconds):
                return await tool.run(Asked(self.server, caller, owner, session), given)


class Untitled(GenerateJsonSchema):
    """A title for each field tells a model nothing that its name does not."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    found = model.model_json_schema(schema_generator=Untitled)
    return {key: value for key, value in found.items() if key not in ("title", "description")}


def _shown(tool: Tool) -> types.Tool:
    reads = tool.scope == "read"
    hints = types.ToolAnnotations(
        read_only_hint=reads, destructive_hint=tool.destroys, idempotent_hint=True
    )
    return types.Tool(
        name=tool.name,
        description=tool.about,
        input_schema=_schema(tool.takes),
        output_schema=_schema(tool.gives),
        annotations=hints,
    )


BY_NAME: Mapping[str, Tool] = {tool.name: tool for tool in TOOLS}
SHOWN = [_shown(tool) for tool in TOOLS]


async def _listed(
    context: Context, asked: types.PaginatedRequestParams | None
) -> types.ListToolsResult:
    return types.ListToolsResult(tools=SHOWN)


def _given(result: BaseModel) -> types.CallToolResult:
    """As data, and as its text for clients that know no other."""
    data = result.model_dump(mode="json", exclude_none=True)
    text = types.TextContent(type="text", text=json.dumps(data, ensure_ascii=False))
    return types.CallToolResult(content=[text], structured_content=data)


def _failed(reason: str) -> types.CallToolResult:
    text = types.TextContent(type="text", text=reason)
    return types.CallToolResult(content=[text], is_error=True)


def _wrong(tool: Tool, error: ValidationError) -> str:
    """What is wrong with the arguments, in one line."""
    problems = []
    for wrong in error.errors()[:10]:
        place = clean(".".join(map(str, wrong["loc"])))[:100]
        if wrong["type"] != "extra_forbidden":
            problems.append(f"{place}: {wrong['msg']}" if place else wrong["msg"])
        elif place in USERS:
            problems.append(f"leave {place} out: the key says whose memories these are")
        else:
            takes = ", ".join(tool.takes.model_fields) or "nothing"
            problems.append(f"there is no {place!r}; {tool.name} takes: {takes}")
    return clean("; ".join(problems))
