"""`use: vllm` alone: one engine, asked as a stage asks it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import psutil
import pytest

from lightmem_core.errors import ConfigError, LLMUnavailableError
from lightmem_core.llm.chat import ChatRequest, Rejected, Reply, TooLong
from lightmem_core.llm.vllm import VLLMChat
from lightmem_core.llm.vllm_engine import Engine

pytestmark = pytest.mark.vllm

SCHEMA = {
    "type": "object",
    "properties": {
        "from": {"type": "integer", "minimum": 0, "maximum": 20},
        "text": {"type": "string", "pattern": "^[A-Za-z ,.]{1,40}$"},
    },
    "required": ["from", "text"],
    "additionalProperties": False,
}
RULES = "Write down what is worth remembering. " * 20


def request(number: int, **other: Any) -> ChatRequest:
    said = (
        {"role": "system", "content": RULES},
        {"role": "user", "content": f"{number}: I moved to Porto."},
    )
    given = {"messages": said, "schema": json.dumps(SCHEMA), "max_tokens": 120} | other
    return ChatRequest(**given)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """One event loop for all requests, as in a process of a run."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def chat(tiny_model: str, engine: dict, loop: asyncio.Runner) -> Iterator[VLLMChat]:
    made = VLLMChat(model=tiny_model, max_model_len=1024, engine=engine, give_up_s=300)
    yield made
    loop.run(made.aclose())


async def ask(chat: VLLMChat, requests: list[ChatRequest]) -> list[Reply | BaseException]:
    return await asyncio.gather(*map(chat.complete, requests), return_exceptions=True)


def kill_engines() -> None:
    engines = [p for p in psutil.Process().children(recursive=True) if "VLLM" in p.name()]
    assert engines
    for process in engines:
        process.kill()


def test_replies_fit_the_schema_and_their_tokens_are_counted(chat, loop):
    replies = loop.run(ask(chat, [request(n, temperature=1.0) for n in range(16)]))
    for reply in replies:
        assert isinstance(reply, Reply), reply
        jsonschema.validate(json.loads(reply.text), SCHEMA)
        assert reply.finish == "stop"
        assert reply.model == chat.name
        assert reply.prompt_tokens > reply.cached_tokens >= 0
        assert 0 < reply.completion_tokens <= 120
        assert reply.seconds > 0


def test_what_every_prompt_begins_with_is_read_once(chat, loop):
    loop.run(ask(chat, [request(100)]))
    (reply,) = loop.run(ask(chat, [request(101)]))
    assert reply.cached_tokens > reply.prompt_tokens / 2


def test_a_request_that_cannot_be_answered_fails_alone(chat, loop):
    long = request(1, messages=({"role": "user", "content": "Porto. " * 2_000},))
    wide = request(2, max_tokens=2_000)
    wrong = request(3, schema='{"type": "nothing"}')
    cut = request(4, max_tokens=2)
    found = loop.run(ask(chat, [long, wide, wrong, cut, request(5)]))
    assert [type(f) for f in found] == [TooLong, TooLong, Rejected, Reply, Reply]
    assert [found[3].finish, found[4].finish] == ["length", "stop"]


def test_an_engine_that_dies_is_started_again_and_no_request_is_lost(chat, loop):
    long = {"schema": "", "max_tokens": 600}  # it writes on until it is cut off

    async def killed_under_way() -> list[Reply | BaseException]:
        waiting = asyncio.create_task(ask(chat, [request(n, **long) for n in range(200, 232)]))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        kill_engines()
        return await waiting

    replies = loop.run(killed_under_way())
    assert {type(reply) for reply in replies} == {Reply}


def test_an_engine_that_is_silent_for_one_request_alone_has_it_rejected(chat, loop, monkeypatch):
    """Real replies, but for one request that never ends: it must not hold up a run for ever."""
    answer = Engine._answered

    async def sometimes(engine: Engine, prompt: list[int], request: ChatRequest) -> Any:
        if "poison" in request.messages[-1]["content"]:
            await asyncio.sleep(600)
        return await answer(engine, prompt, request)

    monkeypatch.setattr(Engine, "_answered", sometimes)
    quick = {"timeout_s": 20, "pause_s": 0.01}
    monkeypatch.setattr(chat, "options", chat.options.model_copy(update=quick))
    monkeypatch.setattr(chat._engines, "options", chat.options)
    poison = request(1, messages=({"role": "user", "content": "poison"},))
    found = loop.run(ask(chat, [poison, *(request(n) for n in range(400, 404))]))
    assert [type(f) for f in found] == [Rejected, *[Reply] * 4]
    assert "no answer in 20 seconds" in str(found[0])


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('System role not supported') }}", "{% wrong %}"]
)
def test_a_template_that_does_not_take_the_prompts_is_a_mistake_of_the_configuration(
    chat, loop, monkeypatch, template: str
):
    own = chat.options.model_copy(update={"template": {"chat_template": template}})
    monkeypatch.setattr(chat._engines.engine, "options", own)
    (error,) = loop.run(ask(chat, [request(1)]))
    assert isinstance(error, ConfigError)
    assert "memory.llm.options.template" in str(error)


def test_a_dead_engine_is_given_up_after_the_time_that_was_set(chat, loop):
    impatient = chat._engines.options.model_copy(update={"give_up_s": 0})
    chat._engines.options = impatient
    kill_engines()
    (error,) = loop.run(ask(chat, [request(300)]))
    assert isinstance(error, LLMUnavailableError)
    assert "run the same command again" in str(error)


def test_options_reach_the_engine(tiny_model, engine, loop):
    """An adapter, two devices and a type of numbers; the same request gets another reply."""
    options = {"model": tiny_model, "max_model_len": 1024, "engine": engine}
    adapted = VLLMChat(
        lora=f"{tiny_model}/adapter", tensor_parallel_size=2, dtype="float32", **options
    )
    plain = VLLMChat(**options)
    (changed,) = loop.run(ask(adapted, [request(1)]))
    config = adapted._engines.engine.llm.vllm_config
    assert config.parallel_config.tensor_parallel_size == 2
    assert str(config.model_config.dtype) == "torch.float32"
    assert config.model_config.max_model_len == 1024
    loop.run(adapted.aclose())
    (unchanged,) = loop.run(ask(plain, [request(1)]))
    loop.run(plain.aclose())
    assert changed.model == adapted.name != plain.name == unchanged.model
    assert changed.text != unchanged.text


def test_a_model_that_is_not_there_is_a_mistake_of_the_configuration(loop, tmp_path):
    nowhere = VLLMChat(model=str(tmp_path / "nothing"))
    errors = loop.run(ask(nowhere, [request(1), request(2)]))
    assert [type(error) for error in errors] == [ConfigError, ConfigError]
    assert "correct memory.llm.options" in str(errors[0])
