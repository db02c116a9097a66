"""Replies on disk: whole or not there, counted in the files, and gone with their user."""

from __future__ import annotations

import asyncio
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from lightmem_core import Config, factory, load_config
from lightmem_core.config import LLMConfig, Prices, StoreConfig
from lightmem_core.encoders.hashing import WordTokenizer
from lightmem_core.errors import BudgetError, ConfigError
from lightmem_core.llm.asking import Asking, Parsed, Question, together
from lightmem_core.llm.chat import ChatRequest, Note, Reply
from lightmem_core.llm.echo import EchoChat
from lightmem_core.llm.usage import Usage
from lightmem_core.long_term.mentions import pseudonym
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_pipelines.budget import Budget
from lightmem_pipelines.erase import erase
from lightmem_pipelines.files import RunFiles
from lightmem_pipelines.replies import (
    NOTES,
    RunReplies,
    calls,
    folder_of,
    reply_counts,
    shared_out,
    usage,
)

FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"
REPLY = Reply("said of 'eve': {}", "tiny", 100, 20, cached_tokens=60, seconds=0.5, finish="length")
USERS = ("ada", "x' OR '1'='1/../ada", "eve")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = load_config(FAKES, uri=str(tmp_path / "store"))
    MemoryStore.create(config.memory.store, VectorModel.of(factory.embedder(config.memory)))
    return config


@pytest.fixture
def files(config: Config) -> RunFiles:
    return RunFiles.of(config.memory.store, "backfill-1")


def test_what_is_saved_is_given_back_to_its_user_in_its_run_alone(config: Config, files: RunFiles):
    RunReplies(files).put("ada", "extract", "key", REPLY)
    assert RunReplies(files).get("ada", "key") == REPLY
    assert RunReplies(files).get("ben", "key") is None
    assert RunReplies(files).get("ada", "other") is None
    assert RunReplies(RunFiles.of(config.memory.store, "other")).get("ada", "key") is None


def test_a_reply_that_was_cut_off_while_it_was_written_is_not_there(files: RunFiles):
    replies = RunReplies(files)
    replies.put("ada", "extract", "key", REPLY)
    whole = Path(files.folder(folder_of("ada"))) / "key.json"
    whole.rename(whole.with_name(".key.json.1.2"))
    assert replies.get("ada", "key") is None
    assert usage(files) == Usage()


def test_many_threads_that_save_the_same_do_not_meet(files: RunFiles):
    replies = RunReplies(files)
    with ThreadPoolExecutor(16) as threads:
        for n in range(200):
            threads.submit(replies.put, "ada", "extract", str(n % 5), replace(REPLY, text=str(n)))
    found = list(calls(files))
    assert sorted(call["key"] for call in found) == list("01234")
    assert all(int(call["text"]) % 5 == int(call["key"]) for call in found)


def test_usage_is_summed_by_stage_and_a_call_saved_twice_counts_once(files: RunFiles):
    replies = RunReplies(files)
    for _ in range(2):
        replies.put("ada", "extract", "a", REPLY)
        replies.put("ben", "update", "b", replace(REPLY, prompt_tokens=70, cached_tokens=0))
    found = usage(files)
    assert (found.summary_in, found.summary_out, found.update_in, found.update_out) == (
        *(100, 20),
        *(70, 20),
    )
    assert (found.total, found.calls, found.cached, found.call_seconds) == (210, 2, 60, 1.0)
    assert found.models == {"tiny": 2}
    assert found.money(Prices(prompt=1, completion=10)) == pytest.approx(570e-6)
    assert found.money(Prices(prompt=1, cached=0.5, completion=10)) == pytest.approx(540e-6)


def test_replies_lie_in_a_bucket_as_they_do_in_a_folder(bucket):
    place: StoreConfig = bucket()
    files = RunFiles.of(place, "backfill-1")
    assert usage(files) == Usage()
    replies = RunReplies(files)
    assert replies.get("ada", "a") is None
    replies.put("ada", "extract", "a", REPLY)
    assert replies.get("ada", "a") == REPLY
    assert usage(files).calls == 1


def test_erasing_a_user_takes_the_replies_and_leaves_those_of_others(config: Config):
    runs = [RunFiles.of(config.memory.store, run) for run in ("backfill-1", "sleep-1")]
    for files in runs:
        for user in USERS:
            for key in "ab":
                RunReplies(files).put(user, "extract", key, REPLY)
    erased = erase(config, "eve").report["run_files"]
    assert erased == {"files": 4, "rows": 4}
    for files in runs:
        assert not Path(files.folder(folder_of("eve"))).exists()
        assert usage(files).calls == 4
        assert all(RunReplies(files).get(user, "a") == REPLY for user in USERS[:2])
    hidden = pseudonym("eve", MemoryStore.open(config.memory.store).salt)
    assert hidden not in "".join(map(str, calls(runs[0])))


def test_limits_a_minute_are_those_of_all_processes_together(config: Config):
    options = {"model": "m", "concurrency": 8, "requests_per_minute": 600, "tokens_per_minute": 900}
    llm = LLMConfig(use="openai", options=options)
    memory = config.memory.model_copy(update={"llm": llm})
    shared = shared_out(memory, 3).llm
    assert shared is not None
    assert shared.options == options | {"requests_per_minute": 200, "tokens_per_minute": 300}
    assert shared_out(config.memory, 3) == config.memory


def test_what_was_wrong_with_replies_is_counted_once_and_gone_with_its_user(config: Config):
    files = RunFiles.of(config.memory.store, "backfill-1")
    replies = RunReplies(files)
    for _ in range(2):  # as by an attempt that was cut off, and the next
        for user in ("ada", "eve"):
            replies.note(user, "extract", Note("reply", "k", ("m1",), "", ("bad",), {"facts": 2}))
            replies.note(user, "extract", Note("failed", "q", ("m1",), "llm_bad_reply", ("bad",),
                                               replies=("k",)))  # fmt: skip
    assert reply_counts(files, 2) == {"asked": 2, "bad": 2, "rejected_facts": 4, "failed": 2}
    (failed,) = (
        n for n in files.read_deep(NOTES) if (n["kind"], n["user_id"]) == ("failed", "ada")
    )
    assert failed["about"] == ["m1"]
    assert failed["replies"] == [f"{folder_of('ada')}/k.json"]
    erase(config, "eve")
    assert {note["user_id"] for note in files.read_deep(NOTES)} == {"ada"}


# --- budgets -----------------------------------------------------------------------------------


def used(tokens_in: int, tokens_out: int) -> Usage:
    return Usage(summary_in=tokens_in, summary_out=tokens_out, calls=3)


def test_a_budget_is_spent_when_as_much_is_paid():
    prices = Prices(prompt=1, completion=2)
    tokens, money = Budget(tokens=100), Budget.asked(None, 0.0001, prices)
    assert tokens.spent(used(60, 39)) == ""
    assert "100 tokens in 3 calls, all that --budget-tokens 100 allows" in tokens.spent(
        used(60, 40)
    )
    assert money.spent(used(59, 20)) == ""
    assert "--budget-money 0.0001 allows" in money.spent(used(60, 20))
    assert Budget().spent(used(10**9, 10**9)) == ""
    assert not Budget().capped


def test_a_budget_of_money_needs_prices():
    with pytest.raises(ConfigError, match=r"--budget-money needs prices .*memory\.llm\.prices"):
        Budget.asked(None, 1.0, None)


def test_what_is_saved_can_be_had_after_a_run_was_stopped_and_nothing_else(files: RunFiles):
    replies = RunReplies(files)
    replies.put("ada", "extract", "a", REPLY)
    replies.close(BudgetError("spent"))
    assert replies.get("ada", "a") == REPLY
    with pytest.raises(BudgetError, match="spent"):
        replies.get("ada", "b")


def test_no_place_is_free_before_a_reply_is_counted(files: RunFiles, monkeypatch):
    """Else the next call would be asked for with money that is spent."""
    order = []
    monkeypatch.setattr(ray, "get", lambda ref: ref)
    monitor = SimpleNamespace(
        spent=SimpleNamespace(remote=lambda: order.append("asked") or ""),
        paid=SimpleNamespace(remote=lambda call: order.append("counted")),
    )
    replies = pickle.loads(pickle.dumps(RunReplies(files, None, places=1)))
    replies.monitor = monitor

    class Slow(EchoChat):
        async def complete(self, request: ChatRequest) -> Reply:
            await asyncio.sleep(0.01)
            return REPLY

    asking = Asking(Slow(WordTokenizer()), replies, "extract")
    request = ChatRequest(({"role": "user", "content": "hello"},), "", 9)
    questions = [
        Question("ada", (), replace(request, max_tokens=n), lambda reply: Parsed("fine"))
        for n in range(1, 5)
    ]
    assert together(map(asking.ask, questions)) == ["fine"] * 4
    assert order == ["asked", "counted"] * 4
