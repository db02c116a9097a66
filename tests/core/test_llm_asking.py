"""How a language model is asked: until the reply can be used, and never twice for the same."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from lightmem_core.errors import BudgetError, LLMUnavailableError
from lightmem_core.llm.asking import Asking, Parsed, all_of, together
from lightmem_core.llm.chat import ChatRequest, NoReplies, Rejected, Reply, TooLong

REQUEST = ChatRequest(({"role": "system", "content": "s"}, {"role": "user", "content": "u"}), "", 9)


class Scripted:
    """A model that gives its replies in turn, and remembers what it was asked."""

    name = "scripted"

    def __init__(self, *replies: str | Reply | Exception):
        self.replies = list(replies)
        self.asked: list[ChatRequest] = []

    async def complete(self, request: ChatRequest) -> Reply:
        self.asked.append(request)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, Reply) else Reply(reply, self.name, 1, 1)


class Kept(dict):
    """Replies saved in memory, by user and key."""

    def get(self, user_id: str, key: str) -> Reply | None:
        return super().get((user_id, key))

    def put(self, user_id: str, stage: str, key: str, reply: Reply) -> None:
        self[user_id, key] = reply


def parse(reply: Reply) -> Parsed[str]:
    """Lower-case words are good; after "?" some of it is not, and "!" makes all of it bad."""
    if "!" in reply.text:
        return Parsed(None, (f"{reply.text} is loud",))
    good, mark, _ = reply.text.partition("?")
    return Parsed(good, ("a question",) if mark else (), {"questions": len(mark)})


def ask(asking: Asking, user: str = "ada", divisible: bool = False) -> str:
    (found,) = together([asking.ask(user, REQUEST, parse, divisible)])
    return found


def test_a_bad_reply_is_asked_for_again_with_what_is_wrong_with_it():
    chat = Scripted("one!", "two!", "three")
    asking = Asking(chat, NoReplies(), "extract")
    assert ask(asking) == "three"
    assert chat.asked[0] == REQUEST
    for request, bad in zip(chat.asked[1:], ("one!", "two!"), strict=True):
        assert request.messages[:2] == REQUEST.messages
        told, wrong = request.messages[2:]
        assert told == {"role": "assistant", "content": bad}
        assert wrong["role"] == "user"
        assert f"{bad} is loud" in wrong["content"]
    assert asking.taken_counts() == {"asked": 3, "bad": 2}


def test_a_model_is_asked_no_more_than_its_retries():
    chat = Scripted("a!", "b!", "c!", "good")
    asking = Asking(chat, NoReplies(), "extract", retries=2)
    assert ask(asking) == "llm_bad_reply"
    assert asking.taken_counts() == {"asked": 3, "bad": 3, "failed": 1}
    assert asking.taken_counts() == {}


def test_after_the_last_attempt_what_is_valid_is_taken_and_the_rest_counted():
    asking = Asking(Scripted("a?", "b!"), NoReplies(), "extract", retries=1)
    assert ask(asking) == "a"
    assert asking.taken_counts() == {"asked": 2, "bad": 2, "rejected_questions": 1}


def test_a_refused_request_is_a_failure_and_not_an_error():
    asking = Asking(Scripted(Rejected("400")), NoReplies(), "extract")
    assert ask(asking) == "llm_rejected"
    assert ask(Asking(Scripted("a?", Rejected("400")), NoReplies(), "extract")) == "a"


def test_a_long_bad_reply_is_not_sent_back_whole():
    chat = Scripted("!" * 99_999, "good")
    assert ask(Asking(chat, NoReplies(), "extract")) == "good"
    assert len(chat.asked[1].messages[2]["content"]) < 5_000


@pytest.mark.parametrize(("divisible", "asked"), [(True, 1), (False, 2)])
def test_a_reply_that_is_cut_off_asks_for_less_where_that_can_be(divisible: bool, asked: int):
    chat = Scripted(Reply("cut!", "m", 1, 1, finish="length"), "good")
    asking = Asking(chat, NoReplies(), "extract")
    if divisible:
        with pytest.raises(TooLong):
            ask(asking, divisible=True)
    else:
        assert ask(asking) == "good"
        assert "cut off" in chat.asked[1].messages[-1]["content"]
    assert len(chat.asked) == asked


# --- saved replies -----------------------------------------------------------------------------


def test_a_saved_reply_is_never_asked_for_again():
    saved = Kept()
    first = Scripted("bad!", "good")
    assert ask(Asking(first, saved, "extract")) == "good"
    again = Asking(Scripted(), saved, "extract")
    assert ask(again) == "good"
    assert again.taken_counts() == {"reused": 2, "bad": 1}


def test_a_reply_is_saved_before_it_is_read():
    saved = Kept()

    def broken(reply: Reply) -> Parsed[str]:
        raise RuntimeError("the parser died")

    asking = Asking(Scripted("paid for"), saved, "extract")
    with pytest.raises(RuntimeError, match="the parser died"):
        together([asking.ask("ada", REQUEST, broken)])
    assert [reply.text for reply in saved.values()] == ["paid for"]


def test_a_saved_reply_is_another_users_or_models_never():
    saved = Kept()
    assert ask(Asking(Scripted("a"), saved, "extract")) == "a"
    assert ask(Asking(Scripted("b"), saved, "extract"), user="bob") == "b"
    other = Scripted("c")
    other.name = "other"
    assert ask(Asking(other, saved, "extract")) == "c"


def test_the_key_of_a_request_is_all_of_it():
    said = REQUEST.messages
    others = [
        ChatRequest(said, "{}", 9),
        ChatRequest(said, "", 10),
        ChatRequest(said, "", 9, 0.5),
        ChatRequest(said[:1], "", 9),
        ChatRequest(said[::-1], "", 9),
    ]
    keys = {r.key for r in (REQUEST, *others)}
    assert len(keys) == 6
    assert ChatRequest(tuple(dict(m) for m in said), "", 9).key == REQUEST.key


# --- many at once ------------------------------------------------------------------------------


class Meeting:
    """A model that replies only when as many requests as `size` are there."""

    name = "meeting"

    def __init__(self, size: int):
        self.size, self.there, self.all_there = size, 0, asyncio.Event()

    async def complete(self, request: ChatRequest) -> Reply:
        self.there += 1
        if self.there == self.size:
            self.all_there.set()
        await asyncio.wait_for(self.all_there.wait(), 10)
        return Reply("ok", self.name, 1, 1)


def test_what_several_threads_ask_is_in_flight_at_once():
    asking = Asking(Meeting(24), NoReplies(), "extract")

    def work(user: int) -> Sequence[str]:
        return together(asking.ask(f"u{user}", REQUEST, parse) for _ in range(6))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))) == [["ok"] * 6] * 4
    assert asking.taken_counts() == {"asked": 24}


def test_all_threads_share_one_event_loop():
    async def where() -> int:
        return threading.get_ident()

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: together([where(), where()]), range(3)))
    assert len({thread for pair in found for thread in pair}) == 1
    assert together([]) == []


async def gone(error: Exception) -> str:
    raise error


def finished_later(done: list[str]) -> Callable[[], object]:
    async def later() -> str:
        await asyncio.sleep(0.05)
        done.append("arrived")
        return "ok"

    return later


@pytest.mark.parametrize(
    ("error", "arrived"),
    [
        (LLMUnavailableError("gone"), []),
        (RuntimeError("bug"), []),
        (BudgetError("spent"), ["arrived"]),
    ],
)
def test_an_error_ends_the_other_work_but_what_is_paid_for_arrives(
    error: Exception, arrived: list[str]
):
    done: list[str] = []
    later = finished_later(done)
    with pytest.raises(type(error), match=str(error)):
        together([later(), gone(error)])  # pyright: ignore[reportArgumentType]
    assert together([later()]) == ["ok"]  # pyright: ignore[reportArgumentType]
    assert done == [*arrived, "arrived"]


def test_results_come_in_the_order_of_the_work():
    async def after(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    async def nested() -> list[float]:
        return await all_of([after(0.02), after(0.0)])

    assert together([nested(), nested()]) == [[0.02, 0.0]] * 2
