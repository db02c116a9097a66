"""The Python clients against a real server, and against one that fails."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lightmem_serve.client import (
    AccessError,
    ApiError,
    AsyncMemoryClient,
    BusyError,
    MemoryClient,
    NotFoundError,
)
from lightmem_serve.models import Memory

PORTO = "I moved to Porto in May"


@pytest.fixture
def client(server) -> Iterator[MemoryClient]:
    with MemoryClient(server.url, server.key) as made:
        yield made


def test_a_round_trip_under_mem0s_names(client):
    added = client.add(PORTO, user_id="c-trip", metadata={"by": "hand"}, async_mode=False)
    (memory,) = client.get_all(user_id="c-trip").results
    assert isinstance(memory, Memory)
    assert added.results[0].id == memory.id
    assert client.get(memory.id) == memory
    (found,) = client.search("Porto", user_id="c-trip", top_k=3).results
    assert found.memory == memory.memory
    assert client.search("Porto", filters={"user_id": "c-trip", "by": "foot"}).results == []
    assert "Porto" in client.context("Porto", 100, user_id="c-trip").context
    assert client.update(memory.id, text="I moved to Faro").memory.memory == "I moved to Faro"
    client.delete(memory.id)
    assert [event.event for event in client.history(memory.id)] == ["ADD", "UPDATE", "DELETE"]
    assert client.get_all(user_id="c-trip").results == []
    assert client.delete_all(user_id="c-trip").counts
    with pytest.raises(NotFoundError):
        client.get(memory.id)


def test_answers_can_be_read_as_mem0s_dictionaries(client):
    messages = [{"role": "user", "content": PORTO}, {"role": "assistant", "content": "How nice"}]
    client.add(messages, user_id="c-dict")
    client.flush("c-dict")
    found = client.search("Porto", user_id="c-dict")
    assert found["results"][0]["memory"] == found.results[0].memory
    with pytest.raises(KeyError):
        found["model_fields"]


def test_a_user_of_any_name_is_reached(client):
    for user in ("a/b", "ü ö?&#%", "' OR 1=1 --"):
        client.add(f"this is {user}", user_id=user)
        assert client.flush(user).entries == 1
        assert len(client.get_all(user_id=user).results) == 1
        assert sum(client.sleep(user).decisions.values()) == 0
    assert {"a/b", "ü ö?&#%"} <= set(client.users(limit=1_000).results)


def test_a_bulk_upload(client):
    said = {"user_id": "c-job", "role": "user", "timestamp": 1_700_000_000}
    job = client.create_job({**said, "content": f"fact {n}"} for n in range(3))
    until = time.monotonic() + 60
    while job.status != "completed":
        assert time.monotonic() < until
        time.sleep(0.05)
        job = client.get_job(job.id)
    assert job.request_counts.completed == 3
    assert job in client.list_jobs(limit=100).data
    with pytest.raises(ApiError, match="has ended"):
        client.cancel_job(job.id)
    assert client.job_errors(job.id) == []


def test_which_lines_of_an_upload_were_wrong_is_told(client):
    wrong = {"user_id": "c-wrong", "role": "user", "content": "x", "custom_id": "row-1"}
    job = client.create_job([{**wrong, "timestamp": "?"}])
    (line,) = client.job_errors(job.id)
    assert (line.line, line.custom_id, line.error.code) == (1, "row-1", "bad_time")


def test_the_awaited_client_does_the_same(server):
    async def trip() -> tuple:
        async with AsyncMemoryClient(server.url, server.key) as client:
            await asyncio.gather(*(client.add(f"fact {n}", user_id="c-async") for n in range(5)))
            await client.flush("c-async")
            found = await client.search("fact", user_id="c-async", limit=100)
            return found, await client.get_all(user_id="c-async"), await client.health()

    found, listed, health = asyncio.run(trip())
    assert {memory.id for memory in found.results} == {memory.id for memory in listed.results}
    assert len(listed.results) == 5
    assert health.status == "ok"


def test_an_error_says_what_is_wrong_and_where_to_look(server, client):
    with pytest.raises(ApiError, match=r"body\.query.*\(request [0-9a-f]{16}\)") as caught:
        client.search("", user_id="c-err")
    assert caught.value.status == 422
    with (
        MemoryClient(server.url, "lm_0_0") as stranger,
        pytest.raises(AccessError, match="valid key"),
    ):
        stranger.get_all(user_id="ada")
    with (
        MemoryClient("http://127.0.0.1:9", retries=0) as nowhere,
        pytest.raises(ApiError, match=r"127\.0\.0\.1:9 did not answer GET /health"),
    ):
        nowhere.health()


class Failing(BaseHTTPRequestHandler):
    """Answers with the next status of its plan; 0 closes the connection, 1 answers after a second,
    when its client may have gone."""

    plan: list[int]
    seen: list[str]

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.seen.append(self.command)
        status = self.plan.pop(0)
        if not status:
            self.close_connection = True
            return
        if status == 1:
            time.sleep(1)
            status = 200
        self.send_response(status)
        self.send_header("retry-after", "0")
        empty = {"results": [], "decisions": {}, "entries": 0, "counts": {}}
        body = json.dumps({"detail": "busy", "message": "done", **empty}).encode()
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _answer

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def failing() -> Iterator[type[Failing]]:
    kind = type("Planned", (Failing,), {"plan": [], "seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    kind.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield kind
    server.shutdown()
    server.server_close()


def test_what_can_be_sent_again_is(failing):
    with MemoryClient(failing.url, retries=3) as client:
        failing.plan[:] = [503, 0, 429, 200]
        assert client.add("hello", user_id="ada").results == []
        failing.plan[:] = [0, 200]
        assert client.search("hello", user_id="ada").results == []
        failing.plan[:] = [429, 200]
        assert client.delete("m1").message == "done"
    assert len(failing.seen) == 8


WORK = [
    lambda client: client.sleep("ada"),
    lambda client: client.flush("ada"),
    lambda client: client.delete_all(user_id="ada"),
    lambda client: client.reset(),
]


@pytest.mark.parametrize("work", WORK)
def test_work_is_waited_for_and_never_asked_for_twice_at_once(failing, work):
    with MemoryClient(failing.url, timeout_s=0.3, work_timeout_s=20, retries=3) as client:
        failing.plan[:] = [503, 0, 1]
        work(client)
    assert len(failing.seen) == 3
    failing.plan[:] = [1, 200]
    with (
        MemoryClient(failing.url, timeout_s=0.3, work_timeout_s=0.3, retries=3) as client,
        pytest.raises(ApiError, match="did not answer"),
    ):
        work(client)
    assert len(failing.seen) == 4


def test_mem0s_arguments_by_name_and_a_key_in_the_wrong_place(server):
    with MemoryClient(api_key=server.key, host=server.url) as client:
        assert client.users(limit=1)
    with pytest.raises(ValueError, match="host is the server's URL"):
        MemoryClient(server.key)


def test_a_reset_erases_all_users_of_the_tenant_and_nobody_else(server):
    own = server.make_key(tenant="c-reset", scopes=["admin"])
    with MemoryClient(server.url, own) as client:
        client.add(PORTO, user_id="ann")
        client.add(PORTO, user_id="ben")
        server.say("c-stays", PORTO)
        assert client.reset().counts["users"] == 2
        assert client.users().results == []
    assert server.texts("c-stays") == {PORTO}


def test_what_may_have_been_done_is_not_done_again(failing):
    with MemoryClient(failing.url, retries=3) as client:
        failing.plan[:] = [0, 200]
        with pytest.raises(ApiError, match="did not answer DELETE"):
            client.delete("m1")
        failing.plan[:] = [503, 503, 503, 503]
        with pytest.raises(BusyError, match="503: busy"):
            client.search("hello", user_id="ada")
    assert failing.seen == ["DELETE", *["POST"] * 4]
