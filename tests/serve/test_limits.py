"""What a server does with requests that are too large, too deep, too slow, or no requests."""

import json
import re
import socket
import threading
import time

import pytest

LIMITS = {
    "body_bytes": 20_000,
    "depth": 8,
    "messages": 3,
    "characters": 1_000,
    "seconds": 2.0,
    "in_flight": 4,
    "chats": 2,
}
SAID = {"messages": [{"role": "user", "content": "hello"}], "user_id": "limits"}


@pytest.fixture(scope="module")
def strict(start):
    with start(limits=LIMITS) as running:
        yield running


def metadata(depth: int) -> dict:
    return {**SAID, "metadata": json.loads('{"a":' * depth + "1" + "}" * depth)}


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"x" * 20_001, 413), (b"{" + b" " * 20_100 + b"}", 413), (metadata(6), 200),
     (metadata(9), 422), (b"[" * 9_000, 422), (b'{"a":' * 3_000, 422), (b"{", 422), (b"", 422),
     (b"\xff\xfe", 422), (b"null", 422), (b'{"user_id":"\\ud800"}', 422),
     ({**SAID, "user_id": "x" * 257}, 422), ({**SAID, "user_id": "a\0b"}, 422),
     ({**SAID, "user_id": "@acme/x"}, 422), ({**SAID, "messages": SAID["messages"] * 4}, 422),
     ({**SAID, "messages": []}, 422), ({**SAID, "messages": "x" * 1_001}, 422),
     ({**SAID, "messages": [{"role": "user", "content": " "}]}, 422),
     ({**SAID, "timestamp": "never"}, 400), ({**SAID, "timestamp": -5}, 400),
     ({**SAID, "expiration_date": "soon"}, 422), ({**SAID, "prompt": "be kind"}, 400),
     ({**SAID, "surprise": 1}, 422)],
)  # fmt: skip
def test_a_wrong_body_is_refused_with_a_reason(strict, body, status):
    reply = strict.call("POST", "/memories", body)
    assert reply.status == status, reply
    assert status == 200 or reply.body["detail"]


@pytest.mark.parametrize(
    "filters",
    [{"AND": {}}, {"AND": []}, {"x": {"like": "y"}}, {"created_at": {"gt": "x"}}, {"": 1},
     {"OR": [{"OR": [{"OR": [1]}]}]}, {"x": {"in": "y"}}, {"NOT": 3}],
)  # fmt: skip
def test_a_wrong_filter_is_refused_with_a_reason(strict, filters):
    body = {"query": "x", "user_id": "limits", "filters": filters}
    reply = strict.call("POST", "/search", body)
    assert reply.status == 400
    assert "\n" not in reply.body["detail"]


def test_of_two_users_in_a_query_neither_is_taken(strict):
    for method in ("GET", "DELETE"):
        reply = strict.call(method, "/memories?user_id=limits&user_id=other")
        assert (reply.status, "stands twice" in reply.body["detail"]) == (400, True)


def test_no_answer_repeats_a_secret_that_was_sent_wrongly(strict):
    body = {**SAID, "user_id": {"password": "hunter2"}}
    assert "hunter2" not in str(strict.call("POST", "/memories", body).body)


def test_each_answer_has_the_id_of_its_request(strict):
    given = {"X-Request-ID": "trace-17"}
    paths = ("/health", "/memories/x", "/nowhere", "/memories")
    for path in paths:
        assert strict.call("GET", path, headers=given).headers["x-request-id"] == "trace-17"
        made = strict.call("GET", path, headers={"X-Request-ID": "bad id\t"}).headers
        assert len(made["x-request-id"]) == 16


def raw(strict, text: bytes, path: str = "/memories", key: bool = True) -> socket.socket:
    host, port = strict.url.removeprefix("http://").split(":")
    link = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\n"
    head += f"X-API-Key: {strict.key}\r\n" if key else ""
    link.sendall(head.encode() + b"Content-Type: application/json\r\n" + text)
    return link


def status_of(link: socket.socket) -> int:
    with link:
        return int(link.recv(12).split()[1])


def test_a_body_that_does_not_end_is_not_waited_for(strict):
    started = time.monotonic()
    assert status_of(raw(strict, b"Content-Length: 100\r\n\r\n{")) == 504
    assert time.monotonic() - started < 10


def test_a_body_without_a_length_is_bounded_too(strict):
    chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
    assert status_of(raw(strict, b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 3)) == 413


def test_more_at_once_than_the_server_bears_are_told_to_come_again(strict):
    held = [raw(strict, b"Content-Length: 100\r\n\r\n{") for _ in range(4)]
    until = time.monotonic() + 1.5
    while (reply := strict.call("GET", "/memories?user_id=limits")).status == 200:
        assert time.monotonic() < until
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert [status_of(link) for link in held] == [504] * 4
    assert strict.call("GET", "/health").status == 200


@pytest.mark.parametrize(("path", "status"), [("/health", 405), ("/", 405), ("/memories", 401)])
def test_who_has_no_key_is_answered_before_the_end_of_a_body(strict, path, status):
    link = raw(strict, b"Content-Length: 100\r\n\r\n{", path, key=False)
    assert status_of(link) == status


def test_forms_that_do_not_end_take_no_place_of_others(strict):
    slow = b"Content-Length: 100\r\n\r\nkey="
    held = [raw(strict, slow, "/explore/login", key=False) for _ in range(40)]
    replies = [strict.call("GET", path) for path in ("/health", "/memories?user_id=limits")]
    assert [reply.status for reply in replies] == [200, 200]
    statuses = [status_of(link) for link in held]
    assert set(statuses) == {503, 504}
    assert statuses.count(504) == 32
    large = raw(strict, b"Content-Length: 20000\r\n\r\n", "/explore/login", key=False)
    assert status_of(large) == 413


def test_chats_and_all_else_take_no_place_of_each_other(strict):
    chat = "/v1/chat/completions"
    held = [raw(strict, b"Content-Length: 100\r\n\r\n{", chat) for _ in range(2)]
    until = time.monotonic() + 5
    while (reply := strict.call("POST", chat, {})).status != 503:
        assert time.monotonic() < until
    assert "more requests than it can bear" in reply.body["error"]["message"]
    assert strict.call("GET", "/memories?user_id=limits").status == 200
    for link in held:
        link.close()


def test_a_search_tells_what_its_parts_took(server):
    reply = server.call("POST", "/search", {"query": "hello", "user_id": "timed"})
    parts = re.fullmatch(r"embed;dur=([\d.]+), rank;dur=([\d.]+)", reply.headers["server-timing"])
    assert all(0 < float(part) < 60_000 for part in parts.groups())
    text = server.done("GET", "/metrics")
    for name in ('seconds_count{part="embed"}', 'seconds_count{part="rank"}', "batch_count"):
        assert value(text, f"lightmem_search_{name}") >= 1


def test_writers_at_once_lose_nothing_and_double_nothing(server):
    def add(number: int) -> None:
        body = {"messages": [{"role": "user", "content": f"fact {number % 12}"}], "user_id": "many"}
        server.done("POST", "/memories", {**body, "run_id": f"r{number % 12}"})

    threads = [threading.Thread(target=add, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.texts("many") == {f"fact {number}" for number in range(12)}


def value(metrics: str, name: str) -> float:
    (line,) = (line for line in metrics.splitlines() if line.startswith(f"{name} "))
    return float(line.split()[1])


def test_what_is_counted_names_routes_and_no_users(server):
    server.say("counted-user", "hello there")
    server.call("GET", "/memories?user_id=counted-user")
    server.call("GET", "/nowhere/counted-user")
    text = server.done("GET", "/metrics")
    assert 'lightmem_in_flight_requests{kind="key"} 1.0' in text
    assert "lightmem_waiting_users " in text
    assert "lightmem_writer_calls_total 0.0" in text
    assert "lightmem_writer_tokens_in_total 0.0" in text
    assert 'lightmem_trouble{part="writer"} 0.0' in text
    assert value(text, "lightmem_writer_extracted_total") >= 1
    assert 'lightmem_request_seconds_count{method="GET",route="/memories",status="200"}' in text
    assert 'route="none",status="404"' in text
    assert 'lightmem_messages_total{state="accepted"}' in text
    assert "lightmem_last_write_timestamp_seconds 1." in text
    assert "counted-user" not in text


def test_health_needs_no_key_and_says_when_a_write_succeeded(server):
    server.say("health", "hello there")
    found = server.done("GET", "/health", key="")
    assert (found["status"], found["embedder"], found["shards"]) == ("ok", "hash-384", 1)
    assert 0 <= found["last_write_age_s"] < 60


def test_a_server_that_could_take_no_message_is_not_ready(start):
    """As when another process has begun to write, or bulk uploads cannot go on."""
    with start() as running:
        assert running.call("GET", "/health").status == 200
        running.app.state.runner.trouble = "the jobs cannot be read"
        time.sleep(1.1)
        reply = running.call("GET", "/health")
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        running.app.state.runner.trouble = ""
        time.sleep(1.1)
        assert running.call("GET", "/health").status == 200
        hold = running.app.state.server.writer.writer.shared.hold
        hold.release()
        time.sleep(1.1)
        assert running.call("GET", "/health").status == 503
        with running.app.state.server.writer.writer.shared.gate.alone():  # as an erase does
            time.sleep(1.1)
            assert running.call("GET", "/health").status == 200
        hold.take()


def test_health_is_looked_at_once_a_second_whoever_asks(start):
    with start() as running:
        reader = running.app.state.server.reader.reader
        embed, embedded = reader.embed, []
        reader.embed = lambda queries: (embedded.extend(queries), embed(queries))[1]
        began = time.monotonic()
        assert {running.call("GET", "/health").status for _ in range(50)} == {200}
        assert 1 <= len(embedded) <= 1 + time.monotonic() - began < 50
