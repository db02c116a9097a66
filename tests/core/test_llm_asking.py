"""How a language model is asked: until the reply can be used, and never twice for the same."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from lightmem_core.errors import BudgetError, ConfigError, LLMUnavailableError
from lightmem_core.llm.asking import Asking, Parsed, Question, all_of, together
from lightmem_core.llm.chat import RECORD, ChatRequest, NoReplies, Rejected, Reply, TooLong

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


def parse(reply: Reply) -> Parsed[str]:
    """Lower-case words are good; after "?" some of it is not, and "!" makes all of it bad."""
    if "!" in reply.text:
        return Parsed(None, (f"{reply.text} is loud",), {"shouts": reply.text.count("!")})
    good, mark, _ = reply.text.partition("?")
    return Parsed(good, ("a question",) if mark else (), {"questions": len(mark)}, worth=len(good))


def question(user: str = "ada", divisible: bool = False) -> Question[str]:
    return Question(user, ("message 1", "message 2"), REQUEST, parse, divisible)


def ask(asking: Asking, user: str = "ada", divisible: bool = False) -> str:
    (found,) = together([asking.ask(question(user, divisible))])
    return found


def test_a_bad_reply_is_asked_for_again_with_what_is_wrong_with_it(kept):
    chat = Scripted("one!", "two!", "three")
    assert ask(Asking(chat, kept, "extract")) == "three"
    assert chat.asked[0] == REQUEST
    for request, bad in zip(chat.asked[1:], ("one!", "two!"), strict=True):
        assert request.messages[:2] == REQUEST.messages
        told, wrong = request.messages[2:]
        assert told == {"role": "assistant", "content": bad}
        assert wrong["role"] == "user"
        assert f"{bad} is loud" in wrong["content"]
    assert kept.counts == {"asked": 3, "bad": 2, "rejected_shouts": 2}


def test_a_model_is_asked_no_more_than_its_retries(kept):
    chat = Scripted("a!", "b!!", "c!", "good")
    assert ask(Asking(chat, kept, "extract", retries=2)) == "llm_bad_reply"
    assert kept.counts == {"asked": 3, "bad": 3, "rejected_shouts": 4, "failed": 1}


def test_of_bad_replies_the_best_is_taken_and_what_all_of_them_lost_is_counted(kept):
    asking = Asking(Scripted("longer?", "a?", "b!"), kept, "extract")
    assert ask(asking) == "longer"
    lost = {"rejected_questions": 2, "rejected_shouts": 1}
    assert kept.counts == {"asked": 3, "bad": 3, "in_part": 1, **lost}


def test_a_correction_that_does_not_fit_leaves_what_was_good_before(kept):
    asking = Asking(Scripted("a?", TooLong("the correction")), kept, "extract")
    assert ask(asking) == "a"


def test_what_failed_is_noted_with_what_was_asked_about_and_what_the_model_said(kept):
    assert ask(Asking(Scripted("a!", "b!", "c!"), kept, "extract")) == "llm_bad_reply"
    (note,) = (n for n in kept.notes.values() if n.kind == "failed")
    assert (note.about, note.reason) == (("message 1", "message 2"), "llm_bad_reply")
    assert note.problems == ("c! is loud",)
    assert [kept.get("ada", key).text for key in note.replies] == ["a!", "b!", "c!"]


def test_a_refused_request_is_a_failure_and_not_an_error(kept):
    asking = Asking(Scripted(Rejected("400 no"), "fine", "good"), kept, "extract")
    assert ask(asking) == "llm_rejected"
    (note,) = kept.notes.values()
    assert (note.kind, note.about, note.problems) == ("failed", question().about, ("400 no",))
    assert ask(Asking(Scripted("a?", Rejected("400")), NoReplies(), "extract")) == "a"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Rejected("400 no"), "refuses even .*400 no"),
        (TooLong("9 of 8"), "fill the context.*9 of 8"),
    ],
)
def test_where_not_even_a_word_is_taken_the_configuration_is_at_fault(error: Exception, said: str):
    """Else the whole input would be quarantined, message by message."""
    chat = Scripted(*[error] * 4, "good", "good")
    asking = Asking(chat, NoReplies(), "extract")
    with pytest.raises(ConfigError, match=said):
        together([asking.ask(question(divisible=True)) for _ in range(3)])
    word = chat.asked[-1]
    assert (word.messages[0], word.schema) == (REQUEST.messages[0], REQUEST.schema)
    assert len(chat.asked) == 4  # one word for all of them
    assert ask(asking) == "good"  # once the server is put right


def test_where_anything_was_answered_the_request_is_at_fault(kept):
    chat = Scripted("good", Rejected("400"), Rejected("400"))
    asking = Asking(chat, kept, "extract")
    assert [ask(asking, user) for user in ("ada", "bob", "cleo")] == [
        "good",
        "llm_rejected",
        "llm_rejected",
    ]
    assert len(chat.asked) == 3


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


def test_a_saved_reply_is_never_asked_for_again(kept):
    saved = kept
    first = Scripted("bad!", "good")
    assert ask(Asking(first, saved, "extract")) == "good"
    again = Asking(Scripted(), saved, "extract")
    assert ask(again) == "good"
    assert kept.counts == {"asked": 2, "bad": 1, "rejected_shouts": 1}


def test_a_reply_is_saved_before_it_is_read(kept):
    def broken(reply: Reply) -> Parsed[str]:
        raise RuntimeError("the parser died")

    asking = Asking(Scripted("paid for"), kept, "extract")
    with pytest.raises(RuntimeError, match="the parser died"):
        together([asking.ask(replace(question(), parse=broken))])
    assert [reply.text for reply in kept.replies.values()] == ["paid for"]


def test_a_saved_reply_is_another_users_or_models_never(kept):
    saved = kept
    assert ask(Asking(Scripted("a"), saved, "extract")) == "a"
    assert ask(Asking(Scripted("b"), saved, "extract"), user="bob") == "b"
    other = Scripted("c")
    other.name = "other"
    assert ask(Asking(other, saved, "extract")) == "c"
    warm = Scripted("d")
    warm.key = "temperature 1"  # pyright: ignore[reportAttributeAccessIssue]
    assert ask(Asking(warm, saved, "extract")) == "d"


def test_what_a_client_asks_on_its_own_is_saved_too(kept):
    class Probing(Scripted):
        async def complete(self, request: ChatRequest) -> Reply:
            record = RECORD.get()
            assert record is not None
            await record(Reply("OK", self.name, 7, 1))
            return await super().complete(request)

    for _ in range(2):
        assert ask(Asking(Probing("good"), kept, "extract")) == "good"
        kept.replies = {key: r for key, r in kept.replies.items() if r.text == "OK"}
    assert [reply.prompt_tokens for reply in kept.replies.values()] == [7, 7]


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


def test_what_several_threads_ask_is_in_flight_at_once(kept):
    asking = Asking(Meeting(24), kept, "extract")

    def work(user: int) -> Sequence[str]:
        requests = [replace(REQUEST, max_tokens=n + 1) for n in range(6)]
        return together(asking.ask(replace(question(f"u{user}"), request=r)) for r in requests)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))) == [["ok"] * 6] * 4
    assert kept.counts == {"asked": 24}


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
        (LLMUnavailableError("gone"), ["arrived"]),
        (ConfigError("no key"), ["arrived"]),
        (BudgetError("spent"), ["arrived"]),
        (RuntimeError("bug"), []),
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
