"""Runs through a language model: nothing is lost, nothing is paid for twice. The model is an
endpoint that counts and fails on order."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lightmem_core import Config
from lightmem_core.config import Component, LLMConfig, Pool, Prices
from lightmem_core.errors import BudgetError, ConfigError
from lightmem_core.long_term.store import MemoryStore
from lightmem_pipelines.backfill import BackfillRequest, backfill
from lightmem_pipelines.cli import lightmem
from lightmem_pipelines.files import RunFiles
from lightmem_pipelines.plan import PlanRequest, plan
from lightmem_pipelines.replies import calls, usage
from lightmem_pipelines.retry import RetryRequest, retry
from lightmem_pipelines.sleep import SleepRequest, sleep

pytestmark = pytest.mark.ray

USERS = ("ada", "ben", "cleo", "dora", "emil")
LENGTH = 30  # messages of a user
POOLS = (
    Pool(steps=("compress", "segment", "buffer"), cpus=0.3, batch_size=2),
    Pool(steps=("extract",), cpus=0.2, batch_size=4, batches=4),
    Pool(steps=("embed",), cpus=0.3, batch_size=8),
)
IN_FLIGHT = 8


@pytest.fixture
def asking(config: Config) -> Callable[..., Config]:
    """A configuration that asks an endpoint: small buffers, little patience."""

    def ask(endpoint: Any, updater: str = "rules", **options: Any) -> Config:
        asked = {"model": "echo", "base_url": endpoint.url, "concurrency": IN_FLIGHT}
        asked |= {"pause_s": 0.01, "give_up_s": 30, "attempts": 3, **options}
        parts = {
            "generator": Component(use="llm"),
            "updater": Component(use=updater),
            "llm": LLMConfig(use="openai", options=asked, prices=Prices(prompt=1, completion=4)),
            "buffer_tokens": 12,
        }
        memory = config.memory.model_copy(update=parts)
        pipelines = config.pipelines.model_copy(update={"pools": POOLS, "commit_buffers": 8})
        return config.model_copy(update={"memory": memory, "pipelines": pipelines})

    return ask


@pytest.fixture
def source(write_lines: Callable[..., str]) -> str:
    """Two messages fill a buffer, so that there are about 15 of each user."""
    rows = [
        {
            "user_id": user,
            "session_id": f"s{at // 10}",
            "role": "user",
            "content": f"{user} says number {at} of many",
            "timestamp": 1_700_000_000 + at * 60,
        }
        for user in USERS
        for at in range(LENGTH)
    ]
    return write_lines("in.jsonl", rows)


def run(config: Config, source: str, **asked: Any) -> dict[str, Any]:
    return backfill(config, BackfillRequest((source,), progress=False, **asked)).report


def contents(config: Config) -> dict[str, tuple[Any, ...]]:
    """What is in the store, by entry id, less the run."""
    shards = MemoryStore.open(config.memory.store).shards
    rows = (row for shard in shards for row in shard.entries.to_arrow().to_pylist())
    return {row["id"]: (row["user_id"], row["text"], row["sources"], row["vector"]) for row in rows}


def newest(config: Config) -> RunFiles:
    ledger = MemoryStore.open(config.memory.store).runs
    return RunFiles.of(config.memory.store, ledger.newest().id)


def elsewhere(config: Config, place: Path) -> Config:
    store = config.memory.store.model_copy(update={"uri": str(place)})
    return config.model_copy(update={"memory": config.memory.model_copy(update={"store": store})})


def paid(calls: list[dict[str, Any]]) -> Counter[str]:
    return Counter(call["key"] for call in calls if call["paid"])


# --- what a run does -----------------------------------------------------------------------------


def test_whatever_the_endpoint_does_no_message_is_lost_and_every_call_is_counted(
    asking, llm_endpoint, source
):
    llm_endpoint.plan(
        {"mode": "down", "after": 20, "until": 21, "seconds": 0.5},
        {"mode": "busy", "share": 0.2, "seconds": 0.1},
        {"mode": "html_500", "share": 0.1},
        {"mode": "hang_up", "share": 0.1},
        {"mode": "prose", "share": 0.2},
        {"mode": "cut", "share": 0.1},
        {"mode": "wrong_sources", "share": 0.1},
        {"mode": "length", "share": 0.1},
        {"mode": "no_usage", "share": 0.2},
        {"mode": "silence", "share": 0.05, "seconds": 4},
        {"mode": "no_json", "match": "cleo says number 1", "times": 9},
        {"mode": "bad_request", "match": "dora says number 2", "times": 9},
    )
    config = asking(llm_endpoint, timeout_s=2)
    report = run(config, source)
    messages, stats = report["messages"], llm_endpoint.stats()
    ended = messages["stored"] + messages["no_facts"] + sum(messages["quarantined"].values())
    assert messages["read"] == ended == LENGTH * len(USERS)
    assert set(messages["quarantined"]) == {"llm_bad_reply", "llm_rejected"}
    assert messages["stored"] > 100
    assert stats["modes"].keys() >= {"busy", "html_500", "hang_up", "prose", "cut", "down"}
    assert stats["modes"].keys() >= {"length", "no_usage", "silence", "no_json", "bad_request"}
    assert stats["repeated"] == 0
    told, counted = report["llm"], stats["stages"]["extract"]
    assert told["calls"] == counted["calls"] == stats["paid"]
    assert report["replies"]["asked"] == told["calls"]
    assert report["replies"]["failed"] > 1
    check_notes(config, report)
    assert told["summary_in"] == counted["system_tokens"] + counted["data_tokens"]
    assert told["summary_out"] == counted["completion_tokens"]
    assert told["money"] == pytest.approx((told["summary_in"] + 4 * told["summary_out"]) / 1e6)
    assert {call["stage"] for call in calls(newest(config))} == {"extract"}
    assert {call["user_id"] for call in calls(newest(config))} == set(USERS)


def check_notes(config: Config, report: dict[str, Any]) -> None:
    """Of every quarantined message it is known why it failed and what the model said."""
    files = newest(config)
    failed = [n for n in files.read_deep("notes") if n["kind"] in ("failed", "in_part")]
    (shard,) = MemoryStore.open(config.memory.store).shards
    rows = [
        row for b in shard.message_batches(files.run_id, ["id", "state"]) for row in b.to_pylist()
    ]
    bad = {row["id"] for row in rows if row["state"] == "quarantined"}
    assert bad <= {message for note in failed for message in note["about"]}
    assert report["notes"] == files.folder("notes")
    for note in failed:
        assert note["problems"]
        replies = [Path(files.folder(place)) for place in note["replies"]]
        assert all("text" in json.loads(reply.read_text()) for reply in replies)
        assert replies or note["reason"] == "llm_rejected"


def test_an_endpoint_that_refuses_everything_stops_the_run_before_the_input_is_quarantined(
    asking, llm_endpoint, source
):
    llm_endpoint.plan({"mode": "bad_request", "times": 99})
    config = asking(llm_endpoint)
    with pytest.raises(ConfigError, match="refuses even a request of one word"):
        run(config, source)
    (shard,) = MemoryStore.open(config.memory.store).shards
    assert shard.messages.count_rows() == 0
    llm_endpoint.plan()
    assert run(config, source)["messages"]["stored"] == LENGTH * len(USERS)


def test_an_edited_prompt_begins_a_run_of_its_own(asking, llm_endpoint, source, tmp_path):
    prompt = tmp_path / "mine.md"
    prompt.write_text("Note what counts.")
    config = asking(llm_endpoint)
    own = Component(use="llm", options={"chat_prompt": str(prompt)})
    memory = config.memory.model_copy(update={"generator": own})
    config = config.model_copy(update={"memory": memory})
    with pytest.raises(BudgetError):
        run(config, source, budget_tokens=500)
    first = newest(config)
    prompt.write_text("Note what matters.")
    llm_endpoint.plan()  # forgets what was heard
    run(config, source)
    assert newest(config).run_id != first.run_id
    assert {m[0]["content"] for m in llm_endpoint.heard()} == {"Note what matters."}


def test_as_many_requests_are_in_flight_as_there_may_be(asking, llm_endpoint, source):
    """Though an actor's batches are smaller. How long so many are is the benchmark's to show."""
    llm_endpoint.plan(latency=1)
    run(asking(llm_endpoint), source)
    assert max(flying for _, flying in llm_endpoint.stats()["timeline"]) == IN_FLIGHT


def test_a_plan_is_what_the_run_then_asks(asking, llm_endpoint, source):
    config = asking(llm_endpoint)
    planned = plan(config, PlanRequest((source,)))
    told = run(config, source)["llm"]
    assert planned.calls.expected == told["calls"]
    assert planned.prompt_tokens.expected == pytest.approx(told["summary_in"])
    again = plan(config, PlanRequest((source,)))
    assert again.calls.expected == 0
    assert again.measured.calls == told["calls"]
    assert again.measured.completion_tokens == pytest.approx(told["summary_out"] / told["calls"])


# --- what is cut off -----------------------------------------------------------------------------


@pytest.fixture
def command(
    launch: Callable[..., subprocess.Popen[str]], tmp_path: Path, source: str
) -> Callable[..., subprocess.Popen[str]]:
    def start(config: Config, *words: str) -> subprocess.Popen[str]:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config.model_dump(mode="json")))
        return launch("backfill", source, "--config", path, "--json", *words)

    return start


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for_replies(config: Config, process: subprocess.Popen[str], count: int) -> None:
    store, deadline = Path(config.memory.store.uri), time.monotonic() + 240
    while len(list(store.glob("_runs/*/replies/*/*.json"))) < count:
        assert process.poll() is None, ended(process)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_driver_that_is_killed_pays_for_no_call_twice(
    asking, llm_endpoint, command, source, tmp_path
):
    llm_endpoint.plan({"mode": "silence", "after": 30, "seconds": 600, "times": 99})
    config = asking(llm_endpoint)
    process = command(config)
    wait_for_replies(config, process, 30)
    process.kill()
    process.communicate()
    before = paid(llm_endpoint.calls())
    llm_endpoint.plan()
    code, out, err = ended(command(config))
    assert code == 0, err
    after = paid(llm_endpoint.calls())
    assert not before.keys() & after.keys()
    assert {*before.values(), *after.values()} == {1}
    report = json.loads(out)
    assert report["llm"]["calls"] == len(before) + len(after)
    assert report["messages"]["stored"] == LENGTH * len(USERS)
    undisturbed = elsewhere(config, tmp_path / "undisturbed")
    run(undisturbed, source)
    assert contents(config) == contents(undisturbed)


def test_actors_and_committers_that_are_killed_pay_for_no_call_twice(
    asking, llm_endpoint, command, processes, source, tmp_path
):
    llm_endpoint.plan({"mode": "silence", "after": 30, "seconds": 600, "times": 99})
    config = asking(llm_endpoint)
    process = command(config)
    wait_for_replies(config, process, 30)
    victims = [p for title in ("ray::Map", "ray::Committer") for p in processes(title)]
    assert len(victims) >= 3
    for victim in victims:
        victim.kill()
    before = paid(llm_endpoint.calls())
    llm_endpoint.plan()
    code, out, err = ended(process)
    assert code == 0, err
    after = paid(llm_endpoint.calls())
    assert not before.keys() & after.keys()
    assert {*before.values(), *after.values()} == {1}
    assert json.loads(out)["llm"]["calls"] == len(before) + len(after)
    undisturbed = elsewhere(config, tmp_path / "undisturbed")
    run(undisturbed, source)
    assert contents(config) == contents(undisturbed)


def test_an_endpoint_that_dies_ends_the_run_cleanly_and_the_same_command_goes_on(
    asking, start_llm_endpoint, command, tmp_path
):
    log = str(tmp_path / "paid.jsonl")
    dying = json.dumps([{"mode": "die", "after": 25}])
    endpoint = start_llm_endpoint("--log", log, "--latency", "0.1", "--faults", dying)
    config = asking(endpoint, give_up_s=1)
    code, out, err = ended(command(config))
    assert (code, out) == (5, ""), err
    told = [line for line in err.splitlines() if line.startswith("lightmem: ")]
    assert "the same command finishes it" in told[0]
    assert f"{endpoint.url} gave no reply for " in told[1]
    assert "Traceback" not in err
    files = newest(config)
    first = usage(files).calls
    assert first >= 16
    assert contents(config)  # what was complete is committed
    port = endpoint.url.split(":")[2].partition("/")[0]
    alive = start_llm_endpoint("--log", log, "--port", port)
    code, out, err = ended(command(config))
    assert code == 0, err
    report = json.loads(out)
    assert report["run"] == files.run_id
    assert report["messages"]["stored"] == LENGTH * len(USERS)
    assert alive.stats()["repeated"] == 0
    assert report["llm"]["calls"] == alive.stats()["paid"]


def test_a_budget_stops_a_run_that_goes_on_with_a_higher_one(asking, llm_endpoint, source):
    llm_endpoint.plan(latency=0.05)
    config = asking(llm_endpoint)
    with pytest.raises(BudgetError, match="all that --budget-tokens 2000 allows") as raised:
        run(config, source, budget_tokens=2_000)
    assert "the same command finishes it" in raised.value.__notes__[0]
    files = newest(config)
    spent = usage(files)
    one = spent.total / spent.calls
    assert 2_000 <= spent.total <= 2_000 + IN_FLIGHT * 1.2 * one
    paid_for = llm_endpoint.stats()["paid"]
    assert paid_for == spent.calls
    with pytest.raises(BudgetError, match=r"all that --budget-money 0\.003 allows"):
        run(config, source, budget_money=0.003)
    assert newest(config).run_id == files.run_id
    assert usage(files).money(config.memory.llm.prices) >= 0.003
    report = run(config, source)
    assert report["messages"]["stored"] == LENGTH * len(USERS)
    assert llm_endpoint.stats()["repeated"] == 0
    assert llm_endpoint.stats()["paid"] == report["llm"]["calls"]


# --- what failed ---------------------------------------------------------------------------------


def test_a_retry_asks_only_for_what_failed_until_it_is_settled(
    asking, llm_endpoint, source, tmp_path
):
    config = asking(llm_endpoint)
    undisturbed = elsewhere(config, tmp_path / "undisturbed")
    run(undisturbed, source)
    bad = [{"mode": "no_json", "match": f"{u} says number 1", "times": 9} for u in ("ben", "emil")]
    llm_endpoint.plan(*bad)
    first = run(config, source)
    failed = first["messages"]["quarantined"]["llm_bad_reply"]
    assert first["messages"]["stored"] + failed == LENGTH * len(USERS)
    run_id = newest(config).run_id

    llm_endpoint.plan(bad[1])
    again = retry(config, RetryRequest(run_id, progress=False))
    messages = again.report["messages"]
    left = messages["quarantined"]["llm_bad_reply"]
    assert (messages["read"], messages["stored"]) == (failed, failed - left)
    assert 0 < left < failed
    files = RunFiles.of(config.memory.store, again.id)
    assert {call["user_id"] for call in calls(files)} == {"ben", "emil"}

    llm_endpoint.plan()
    words = ["retry", run_id, "--config", str(tmp_path / "c.json"), "--no-progress"]
    (tmp_path / "c.json").write_text(json.dumps(config.model_dump(mode="json")))
    told = CliRunner().invoke(lightmem, words, catch_exceptions=False)
    assert told.exit_code == 0, told.output
    assert f"{left:>9,} stored" in told.stdout
    assert {call["user_id"] for call in calls(newest(config))} == {"emil"}
    assert contents(config).keys() == contents(undisturbed).keys()
    nothing = retry(config, RetryRequest(run_id, progress=False)).report
    assert (nothing["messages"]["read"], nothing["llm"]["calls"]) == (0, 0)


# --- the sleep phase -----------------------------------------------------------------------------


def test_a_sleep_decides_through_the_model_and_counts_what_it_could_not_decide(
    asking, llm_endpoint, write_lines
):
    rows = [
        {
            "user_id": user,
            "session_id": f"s{at}",
            "role": "user",
            "content": f"{user} likes tea",
            "timestamp": 1_700_000_000 + at * 86_400,
        }
        for user in USERS
        for at in range(3)
    ]
    plain = asking(llm_endpoint)
    verbatim = plain.memory.model_copy(update={"generator": Component(use="verbatim")})
    run(plain.model_copy(update={"memory": verbatim}), write_lines("tea.jsonl", rows))
    llm_endpoint.plan(
        {"mode": "no_json", "match": "cleo likes", "times": 9},
        {"mode": "merge", "times": 9},
    )
    config = asking(llm_endpoint, updater="llm")
    decide = config.pipelines.decide.model_copy(
        update={"cpus": 0.2, "batches": 2, "entries_per_portion": 3}
    )
    pipelines = config.pipelines.model_copy(update={"decide": decide})
    config = config.model_copy(update={"pipelines": pipelines})
    with pytest.raises(BudgetError):
        sleep(config, SleepRequest(progress=False, budget_tokens=1))
    report = sleep(config, SleepRequest(progress=False)).report
    stats = llm_endpoint.stats()
    assert report["merged"] == 2 * 4
    assert report["undecided"] == {"llm_bad_reply": 2}
    assert stats["repeated"] == 0
    counted = stats["stages"]["update"]
    # The model says the same again where it is told what is wrong: that is asked once.
    assert report["llm"]["calls"] == counted["calls"] == 2 * 4 + 2 * 2
    assert report["llm"]["update_in"] == counted["system_tokens"] + counted["data_tokens"]
    shard = MemoryStore.open(config.memory.store).shards[0]
    left = {user: len(shard.entries_of([user])) for user in (*USERS, "cleo")}
    assert left == dict.fromkeys(USERS, 1) | {"cleo": 3}
