"""Which messages of a request are new. The ids are those of the batch."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightmem_core.history import UNPLACED, ordered_history
from lightmem_core.online.service import Incoming
from lightmem_core.online.sessions import FIRST_MS, LAST_MS, Session, posted
from lightmem_core.types import Message

NOW = 1_700_000_000_000


def said(*texts: str, **other) -> list[Incoming]:
    """The user and the assistant in turns."""
    roles = ("user", "assistant")
    return [Incoming(roles[at % 2], text, **other) for at, text in enumerate(texts)]


class Talk:
    """A session as a server keeps it."""

    def __init__(self, *stored: Message, span: float = float("inf")):
        self.session = Session(stored, (), span=span)

    def add(self, *messages: Incoming, now: int = NOW) -> str:
        """n for each new message, d for each duplicate."""
        taken = self.session.take(posted("ada", "s1", messages).messages, now)
        return "".join("n" if accepted.state == "accepted" else "d" for _, accepted in taken)

    @property
    def texts(self) -> list[str]:
        return [m.content for m in sorted(self.session.by_id.values(), key=lambda m: m.position)]


def test_what_is_sent_again_is_there():
    talk = Talk()
    turn = said("hi", "hello", "hi", "bye")
    assert (talk.add(*turn), talk.add(*turn), talk.add(*turn[1:3])) == ("nnnn", "dddd", "dd")
    assert talk.texts == ["hi", "hello", "hi", "bye"]


def test_the_whole_conversation_with_each_turn_adds_the_turn():
    talk, whole = Talk(), said("hi", "yes", "really", "yes", "sure", "yes", "good", "yes")
    for end in range(2, len(whole) + 1, 2):
        talk.add(*whole[:end])
    assert talk.texts == [m.content for m in whole]


def test_the_last_messages_with_each_turn_add_the_turn():
    talk, whole = Talk(), said("hi", "yes", "really", "yes", "sure", "yes", "good", "yes")
    for end in range(2, len(whole) + 1, 2):
        talk.add(*whole[max(0, end - 4) : end])
    assert talk.texts == [m.content for m in whole]


def test_an_answer_is_not_lost_because_it_was_given_before():
    talk = Talk()
    assert [talk.add(*said(question, "yes")) for question in ("is it", "was it")] == ["nn", "nn"]
    assert talk.texts == ["is it", "yes", "was it", "yes"]


def test_a_conversation_that_begins_anew_is_recognised():
    talk, turn = Talk(), said("one", "two", "three", "four")
    talk.add(Incoming("system", "Today is Monday."), *turn)
    again = talk.add(Incoming("system", "Today is Tuesday."), *turn, Incoming("user", "five"))
    assert again == "nddddn"


def test_a_time_tells_messages_apart_and_a_place_too():
    talk = Talk()
    assert talk.add(*said("yes", said_at=5), *said("yes", said_at=6), *said("yes", said_at=5)) == (
        "nnd"
    )
    assert talk.add(*said("no", position=7, said_at=5), *said("no", position=8, said_at=5)) == "nn"
    assert talk.add(*said("no", position=7, said_at=9)) == "d"
    assert talk.add(*said("later")) == "n"
    assert talk.session.sequence[-1].position == 9


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from([None, 0, 1]), st.integers(0, 3)),
        min_size=1,
    )
)
def test_what_names_its_time_has_the_id_that_the_batch_gives_it(rows):
    """However it comes in, alone or together."""
    incoming = [Incoming("user", text, at, position=place) for text, place, at in rows]
    read = [
        Message("ada", "s1", UNPLACED if m.position is None else m.position, "user", m.content, at)
        for m in incoming
        if (at := m.said_at) is not None
    ]
    talk = Talk()
    for message in incoming:
        talk.add(message)
    placed = {m.id for m in ordered_history(read).messages}
    assert placed >= set(talk.session.by_id)
    known = Talk(*ordered_history(read).messages)
    assert set(known.add(*incoming)) == {"d"}


def test_times_that_are_given_out_are_in_order_and_each_its_own():
    talk = Talk()
    for now in (NOW, NOW, NOW + 1, NOW + 1_000):
        talk.add(*said(*(f"{now} {len(talk.texts)} {at}" for at in range(3))), now=now)
    times = [m.said_at for m in talk.session.sequence]
    assert times == sorted(set(times))
    assert times[-1] < NOW + 2_000
    assert [m.position for m in talk.session.sequence] == list(range(12))


def test_what_the_batch_failed_at_is_taken_in_again_as_it_was():
    failed = Message("ada", "s1", 3, "user", "It rains.", 5, source="a:1", id="m1")
    talk = Talk(replace(failed, state="quarantined", reason="timeout"))
    assert [talk.add(*said("It rains.")) for _ in range(2)] == ["n", "d"]
    assert [m.id for m in talk.session.sequence] == ["m1"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"content": " "}, "no text"),
        ({"role": ""}, "no role"),
        ({"metadata": "[1]"}, "expected an object"),
        ({"position": -1}, "not between"),
        ({"said_at": FIRST_MS - 1}, "within the years"),
        ({"said_at": LAST_MS + 1}, "within the years"),
        ({"agent_id": "a\0"}, "NUL"),
    ],
)
def test_what_can_be_no_message_is_told_why(wrong: dict, told: str):
    row = {"role": "user", "content": "hi", **wrong}
    with pytest.raises(ValueError, match=told):
        posted("ada", "s1", [Incoming(**row)])


@pytest.mark.parametrize("ids", [("", "s1"), ("ada", ""), ("a\ud800", "s1")])
def test_ids_that_no_row_can_hold_are_refused(ids: tuple[str, str]):
    with pytest.raises(ValueError, match="_id"):
        posted(*ids, said("hi"))


HOUR = 3_600_000


def test_the_same_words_are_said_anew_once_the_time_for_a_repeat_is_over():
    talk = Talk(span=HOUR)
    running = said("I went running today")
    assert [talk.add(*running, now=NOW + at) for at in (0, HOUR, HOUR + 1)] == ["n", "d", "n"]
    assert talk.add(*running, now=NOW + 2 * HOUR) == "d"  # it is the second one that is sent again
    assert talk.texts == ["I went running today"] * 2


def test_a_conversation_that_went_on_until_now_is_recognised_however_long_it_is():
    talk, whole = Talk(span=HOUR), said("hi", "yes", "really", "yes", "sure", "yes", "good", "yes")
    for end in range(2, len(whole) + 1, 2):
        talk.add(*whole[:end], now=NOW + end * HOUR // 2)
    assert talk.texts == [m.content for m in whole]
    assert talk.add(*whole, now=NOW + 9 * HOUR) == "n" * len(whole)


def test_a_key_tells_words_that_are_sent_again_from_those_that_are_said_again():
    talk = Talk(span=HOUR)
    keys = ("monday", "monday", "tuesday", "monday")
    assert [talk.add(*said("I ran", key=key), now=NOW + at) for at, key in enumerate(keys)] == [
        *("n", "d", "n", "d")
    ]
    assert talk.add(*said("I ran", key="monday"), now=NOW + 99 * HOUR) == "d"
    assert talk.add(*said("I swam", key="monday")) == "n"
