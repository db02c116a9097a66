"""The tools for agents, through the official client over HTTP."""

import json
import traceback
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from lightmem_serve.tools import TOOLS

PORTO = "I moved to Porto in May"
ERAS = ["auto", "legacy"]  # with and without the handshake of older protocols


@asynccontextmanager
async def connected(server, key: str | None = None, era: str = "auto", **headers: str):
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if key != "":
        given["Authorization"] = f"Bearer {key or server.key}"
    async with httpx2.AsyncClient(headers=given, timeout=30) as http:
        transport = streamable_http_client(f"{server.url}/mcp", http_client=http)
        async with Client(transport, mode=era) as client:
            yield client


def run(call, *args: Any) -> Any:
    return anyio.run(call, *args)


def use(server, tool: str, key: str | None = None, user: str = "", **given: Any) -> Any:
    """What one tool gives, or the reason why it cannot."""

    async def used():
        headers = {"X_User_Id": user} if user else {}
        async with connected(server, key, **headers) as client:
            result = await client.call_tool(tool, given)
            (content,) = result.content
            return content.text if result.is_error else result.structured_content

    return run(used)


@pytest.mark.parametrize("era", ERAS)
def test_an_agent_remembers_finds_and_forgets(server, era):
    key = server.make_key(user=f"mcp-{era}", scopes=["read", "write"])

    async def round_trip():
        async with connected(server, key, era) as client:
            shown = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert shown.keys() == {tool.name for tool in TOOLS}
            assert "memory of one user" in client.instructions
            added = await client.call_tool("add_memory", {"text": PORTO})
            (noted,) = added.structured_content["results"]
            again = await client.call_tool("add_memory", {"text": PORTO})
            assert again.structured_content["results"] == [{**noted, "state": "known"}]
            found = await client.call_tool("search_memories", {"query": "Porto", "limit": 3})
            (best,) = found.structured_content["memories"]
            assert (best["id"], best["text"]) == (noted["id"], PORTO)
            assert json.loads(found.content[0].text) == found.structured_content
            listed = await client.call_tool("list_memories", {})
            del best["score"]
            assert listed.structured_content == {"memories": [best]}
            more = {"messages": [{"role": "user", "content": "I like jazz"}], "force_extract": True}
            extracted = await client.call_tool("add_memory", more)
            assert extracted.structured_content["extracted"] == 2
            listed = await client.call_tool("list_memories", {"limit": 1})
            (first,) = listed.structured_content["memories"]
            details = await client.call_tool("get_memory", {"memory_id": first["id"]})
            assert details.structured_content["state"] == "stored"
            assert details.structured_content["sources"] == ["default 1"]
            was = await client.call_tool("get_memory", {"memory_id": noted["id"]})
            assert was.structured_content["state"] == "stored"
            assert was.structured_content["sources"] == ["default 0"]
            gone = await client.call_tool("delete_memory", {"memory_id": first["id"]})
            assert gone.structured_content == {"deleted": first["id"]}
            left = await client.call_tool("list_memories", {})
            assert [m["text"] for m in left.structured_content["memories"]] == [PORTO]
            slept = await client.call_tool("sleep", {})
            assert slept.structured_content.keys() == {"decisions"}

    run(round_trip)
    assert server.texts(f"mcp-{era}") == {PORTO}


def test_the_names_of_the_reference_do_the_same(server):
    key = server.make_key(user="mcp-names", scopes=["read", "write"])
    turn = {"user_input": PORTO, "assistant_reply": "Nice", "timestamp": "2023/05/20 (Sat) 00:44"}
    added = use(server, "add_memory", key, **turn, force_segment=True, force_extract=True)
    assert [noted["state"] for noted in added["results"]] == ["new", "new"]
    (found, *_) = use(server, "retrieve_memory", key, query="Porto", limit=10)["memories"]
    assert (found["text"], found["said_at"][:16]) == (PORTO, "2023-05-20T00:44")
    old = {"top_k": 20, "keep_top_n": 10, "score_threshold": 0.8}
    assert "decisions" in use(server, "offline_update", key, **old)
    assert use(server, "get_timestamp", key)["timestamp"][:2] == "20"
    assert use(server, "show_lightmem_instance", key)["shards"] == 1


def test_no_tool_shows_a_key_or_how_the_store_is_reached(server):
    memory = server.config.memory
    key = server.make_key(user="mcp-secrets", scopes=["read", "write"])
    hidden = [*memory.store.storage_options, *memory.store.storage_options.values()]
    hidden += [memory.store.uri, memory.llm.options["base_url"], server.key, key]
    hidden += ["storage_options", "api_key", "base_url"]
    given: dict[str, dict[str, Any]] = {
        "add_memory": {"text": PORTO},
        "search_memories": {"query": "Porto"},
        "retrieve_memory": {"query": "Porto"},
        "get_memory": {"memory_id": "0" * 32},
        "delete_memory": {"memory_id": "0" * 32},
    }
    for tool in TOOLS:
        told = json.dumps(use(server, tool.name, key, **given.get(tool.name, {})))
        assert [text for text in hidden if text in told] == [], tool.name
    shown = use(server, "show_lightmem_instance", key)
    assert shown.keys() == {"version", "embedder", "shards"}


def test_pages_of_a_list_and_filters_of_a_search(server):
    key = server.make_key(user="mcp-pages", scopes=["read", "write"])
    for number in range(5):
        text = {"text": f"fact {number} of Porto", "metadata": {"even": number % 2 == 0}}
        use(server, "add_memory", key, **text)
    seen, after = [], ""
    while after is not None:
        page = use(server, "list_memories", key, limit=2, after=after)
        seen += [memory["text"] for memory in page["memories"]]
        after = page.get("next")
    assert seen == [f"fact {number} of Porto" for number in (4, 3, 2, 1, 0)]
    found = use(server, "search_memories", key, query="Porto", filters={"even": True})
    assert {m["text"] for m in found["memories"]} == {f"fact {n} of Porto" for n in (0, 2, 4)}


def test_the_user_is_that_of_the_key_whatever_the_model_says(server):
    server.say("mcp-victim", PORTO)
    key = server.make_key(user="mcp-mine", scopes=["read", "write"])
    for tool, given in (("add_memory", {"text": "I was here"}), ("list_memories", {}),
                        ("search_memories", {"query": "Porto"})):  # fmt: skip
        refused = use(server, tool, key, user_id="mcp-victim", **given)
        assert refused == "leave user_id out: the key says whose memories these are"
    filters: Any
    for filters in ({"user_id": "mcp-victim"}, {"OR": [{"user_id": "*"}, {"topic": "x"}]}):
        found = use(server, "search_memories", key, query="Porto", filters=filters)
        assert PORTO not in str(found)
    assert "does not open" in use(server, "list_memories", key, user="mcp-victim")
    assert server.texts("mcp-victim") == {PORTO}
    assert server.texts("mcp-mine") == set()


def test_a_key_of_a_tenant_names_the_user_in_a_header(server):
    key = server.make_key(tenant="mcp-acme", scopes=["read", "write"])
    use(server, "add_memory", key, user="ada", text=PORTO)
    (mine,) = use(server, "list_memories", key, user="ada")["memories"]
    assert use(server, "list_memories", key, user="bob") == {"memories": []}
    for tool in ("get_memory", "delete_memory"):
        given = {"memory_id": mine["id"]}
        assert use(server, tool, key, user="bob", **given) == "there is no such memory"
        rival = server.make_key(tenant="mcp-rival", scopes=["admin"])
        assert use(server, tool, rival, user="ada", **given) == "there is no such memory"
    assert "X-User-Id" in use(server, "list_memories", key)
    assert use(server, "list_memories", key, user="@mcp-acme/ada").startswith("an id does not")
    assert len(use(server, "list_memories", key, user="ada")["memories"]) == 1


@pytest.mark.parametrize("key", ["", "lm_x_y"])
@pytest.mark.parametrize("era", ERAS)
def test_without_a_valid_key_there_are_no_tools(server, key, era):
    async def listed():
        async with connected(server, key, era) as client:
            await client.list_tools()

    with pytest.raises(ExceptionGroup) as caught:
        run(listed)
    assert "give a valid key" in "".join(traceback.format_exception(caught.value))
    reply = server.call("POST", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "ping"}, key=key)
    assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(
    ("tool", "given", "words"),
    [
        ("fly", {}, "there is no tool 'fly'"),
        ("add_memory", {}, "give one of text, messages and user_input"),
        ("add_memory", {"text": "a", "user_input": "b"}, "give one of text"),
        ("add_memory", {"text": "a", "timestamp": "soon"}, "soon"),
        ("add_memory", {"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
        ("search_memories", {}, "query: Field required"),
        ("search_memories", {"query": "a", "limit": 0}, "limit: "),
        ("search_memories", {"query": "a", "filters": {"AND": 1}}, "AND"),
        ("search_memories", {"query": "a", "top": 3}, "there is no 'top'; search_memories takes:"),
        ("get_memory", {"memory_id": "0" * 32}, "there is no such memory"),
        ("list_memories", {"after": "nothing"}, "begin with the first page"),
    ],
)
def test_errors_tell_the_model_what_to_do_in_one_line(server, tool, given, words):
    told = use(server, tool, user="mcp-errors", **given)
    assert isinstance(told, str)
    assert words in told
    assert "\n" not in told


@pytest.mark.parametrize(("scope", "refused"), [("read", "write"), ("write", "read")])
def test_a_scope_opens_its_tools_alone(server, scope, refused):
    key = server.make_key(user="mcp-scopes", scopes=[scope])
    given: dict[str, dict] = {"add_memory": {"text": "x"}, "search_memories": {"query": "x"}}
    told = {name: use(server, name, key, **args) for name, args in given.items()}
    failed = [name for name, result in told.items() if isinstance(result, str)]
    assert failed == ["add_memory" if refused == "write" else "search_memories"]
    assert f"the scope {refused}" in told[failed[0]]


def test_many_agents_at_once_each_see_their_own(server):
    keys = {f"mcp-many-{n}": server.make_key(user=f"mcp-many-{n}") for n in range(4)}
    seen: dict[str, list] = {}

    async def agent(user: str, key: str):
        async with connected(server, key) as client:
            for number in range(5):
                await client.call_tool("add_memory", {"text": f"{user} says {number}"})
            found = await client.call_tool("list_memories", {})
            seen[user] = [memory["text"] for memory in found.structured_content["memories"]]

    async def together():
        async with anyio.create_task_group() as group:
            for user, key in keys.items():
                group.start_soon(agent, user, key)

    run(together)
    assert seen == {user: [f"{user} says {n}" for n in (4, 3, 2, 1, 0)] for user in keys}


def test_no_stream_stands_open(server):
    for method in ("GET", "DELETE"):
        assert server.call(method, "/mcp", headers={"Accept": "text/event-stream"}).status == 405
    assert 'route="/mcp"' in server.call("GET", "/metrics").body
