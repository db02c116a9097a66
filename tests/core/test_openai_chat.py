"""What a server of OpenAI's chat completions may do to its client, one law for each.

The server is a process (`llm_endpoint.py`) that counts what it is asked and fails on order.
"""

import asyncio
import json
import logging
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from lightmem_core.config import Component
from lightmem_core.encoders.hashing import WordTokenizer
from lightmem_core.errors import ConfigError, LLMUnavailableError
from lightmem_core.llm.chat import ChatRequest, Rejected, Reply, TooLong
from lightmem_core.llm.governor import Governor, Window
from lightmem_core.llm.openai import OpenAIChat
from lightmem_core.llm.responses import Answer, Server, answer, refusal, retry_after
from lightmem_core.plugins import load

SCHEMA = json.dumps({"type": "object", "properties": {"facts": {"type": "array"}}})
SECRET = "sk-hush-hush-0123456789"
ALWAYS = 1_000_000
Make = Callable[..., OpenAIChat]


def request(number: int = 0, text: str = "hello there") -> ChatRequest:
    said = f"{number} Ann: {text}"
    system, user = {"role": "system", "content": "be good"}, {"role": "user", "content": said}
    return ChatRequest((system, user), SCHEMA, 100)


def ask(chat: OpenAIChat, *requests: ChatRequest) -> list[Any]:
    """Send all at once; a reply or an exception for each."""

    async def all_of_them() -> list[Any]:
        try:
            return await asyncio.gather(*map(chat.complete, requests), return_exceptions=True)
        finally:
            await chat.aclose()

    return asyncio.run(all_of_them())


def replied(found: object, number: int = 0, text: str = "hello there") -> bool:
    return isinstance(found, Reply) and json.loads(found.text)["facts"] == [
        {"from": [number], "text": text, "when": "", "topic": ""}
    ]


@pytest.fixture
def make(llm_endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A client of the endpoint, with the pauses of seconds that a test has time for."""
    monkeypatch.setenv("TEST_KEY", SECRET)

    def client(**options: Any) -> OpenAIChat:
        quick = {"pause_s": 0.01, "give_up_s": 20, "timeout_s": 10, "api_key_env": "TEST_KEY"}
        return OpenAIChat(**{"model": "tiny", "base_url": llm_endpoint.url} | quick | options)

    return client


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


# --- one request -------------------------------------------------------------------------------


def test_a_reply_comes_with_its_tokens_and_its_time(make: Make, llm_endpoint: Any):
    llm_endpoint.plan(latency=0.1)
    (reply,) = ask(make(), request(3))
    assert replied(reply, 3)
    assert (reply.model, reply.finish) == ("tiny", "stop")
    assert (reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens) == (6, 10, 2)
    assert 0.1 <= reply.seconds < 5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"max_tokens": 100, "temperature": 0.0}),
        ({"temperature": 0.5}, {"max_tokens": 100, "temperature": 0.5}),
        ({"temperature": "server"}, {"max_tokens": 100}),
        ({"tokens_field": "max_completion_tokens"}, {"max_completion_tokens": 100,
         "temperature": 0.0}),
        ({"extra_body": {"top_k": 1}}, {"max_tokens": 100, "temperature": 0.0, "top_k": 1}),
    ],
)  # fmt: skip
def test_the_options_say_what_is_sent(
    make: Make, llm_endpoint: Any, options: dict[str, Any], expected: dict[str, Any]
):
    ask(make(structured="none", **options), request())
    (call,) = llm_endpoint.calls()
    assert call["asked"] == {"model": "tiny", **expected}


def test_a_reply_is_bound_to_the_schema_unless_the_server_knows_less(make: Make, llm_endpoint: Any):
    text = {"type": "string", "minLength": 1, "maxLength": 9}
    number = {"type": "integer", "maximum": 3}
    schema = {"properties": {"facts": {"anyOf": [text, number]}, "maxLength": number}}
    asked = replace(request(), schema=json.dumps(schema))
    for structured in ("json_schema", "json_schema_without_lengths", "json_object", "none"):
        ask(make(structured=structured), asked)
    strict, loose, form, none = (c["asked"].get("response_format") for c in llm_endpoint.calls())
    assert strict["json_schema"] == {"name": "reply", "strict": True, "schema": schema}
    assert loose["json_schema"]["schema"] == {
        "properties": {"facts": {"anyOf": [{"type": "string"}, number]}, "maxLength": number}
    }
    assert (form, none) == ({"type": "json_object"}, None)


def test_openai_is_asked_in_its_own_dialect():
    openai, others = (
        OpenAIChat(model="tiny", **given).options for given in ({}, {"base_url": "http://here/v1"})
    )
    assert openai.form == "json_schema_without_lengths"
    assert openai.field_of_max_tokens == "max_completion_tokens"
    assert (others.form, others.field_of_max_tokens) == ("json_schema", "max_tokens")


def test_half_a_surrogate_pair_does_not_stop_a_request(make: Make):
    (reply,) = ask(make(), request(text="a \ud83d b"))
    assert replied(reply, text="a ? b")


# --- what passes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"mode": "busy"},
        {"mode": "busy", "seconds": 0.2},
        {"mode": "busy", "seconds": 1.5, "date": True},
        {"mode": "overloaded"},
        {"mode": "html_500"},
        {"mode": "html_200"},
        {"mode": "broken_envelope"},
        {"mode": "no_choices"},
        {"mode": "hang_up"},
        {"mode": "silence", "seconds": 5},
        {"mode": "down", "seconds": 0.3, "share": 1.0, "until": 1},
    ],
    ids=lambda fault: "-".join(map(str, fault.values())),
)
def test_what_passes_is_waited_out_and_nothing_is_paid_twice(
    make: Make, llm_endpoint: Any, fault: dict[str, Any]
):
    llm_endpoint.plan(fault)
    chat = make(timeout_s=0.5)
    replies = ask(chat, *map(request, range(4)))
    assert all(replied(reply, n) for n, reply in enumerate(replies))
    stats = llm_endpoint.stats()
    assert stats["modes"][fault["mode"]] >= 1
    assert (stats["stages"]["extract"]["calls"], stats["repeated"]) == (4, 0)


def test_everybody_waits_as_long_as_retry_after_says(make: Make, llm_endpoint: Any):
    llm_endpoint.plan({"mode": "busy", "seconds": 0.6, "until": 1}, latency=0.05)
    assert all(isinstance(r, Reply) for r in ask(make(concurrency=4), *map(request, range(12))))
    refused, *others = llm_endpoint.calls()
    later = [call["started"] for call in others if call["started"] > refused["ended"] + 0.05]
    assert len(later) >= 8
    assert min(later) >= refused["ended"] + 0.6


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0.5", 0.5),
        ("-3", 0),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_a_number(value: str, seconds: float | None):
    assert retry_after({"retry-after": value}) == seconds


@pytest.mark.parametrize(("ahead", "seconds"), [(3600, 3600), (-86_400, 0)])
def test_retry_after_is_a_date(ahead: int, seconds: float):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True)
    assert retry_after({"retry-after": date}) == pytest.approx(seconds, abs=60)


def test_fewer_requests_are_in_flight_after_some_were_turned_away(make: Make, llm_endpoint: Any):
    llm_endpoint.plan({"mode": "busy", "until": 8}, latency=0.1)
    assert all(isinstance(r, Reply) for r in ask(make(concurrency=8), *map(request, range(30))))
    later = [call for call in llm_endpoint.calls() if not call["mode"]][:8]
    at_once = [sum(b["started"] <= a["started"] < b["ended"] for b in later) for a in later]
    assert max(at_once) <= 5


def test_a_refused_request_leaves_its_place_to_others(make: Make, llm_endpoint: Any):
    llm_endpoint.plan({"mode": "busy", "match": "Ann: slow", "times": 3}, latency=0.02)
    others = [request(n) for n in range(6)]
    replies = ask(make(concurrency=1, pause_s=0.3), request(9, "slow"), *others)
    assert all(isinstance(reply, Reply) for reply in replies)
    calls = llm_endpoint.calls()
    assert [call["mode"] for call in calls[:7]] == ["busy"] + [""] * 6


# --- what does not pass ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["html_500", "busy", "overloaded", "silence", "hang_up"])
def test_a_server_that_stays_away_is_given_up_in_one_line(make: Make, llm_endpoint: Any, mode: str):
    llm_endpoint.plan({"mode": mode, "times": ALWAYS, "seconds": 5 if mode == "silence" else None})
    (error,) = ask(make(give_up_s=0.5, timeout_s=0.2), request())
    assert isinstance(error, LLMUnavailableError)
    assert str(error).startswith(f"{llm_endpoint.url} gave no reply for ")
    assert "run the same command again" in str(error)
    assert "\n" not in str(error)


def test_nobody_listening_is_said_in_the_words_of_the_system(make: Make, closed_port: int):
    url = f"http://127.0.0.1:{closed_port}/v1"
    began = time.monotonic()
    (error,) = ask(make(base_url=url, give_up_s=0.4), request())
    assert isinstance(error, LLMUnavailableError)
    assert url in str(error)
    assert "Connection refused" in str(error)
    assert 0.4 <= time.monotonic() - began < 10


def test_a_server_that_asks_for_more_time_than_there_is_is_given_up_at_once(
    make: Make, llm_endpoint: Any
):
    llm_endpoint.plan({"mode": "busy", "seconds": 3600, "times": ALWAYS})
    began = time.monotonic()
    (error,) = ask(make(give_up_s=60), request())
    assert isinstance(error, LLMUnavailableError)
    assert "asks to wait 3600 seconds" in str(error)
    assert time.monotonic() - began < 10


def test_once_given_up_nobody_waits_again_until_it_is_back(make: Make, llm_endpoint: Any):
    away = {"mode": "html_500", "times": ALWAYS}
    llm_endpoint.plan({**away, "match": "away"}, {**away, "match": "Say OK"})

    async def story() -> tuple[Any, float, Any, Any]:
        chat = make(give_up_s=0.5)
        first = await asyncio.gather(chat.complete(request(1, "away")), return_exceptions=True)
        began = time.monotonic()
        second = await asyncio.gather(chat.complete(request(2, "away")), return_exceptions=True)
        took = time.monotonic() - began
        third = await chat.complete(request(3))
        await chat.aclose()
        return first[0], took, second[0], third

    first, took, second, third = asyncio.run(story())
    assert isinstance(first, LLMUnavailableError)
    assert isinstance(second, LLMUnavailableError)
    assert took < 0.4
    assert replied(third, 3)


def test_a_request_that_fails_alone_is_rejected_and_the_others_go_on(make: Make, llm_endpoint: Any):
    llm_endpoint.plan({"mode": "html_500", "match": "poison", "times": ALWAYS}, latency=0.005)
    chat = make(concurrency=4, attempts=3)
    poisoned, *others = ask(chat, request(0, "poison"), *[request(n) for n in range(1, 60)])
    assert isinstance(poisoned, Rejected)
    assert "500 Bad gateway" in str(poisoned)
    assert all(replied(reply, n) for n, reply in enumerate(others, 1))


def test_a_request_that_fails_alone_is_found_out_where_no_other_can_tell(
    make: Make, llm_endpoint: Any
):
    llm_endpoint.plan({"mode": "hang_up", "match": "poison", "times": ALWAYS})
    (error,) = ask(make(attempts=3, give_up_s=600), request(0, "poison"))
    assert isinstance(error, Rejected)
    assert llm_endpoint.stats()["modes"] == {"hang_up": 4}


def test_a_prompt_that_does_not_fit_is_too_long(make: Make, llm_endpoint: Any):
    llm_endpoint.plan(context=10)
    long, short = ask(make(), request(0, "word " * 20), request(1))
    assert isinstance(long, TooLong)
    assert replied(short, 1)


SERVER = Server("http://here/v1", "tiny", "TEST_KEY", True)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "This model's maximum context length is 2048 tokens. However, you requested 4000"),
        (400, "The decoder prompt (length 15024) is longer than the maximum model length of 2048"),
        (400, "the request exceeds the available context size, try increasing it"),
        (400, "Please reduce the length of the messages or completion."),
        (400, "prompt is too long: 210000 tokens > 200000 maximum"),
        (413, "Payload Too Large"),
    ],
)
def test_the_words_of_servers_for_too_long(status: int, words: str):
    failure = refusal(status, {}, json.dumps({"error": {"message": words}}), SERVER)
    assert isinstance(failure.error, TooLong)


@pytest.mark.parametrize(
    "body", ["{}", "[1]", '"x"', "", "<html>", '{"error": "x"}', '{"error": [1]}', '{"error": {}}']
)
@pytest.mark.parametrize("status", [400, 422])
def test_an_error_of_any_form_is_read(status: int, body: str):
    assert isinstance(refusal(status, {}, body, SERVER).error, Rejected)


@pytest.mark.parametrize("body", ["", "{}", "[]", '{"choices": null}', '{"choices": [{}]}', "\x00"])
def test_an_answer_that_is_no_completion_is_no_answer(body: str):
    assert not isinstance(answer(body), Answer)


def test_a_bad_request_is_rejected_with_the_servers_words_cut(make: Make, llm_endpoint: Any):
    llm_endpoint.plan({"mode": "bad_request", "times": ALWAYS, "match": "Ann: bad"})
    bad, good = ask(make(), request(0, "bad"), request(1))
    assert isinstance(bad, Rejected)
    assert str(bad).startswith("400 the request is bad: very very")
    assert len(str(bad)) < 400
    assert replied(good, 1)


@pytest.mark.parametrize(
    ("plan", "error", "said"),
    [
        ({"key": "another"}, ConfigError, "does not accept the key in TEST_KEY"),
        ({"faults": [{"mode": "forbidden"}]}, ConfigError, "may not use the model"),
        ({"model": "huge"}, ConfigError, "has no model 'tiny'"),
        (
            {"faults": [{"mode": "no_schemas"}]},
            ConfigError,
            "options.structured: json_schema_without_lengths",
        ),
        ({"faults": [{"mode": "no_quota"}]}, LLMUnavailableError, "quota"),
    ],
)
def test_what_would_fail_for_every_request_stops_at_once_and_says_what_to_do(
    make: Make, llm_endpoint: Any, plan: dict[str, Any], error: type[Exception], said: str
):
    llm_endpoint.plan(*plan.pop("faults", ()), **plan)
    (found,) = ask(make(), request())
    assert isinstance(found, error)
    assert said in str(found)
    assert llm_endpoint.stats()["calls"] == 1


def test_a_key_that_is_missing_is_named(
    make: Make, llm_endpoint: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("TEST_KEY")
    assert isinstance(ask(make(), request())[0], Reply)
    llm_endpoint.plan(key="any")
    (error,) = ask(make(), request())
    assert isinstance(error, ConfigError)
    assert "wants a key" in str(error)
    assert "set the environment variable TEST_KEY" in str(error)


# --- replies that are none ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "text", "finish"),
    [
        ("refused", "I cannot help with that.", "stop"),
        ("null", "", "stop"),
        ("length", '{"facts": [{"from": [0], "text": "hel', "length"),
    ],
)
def test_what_was_paid_for_is_a_reply_whatever_it_says(
    make: Make, llm_endpoint: Any, mode: str, text: str, finish: str
):
    llm_endpoint.plan({"mode": mode, "times": ALWAYS})
    (reply,) = ask(make(), request())
    assert (reply.text, reply.finish) == (text, finish)
    assert reply.completion_tokens > 0
    assert llm_endpoint.stats()["paid"] == 1


@pytest.mark.parametrize("tokenizer", [WordTokenizer(), None])
def test_tokens_are_counted_where_the_server_does_not(
    make: Make, llm_endpoint: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
):
    llm_endpoint.plan({"mode": "no_usage", "times": ALWAYS})
    replies = ask(make(tokenizer=tokenizer, concurrency=1), request(0), request(1))
    assert [r.cached_tokens for r in replies] == [0, 0]
    assert all(r.prompt_tokens >= 5 and r.completion_tokens >= 10 for r in replies)
    assert caplog.text.count("reports no usage") == 1


# --- the key -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode", ["", "busy", "html_500", "silence", "hang_up", "bad_request", "echoed", "no_quota"]
)
def test_the_key_is_in_no_log_no_error_and_no_pickle(
    make: Make, llm_endpoint: Any, mode: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG, logger="")
    for name in ("openai", "httpx2", "httpcore2", "httpx", "httpcore", "lightmem_core"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    echoed = {"key": "another"} if mode == "echoed" else {"key": SECRET}
    faults = [] if mode in ("", "echoed") else [{"mode": mode, "times": ALWAYS, "seconds": 2}]
    llm_endpoint.plan(*faults, **echoed)
    chat = make(give_up_s=0.2, timeout_s=0.1)
    (found,) = ask(chat, request())
    assert isinstance(found, Reply) == (mode == "")
    shown = [repr(found), repr(chat), repr(vars(chat)), caplog.text, repr(pickle.dumps(chat))]
    if isinstance(found, Exception):
        shown += traceback.format_exception(found)
        shown.append(repr(pickle.dumps(found)))
        assert found.__context__ is None
    assert caplog.records
    assert all(SECRET not in text and SECRET[3:15] not in text for text in shown)


def test_a_key_in_the_wrong_place_is_refused_and_not_shown():
    for options in (
        {"api_key_env": SECRET},
        {"api_key": SECRET},
        {"base_url": f"https://{SECRET}@host/v1"},
        {"base_url": f"https://host/v1?key={SECRET}"},
    ):
        with pytest.raises(ConfigError) as caught:
            load("llm", Component(use="openai", options={"model": "tiny", **options}))
        assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("mode", ["html_200", "html_500"])
def test_a_page_that_repeats_the_key_is_shown_without_it(
    make: Make, llm_endpoint: Any, monkeypatch: pytest.MonkeyPatch, mode: str
):
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    llm_endpoint.plan({"mode": mode, "times": ALWAYS})
    (error,) = ask(make(give_up_s=0.2), request())
    assert isinstance(error, LLMUnavailableError)
    assert "Bad gateway ***" in str(error)


@pytest.mark.parametrize("key", ["x", "text", "EMPTY", SECRET])
def test_a_reply_is_as_the_model_gave_it_whatever_the_key(
    make: Make, monkeypatch: pytest.MonkeyPatch, key: str
):
    """Servers on a laptop take any word for a key, and the model may use that word."""
    monkeypatch.setenv("TEST_KEY", key)
    (reply,) = ask(make(), request(3, f"the word {key}"))
    assert replied(reply, 3, f"the word {key}")


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines"])
def test_what_cannot_be_a_key_is_refused_and_not_shown(
    make: Make, monkeypatch: pytest.MonkeyPatch, key: str
):
    monkeypatch.setenv("TEST_KEY", key)
    (error,) = ask(make(), request())
    assert isinstance(error, ConfigError)
    assert "TEST_KEY" in str(error)
    assert key not in str(error)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "model: Field required"),
        ({"model": "m", "modle": 1}, "there is no option 'modle'; it accepts: model, base_url"),
        ({"model": "m", "concurrency": 0}, "concurrency: Input should be greater than"),
        ({"model": "m", "base_url": "here:80"}, "base_url: give the URL up to /v1"),
        ({"model": "m", "structured": "yes"}, "structured: Input should be"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as caught:
        load("llm", Component(use="openai", options=options))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# --- how fast ----------------------------------------------------------------------------------


def test_requests_in_flight_stay_at_the_configured_number(make: Make, llm_endpoint: Any):
    """The client looks at it all the time between the first and the last ten replies; the server,
    which does not see a request while it travels, never sees more."""
    llm_endpoint.plan(latency=0.3, jitter=0.5)
    chat, replies, seen, done = make(concurrency=8), [], [], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            if (line := chat._line) is not None:
                seen.append((len(replies), line.window.in_flight))

    async def one(number: int) -> None:
        replies.append(await chat.complete(request(number)))

    async def all_of_them() -> None:
        await asyncio.gather(*map(one, range(90)))
        await chat.aclose()

    watcher = threading.Thread(target=watch)
    watcher.start()
    asyncio.run(all_of_them())
    done.set()
    watcher.join()
    between = [n for count, n in seen if 10 <= count < 80]
    assert len(between) > 100
    assert between.count(8) / len(between) >= 0.95
    stats = llm_endpoint.stats()
    assert (stats["peak"], stats["paid"], stats["repeated"]) == (8, 90, 0)


def test_requests_per_minute_are_kept_whatever_the_concurrency(make: Make, llm_endpoint: Any):
    began = time.monotonic()
    ask(make(concurrency=50, requests_per_minute=1200), *map(request, range(15)))
    assert time.monotonic() - began >= 14 * 0.05
    started = [call["started"] for call in llm_endpoint.calls()]
    assert len(started) == 15
    assert started[-1] - started[0] >= 0.6


def test_tokens_per_minute_are_those_that_the_server_reports(make: Make, llm_endpoint: Any):
    """16 tokens a request, 1,000 tokens a second. The first requests are expected to take all
    their max_tokens, and what they did not take is given back."""
    chat = make(concurrency=50, tokens_per_minute=60_000)
    began = time.monotonic()
    assert all(isinstance(reply, Reply) for reply in ask(chat, *map(request, range(40))))
    took = time.monotonic() - began
    used = 40 * 16
    assert used / 1000 * 0.8 <= took <= used / 1000 + 3


def run(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 30))  # pyright: ignore[reportArgumentType]


def test_no_minute_holds_more_than_its_tokens_and_the_last_request():
    admitted: list[tuple[float, int]] = []

    async def story() -> None:
        governor = Governor(None, 60_000)

        async def one(tokens: int) -> None:
            await governor.admit(tokens)
            admitted.append((asyncio.get_running_loop().time(), tokens))

        await asyncio.gather(*(one(10 + 7 * n % 50) for n in range(30)))

    run(story)
    for n, (start, _) in enumerate(admitted):
        for m in range(n, len(admitted)):
            inside = sum(tokens for _, tokens in admitted[n:m])
            assert inside <= (admitted[m][0] - start) * 1000 + 1e-6


def test_half_the_places_once_for_all_that_were_turned_away_together():
    async def story() -> None:
        window = Window(16)
        now = asyncio.get_running_loop().time
        sent = now()
        await asyncio.sleep(0.002)
        for _ in range(16):
            window.shrink(sent)
        assert window.limit == 8
        await asyncio.sleep(0.002)
        window.shrink(now())
        assert window.limit == 4
        for _ in range(4):
            window.grow()
        assert 4.8 < window.limit <= 5
        for _ in range(1000):
            window.grow()
        assert window.limit == 16
        for _ in range(100):
            await asyncio.sleep(0.0001)
            window.shrink(now())
        assert window.limit == 1

    run(story)


def test_no_more_than_the_window_holds_and_first_come_first_served():
    async def story() -> None:
        window, order, most = Window(3), [], 0

        async def one(number: int) -> None:
            nonlocal most
            async with window.place():
                order.append(number)
                most = max(most, window.in_flight)
                await asyncio.sleep(0.001)

        tasks = [asyncio.create_task(one(n)) for n in range(30)]
        await asyncio.sleep(0.002)
        for task in tasks[10:15]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [n for n in range(30) if not 10 <= n < 15]
        assert (most, window.in_flight) == (3, 0)

    run(story)


# --- where it lives ----------------------------------------------------------------------------


def test_a_client_in_use_can_be_sent_elsewhere_and_used_on_another_loop(make: Make):
    chat = make()
    assert replied(ask(chat, request(1))[0], 1)
    twin = pickle.loads(pickle.dumps(chat))
    assert replied(ask(twin, request(2))[0], 2)
    assert replied(ask(chat, request(3))[0], 3)


def test_threads_share_the_client_on_one_loop(make: Make, llm_endpoint: Any):
    llm_endpoint.plan(latency=0.05)
    chat, found = make(concurrency=6), []
    loop = asyncio.new_event_loop()
    runner = threading.Thread(target=loop.run_forever)
    runner.start()

    def one(number: int) -> None:
        waiting = asyncio.run_coroutine_threadsafe(chat.complete(request(number)), loop)
        found.append(replied(waiting.result(30), number))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run_coroutine_threadsafe(chat.aclose(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    runner.join()
    assert found == [True] * 24
    assert llm_endpoint.stats()["peak"] == 6


# --- TLS ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody signed but itself, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "endpoint")])
    place = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(place, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path_factory.mktemp("tls") / "cert.pem"
    path.write_bytes(pem + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture(scope="module")
def tls_url(start_llm_endpoint: Callable[..., Any], certificate: Path) -> Iterator[str]:
    endpoint = start_llm_endpoint("--cert", str(certificate))
    yield endpoint.url
    endpoint.stop()


def test_a_certificate_is_verified_and_a_ca_file_may_vouch_for_it(
    make: Make, tls_url: str, certificate: Path
):
    (error,) = ask(make(base_url=tls_url), request())
    assert isinstance(error, ConfigError)
    assert "certificate is not trusted" in str(error)
    assert "ca_file" in str(error)
    (reply,) = ask(make(base_url=tls_url, ca_file=str(certificate)), request())
    assert replied(reply)


def test_a_ca_file_that_is_not_there_is_named(make: Make):
    (error,) = ask(make(ca_file="/nowhere/ca.pem"), request())
    assert isinstance(error, ConfigError)
    assert "ca_file" in str(error)
