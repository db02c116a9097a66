"""Who may do what: every route with no key, a revoked key, another's key and another's ids."""

import time
import urllib.parse

import pytest

from lightmem_core.online.keys import REFRESH_S
from lightmem_core.online.tenants import stored_user
from lightmem_serve.tools import TOOLS

NUMBER = "47-11-08-15"  # what no time or id can contain by chance
SECRET = f"the vault opens with {NUMBER}"
BODIES = {
    ("POST", "/memories"): {"messages": [{"role": "user", "content": "x"}], "user_id": "victim"},
    ("POST", "/search"): {"query": "vault", "user_id": "victim"},
    ("POST", "/context"): {"query": "vault", "user_id": "victim", "tokens": 100},
    ("PUT", "/memories/{memory_id}"): {"text": "taken over"},
    ("POST", "/v1/chat/completions"): {
        "model": "m", "user": "victim", "messages": [{"role": "user", "content": "the vault?"}],
    },
}  # fmt: skip
MCP_HEADERS = {
    "accept": "application/json, text/event-stream",
    "MCP-Protocol-Version": "2025-11-25",
    "X-User-Id": "victim",
}
PAGES = ("user", "memory", "search", "changes")

ERASING = [("DELETE", "/memories"), ("POST", "/reset")]  # of the attacker's own keys, too
ADMIN_ONLY = [
    *(("DELETE", "/memories?user_id=victim"), ("POST", "/reset?confirm=all")),
    *(("GET", "/users"), ("GET", "/runs"), ("GET", "/metrics")),
]


@pytest.fixture(scope="module")
def guarded(start):
    """A server where a user of the tenant `acme` has a secret; `routes` are those documented."""
    with start(requests_per_minute=100_000) as running:
        running.owner = running.make_key(tenant="acme", scopes=["admin"])
        said = {"messages": [{"role": "user", "content": SECRET}], "user_id": "victim"}
        added = running.done("POST", "/memories", {**said, "async_mode": False}, key=running.owner)
        running.memory = added["results"][0]["id"]
        job = b'{"user_id":"victim","role":"user","content":"x","timestamp":1700000000}'
        kind = {"content-type": "application/jsonl"}
        made = running.done("POST", "/jobs", job, key=running.owner, headers=kind)
        running.job = made["id"]
        until = time.monotonic() + 60
        while (
            running.done("GET", f"/jobs/{running.job}", key=running.owner)["status"] != "completed"
        ):
            assert time.monotonic() < until
            time.sleep(0.05)
        schema = running.done("GET", "/openapi.json", key="")
        running.routes = [
            (method.upper(), path) for path, item in schema["paths"].items() for method in item
        ]
        yield running


def attack(running, method: str, path: str, key: str):
    """A well-formed request for what the victim has."""
    filled = path.format(memory_id=running.memory, user_id="victim", job_id=running.job)
    body = BODIES.get((method, path))
    headers = {}
    if (method, path) == ("POST", "/jobs"):
        body = b'{"user_id":"victim","role":"user","content":"injected","timestamp":1700000005}'
        headers = {"content-type": "application/jsonl"}
    if (method, path) in (("GET", "/memories"), ("DELETE", "/memories")):
        filled += "?user_id=victim"
    if path == "/reset":
        filled += "?confirm=all"
    return running.call(method, filled, body, key=key, headers=headers)


def use_tool(running, key: str, tool: str, **given):
    """What one call of a tool answers, with the victim named in the header."""
    asked = {"name": tool, "arguments": given}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": asked}
    return running.call("POST", "/mcp", call, key=key, headers=MCP_HEADERS)


def tools(running, key: str):
    """Every tool for agents, asked for what the victim has."""
    given = {
        "add_memory": {"text": "injected"},
        "search_memories": {"query": "vault"},
        "retrieve_memory": {"query": "vault"},
        "get_memory": {"memory_id": running.memory},
        "delete_memory": {"memory_id": running.memory},
    }
    return {tool.name: use_tool(running, key, tool.name, **given.get(tool.name, {}))
            for tool in TOOLS}  # fmt: skip


def pages(running, key: str):
    """Every page for people, asked for what the victim has, with the key in its cookie."""
    cookie = {"Cookie": f"lightmem_key={key}", "X-User-Id": "victim"}
    for user in ("victim", "@acme/victim"):
        named = urllib.parse.urlencode({"user": user, "id": running.memory, "q": "vault"})
        for page in PAGES:
            yield running.call("GET", f"/explore/{page}?{named}", key="", headers=cookie)


def state(running) -> list:
    """All that the victim has, as its owner sees it."""
    found = running.done("GET", "/memories?user_id=victim", key=running.owner)["results"]
    return [*found, running.done("GET", f"/jobs/{running.job}", key=running.owner)]


def test_without_a_valid_key_every_route_answers_401(guarded):
    revoked = guarded.make_key(tenant="acme", scopes=["admin"])
    assert guarded.call("GET", "/memories?user_id=victim", key=revoked).status == 200
    guarded.ring.revoke(guarded.keys[revoked])
    time.sleep(1.2 * REFRESH_S)
    before = state(guarded)
    closed = [route for route in guarded.routes if route != ("GET", "/health")]
    assert len(closed) >= 18
    for method, path in closed:
        for key in ("", "lm_x_y", revoked, revoked[:-1], "' OR 1=1 --"):
            reply = attack(guarded, method, path, key)
            assert reply.status == 401, (method, path, key)
            assert SECRET not in str(reply.body)
    for key in ("", "lm_x_y", revoked, revoked[:-1]):
        assert {reply.status for reply in tools(guarded, key).values()} == {401}
        for page in pages(guarded, key):
            assert NUMBER not in page.body
            assert "Sign in" in page.body
    assert state(guarded) == before


@pytest.mark.parametrize(
    "asked",
    [{"scopes": ["admin"]}, {"tenant": "rival", "scopes": ["admin"]},
     {"tenant": "acme", "user": "mallory", "scopes": ["admin"]},
     {"tenant": "acme-2", "scopes": ["admin"]}, {"user": "victim", "scopes": ["admin"]}],
)  # fmt: skip
def test_no_foreign_key_sees_or_changes_anything(guarded, asked):
    """The same requests by another tenant, another user, and a user of the same name."""
    key = guarded.make_key(**asked)
    before = state(guarded)
    for method, path in sorted(guarded.routes, key=ERASING.__contains__):
        reply = attack(guarded, method, path, key)
        assert reply.status < 500, (method, path, reply)
        assert NUMBER not in str(reply.body), (method, path)
        if "{memory_id}" in path or "{job_id}" in path:
            missing = path.format(memory_id="0" * 32, job_id="job_0")
            same = guarded.call(method, missing, BODIES.get((method, path)), key=key)
            assert (reply.status, reply.body) == (404, same.body), (method, path)
    for name, reply in tools(guarded, key).items():
        assert NUMBER not in str(reply.body), name
        assert reply.status < 500, name
    for page in pages(guarded, key):
        assert NUMBER not in page.body
    assert state(guarded) == before


@pytest.mark.parametrize(
    ("scopes", "open_to"),
    [(["read"], {"GET", "SEARCH"}), (["write"], {"WRITE"})],
)
def test_a_scope_opens_its_routes_alone(guarded, scopes, open_to):
    key = guarded.make_key(tenant="acme", scopes=scopes)
    read = guarded.call("GET", f"/memories/{guarded.memory}", key=key).status
    search = guarded.call("POST", "/search", BODIES["POST", "/search"], key=key).status
    write = guarded.call("POST", "/users/victim/flush", key=key).status
    expected = (200, 200, 403) if "GET" in open_to else (403, 403, 200)
    assert (read, search, write) == expected
    for method, path in ADMIN_ONLY:
        assert guarded.call(method, path, key=key).status == 403
    assert SECRET in str(state(guarded))


@pytest.mark.parametrize(
    "user", ["victim", "@acme/victim", "@/victim", "@/@agent/x", "acme/victim"]
)
def test_no_name_reaches_into_another_tenant(guarded, user):
    quoted = urllib.parse.quote(user, safe="")
    for key in (guarded.key, guarded.make_key(tenant="rival", scopes=["admin"])):
        body = {"query": "vault", "top_k": 100}
        for asked in ({"user_id": user}, {"filters": {"user_id": user}},
                      {"filters": {"AND": [{"user_id": user}]}, "user_id": "nobody"},
                      {"filters": {"OR": [{"user_id": user}, {"NOT": [{"user_id": "x"}]}]},
                       "user_id": "nobody"}, {"agent_id": user}, {"run_id": user}):  # fmt: skip
            reply = guarded.call("POST", "/search", {**body, **asked}, key=key)
            assert reply.status in (200, 400, 422)
            assert NUMBER not in str(reply.body)
        reply = guarded.call("GET", f"/memories?user_id={quoted}", key=key)
        assert NUMBER not in str(reply.body)


def test_users_of_other_tenants_are_not_listed(guarded):
    for tenant, user in (("", "plain"), ("acme", "extra"), ("rival", "ryan")):
        key = guarded.make_key(tenant=tenant, scopes=["admin"])
        said = {"messages": [{"role": "user", "content": "hello there"}], "user_id": user}
        guarded.done("POST", "/memories", said, key=key)
        listed = guarded.done("GET", "/users", key=key)["results"]
        assert user in listed
        assert not [name for name in listed if "@" in name]
        assert ("extra" in listed) == (tenant == "acme")


def test_the_tools_and_pages_do_show_it_to_whom_it_belongs(guarded):
    """That the attacks above ask what would be answered."""
    own = guarded.make_key(tenant="acme", scopes=["read", "write"])
    replies = {name: use_tool(guarded, own, name, query="vault") for name in
               ("search_memories", "retrieve_memory")}  # fmt: skip
    replies["get_memory"] = use_tool(guarded, own, "get_memory", memory_id=guarded.memory)
    for name, reply in replies.items():
        assert SECRET in str(reply.body), name
    assert sum(SECRET in page.body for page in pages(guarded, own)) >= 2


def test_a_key_of_one_user_needs_no_name_and_takes_no_other(guarded):
    key = guarded.make_key(tenant="acme", user="victim", scopes=["read"])
    found = guarded.done("POST", "/search", {"query": "vault"}, key=key)["results"]
    assert SECRET in found[0]["memory"]
    reply = guarded.call("POST", "/search", {"query": "vault", "user_id": "extra"}, key=key)
    assert reply.status == 403
    reply = guarded.call(
        "POST", "/search", {"query": "x", "filters": {"user_id": "extra"}}, key=key
    )
    assert "hello there" not in str(reply.body)


def test_bearer_and_token_are_other_ways_to_give_the_key(guarded):
    for header in ({"Authorization": f"Bearer {guarded.owner}"},
                   {"Authorization": f"Token {guarded.owner}"}):  # fmt: skip
        assert guarded.call("GET", "/memories?user_id=victim", key="", headers=header).status == 200
    wrong = {"Authorization": "Bearer lm_0_0"}
    reply = guarded.call("GET", "/memories?user_id=victim", key=guarded.owner, headers=wrong)
    assert reply.status == 401


def test_a_key_makes_as_many_requests_as_it_may(guarded):
    key = guarded.make_key(tenant="acme", per_minute=3)
    replies = [guarded.call("GET", "/memories?user_id=x", key=key) for _ in range(4)]
    assert [reply.status for reply in replies] == [200, 200, 200, 429]
    assert int(replies[-1].headers["retry-after"]) >= 1
    assert guarded.call("GET", "/memories?user_id=x", key=guarded.owner).status == 200


@pytest.fixture(scope="module")
def unguarded(start):
    with start(auth="off") as running:
        yield running


def test_without_keys_this_machine_is_served(unguarded):
    unguarded.say("open", "hello there")
    assert unguarded.texts("open")


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"},
     {"X-Forwarded-For": "203.0.113.7"}, {"Forwarded": "for=203.0.113.7"}],
)  # fmt: skip
def test_without_keys_nothing_from_elsewhere_is_served(unguarded, headers):
    assert unguarded.call("GET", "/memories?user_id=open", headers=headers).status == 403


def test_a_user_of_the_default_tenant_is_who_the_batch_knows():
    assert stored_user("", "ada") == "ada"
