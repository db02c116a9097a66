"""A plan says what a backfill will ask before it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lightmem_core import Config, factory, load_config
from lightmem_core.config import Component, LLMConfig, Prices
from lightmem_core.errors import ConfigError, InputError
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.types import Message
from lightmem_pipelines.cli import lightmem
from lightmem_pipelines.estimate import Estimate, Estimator, Sample
from lightmem_pipelines.plan import Plan, PlanRequest, plan

FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"
LLM = LLMConfig(use="echo", prices=Prices(prompt=2, completion=8), completion_tokens=50)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = load_config(FAKES, uri=str(tmp_path / "store"))
    parts = {"generator": Component(use="llm"), "llm": LLM, "buffer_tokens": 32}
    memory = config.memory.model_copy(update=parts)
    return config.model_copy(update={"memory": memory})


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Thirty users of very different sizes, mixed, and a line that is no message."""
    rng = np.random.default_rng(4)
    sizes = {f"user-{n}": int(rng.lognormal(3, 0.7)) + 1 for n in range(30)}
    rows = [
        {
            "user_id": user,
            "session_id": f"s{at // 8}",
            "role": "user",
            "content": " ".join(rng.choice(["tea", "boat", "Oslo", "seven"], 1 + at % 9)),
            "timestamp": 1_700_000_000 + at * 60,
        }
        for user, size in sizes.items()
        for at in range(size)
    ]
    rng.shuffle(rows)
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no message\n")
    return str(path)


@pytest.fixture
def planned(config: Config, source: str) -> Callable[..., Plan]:
    def of(users: int = 100, **changes: Any) -> Plan:
        memory = config.memory.model_copy(update=changes)
        made = config.model_copy(update={"memory": memory})
        return plan(made, PlanRequest((source,), users=users))

    return of


def test_with_everyone_looked_at_the_plan_is_what_the_stages_give(planned, config, source):
    found = planned()
    memory = config.memory
    assert (found.users, found.sampled, found.bad_rows) == (30, 30, 1)
    assert found.messages == found.new_messages.expected
    asked = list(_requests(config, source))
    tokens = factory.tokenizer(memory).count
    expected = sum(sum(tokens([m["content"] for m in r.messages])) for r in asked)
    assert found.calls == Estimate(len(asked), len(asked), len(asked))
    assert found.prompt_tokens.expected == pytest.approx(expected)
    assert found.completion_tokens == Estimate(*(50 * len(asked) * n for n in (1, 0.5, 2)))
    assert found.hours.low == found.hours.expected / 2 == found.hours.high / 4
    assert found.money is not None
    assert found.money.low < found.money.expected < found.money.high
    assert found.money.expected == pytest.approx((expected * 2 + 50 * len(asked) * 8) / 1e6)


def _requests(config: Config, source: str):
    """What a backfill renders, by its own stages."""
    from lightmem_core.formats import parse_file
    from lightmem_core.history import ordered_history

    with Path(source).open("rb") as file:
        rows = [row for row in parse_file(file, source) if isinstance(row, Message)]
    extraction = factory.extraction(config.memory)
    for user in {row.user_id for row in rows}:
        histories = [ordered_history([row for row in rows if row.user_id == user])]
        segmented = factory.segmentation(config.memory)(
            factory.compression(config.memory)(histories)
        )
        for buffer in factory.buffering(config.memory)(segmented):
            yield extraction.generator.render(buffer)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_third_of_the_users_tell_of_all_within_the_range_and_a_tenth(planned):
    truth, guess = planned(), planned(users=10)
    assert guess.sampled == 10
    for name in ("calls", "prompt_tokens", "tokens"):
        true, told = getattr(truth, name).expected, getattr(guess, name)
        assert told.low <= true <= told.high
        assert told.low < told.expected < told.high
        assert told.expected == pytest.approx(true, rel=0.1)


def test_what_the_store_holds_is_not_planned(planned, config, source):
    from lightmem_core.formats import parse_file
    from lightmem_core.history import ordered_history
    from lightmem_core.schema import to_table
    from lightmem_core.types import Extracted

    whole = planned()
    embedder = factory.embedder(config.memory)
    store = MemoryStore.create(config.memory.store, VectorModel.of(embedder))
    with Path(source).open("rb") as file:
        rows = [row for row in parse_file(file, source) if isinstance(row, Message)]
    known = [row for row in rows if row.user_id < "user-2"]
    for user in {row.user_id for row in known}:
        history = ordered_history([row for row in known if row.user_id == user])
        row = Extracted(user, history.messages, ())
        store.shard_for(user).insert(to_table([row], Extracted), "backfill-1")
    left = planned()
    assert left.messages == whole.messages
    assert left.new_messages.expected == pytest.approx(whole.messages - len(known))
    assert left.calls.expected < whole.calls.expected


def test_past_runs_of_the_model_say_how_long_a_call_takes(planned, config):
    embedder = factory.embedder(config.memory)
    store = MemoryStore.create(config.memory.store, VectorModel.of(embedder))
    used = {"calls": 10, "summary_in": 1_000, "summary_out": 200, "cached": 500}
    used |= {"call_seconds": 30.0, "models": {"echo": 10}}
    store.runs.write(Run("b-1", "backfill", "done", 1, report={"llm": used}))
    other = used | {"summary_out": 10**6, "models": {"another": 10}}
    store.runs.write(Run("b-2", "backfill", "done", 2, report={"llm": other}))
    found = planned()
    assert (found.measured.calls, found.measured.completion_tokens) == (10, 20)
    assert (found.measured.seconds, found.measured.cached_share) == (3, 0.5)
    assert found.hours.expected == pytest.approx(found.calls.expected * 3 / 64 / 3600)


def test_a_plan_takes_no_less_time_than_the_limits_a_minute(planned):
    free = planned()
    asked = free.calls.expected
    limit = {"model": "tiny", "base_url": "http://127.0.0.1:1/v1"}

    def hours(**limits: float) -> float:
        return planned(
            llm=LLM.model_copy(update={"use": "openai", "options": limit | limits})
        ).hours

    assert hours(requests_per_minute=1).expected == pytest.approx(asked / 60)
    tokens = free.prompt_tokens.expected + free.completion_tokens.expected
    assert hours(tokens_per_minute=100).expected == pytest.approx(tokens / 100 / 60)
    assert hours(requests_per_minute=10**9).expected < asked / 60


@pytest.mark.parametrize(
    ("use", "options", "model"),
    [
        ("openai", {"model": "tiny"}, "tiny"),
        ("vllm", {"model": "tiny", "lora": "notes"}, "tiny+notes"),
        ("serve", {"model": "tiny"}, "tiny"),
    ],
)
def test_past_runs_are_known_by_the_name_that_replies_carry(planned, config, use, options, model):
    store = MemoryStore.create(config.memory.store, VectorModel.of(factory.embedder(config.memory)))
    used = {"calls": 4, "summary_in": 1_000, "summary_out": 200, "cached": 500}
    used |= {"call_seconds": 30.0, "models": {model: 4}}
    store.runs.write(Run("b-1", "backfill", "done", 1, report={"llm": used}))
    found = planned(llm=LLM.model_copy(update={"use": use, "options": options}))
    assert (found.measured.calls, found.measured.spread) == (4, 0.5)


def test_a_plan_without_a_model_or_without_messages_says_what_to_do(planned, config, tmp_path):
    with pytest.raises(ConfigError, match=r"set memory\.generator: \{use: llm\}"):
        planned(generator=Component(use="extractive"))
    (tmp_path / "empty.jsonl").write_text("nothing\n")
    with pytest.raises(InputError, match="there is no message to read in"):
        plan(config, PlanRequest((str(tmp_path / "empty.jsonl"),)))


def test_the_command_tells_the_range_and_stores_nothing(config, source, tmp_path):
    (tmp_path / "c.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    words = ["plan", source, "--config", str(tmp_path / "c.yaml"), "--users", "10"]
    told = CliRunner().invoke(lightmem, words, catch_exceptions=False).stdout
    assert "by 10 users (of 30)" in told
    assert "LLM calls" in told
    assert "1 rows cannot be read" in told
    value = json.loads(CliRunner().invoke(lightmem, [*words, "--json"]).stdout)
    assert value["calls"]["low"] < value["calls"]["expected"] < value["calls"]["high"]
    assert not Path(config.memory.store.uri).exists()


# --- samples -----------------------------------------------------------------------------------


def test_a_sample_is_the_same_users_with_all_their_messages_in_any_order():
    rows = [Message(f"u{n % 40}", "s", n, "user", "x" * (n % 7), n) for n in range(400)]
    samples = []
    for order in (rows, rows[::-1]):
        sample = Sample(7)
        for row in order:
            sample.add(row)
        samples.append(sample)
    assert samples[0].sizes == samples[1].sizes
    assert samples[0].kept.keys() == samples[1].kept.keys()
    assert {len(own) for own in samples[0].kept.values()} == {10}
    assert len(samples[0].kept) == 7


def test_nine_of_ten_ranges_hold_the_truth():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(100):
        sizes = rng.lognormal(5, 1, 400)
        calls = sizes * rng.uniform(0.5, 1.5, 400)
        sample = Sample(40)
        sample.sizes = {f"{trial} {n}": int(size) for n, size in enumerate(sizes)}
        rows = [{"size": int(sizes[n]), "calls": calls[n]} for n in range(40)]
        told = Estimator(rows, sample).total("calls")
        held += told.low <= calls.sum() <= told.high
    assert held >= 80
