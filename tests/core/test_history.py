from collections.abc import Callable, Sequence
from datetime import UTC
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightmem_core.formats import FORMATS
from lightmem_core.history import UNPLACED, ordered_history
from lightmem_core.types import Message

Make = Callable[..., Message]


def texts(messages: Sequence[Message]) -> list[str]:
    return [m.content for m in ordered_history(messages).messages]


@pytest.fixture
def unplaced(message: Make) -> Callable[..., Message]:
    """A message as a source without positions gives it, read at a line."""

    def make(content: str, said_at: int, line: int = 1, session: str = "s1", **other) -> Message:
        source = f"part.jsonl:{line}"
        return message(content, UNPLACED, session, said_at=said_at, source=source, id="", **other)

    return make


def test_positions_are_counted_by_time(unplaced: Make):
    found = ordered_history([unplaced("b", 20), unplaced("a", 10), unplaced("c", 30)])
    assert [(m.content, m.position) for m in found.messages] == [("a", 0), ("b", 1), ("c", 2)]


def test_given_positions_are_kept_whatever_the_times(message: Make):
    found = ordered_history([message("b", 1, said_at=5), message("a", 0, said_at=9)])
    assert [(m.content, m.position) for m in found.messages] == [("a", 0), ("b", 1)]


def test_messages_without_a_position_follow_those_with_one(message: Make, unplaced: Make):
    found = ordered_history([unplaced("late", 0), message("first", 0), message("fifth", 5)])
    assert [(m.content, m.position) for m in found.messages] == [
        ("first", 0),
        ("fifth", 5),
        ("late", 6),
    ]


def test_positions_of_rows_without_a_session_do_not_meet_in_the_default_one():
    """Each export counts from 0; what was said again another day is no repeat."""
    row = {"user_id": "ada", "role": "user", "content": "Good morning", "position": 0}
    days = [{**row, "timestamp": f"2025-06-1{day}T09:00"} for day in (2, 1, 1)]
    days.append({**days[0], "content": "Tea?", "position": 1, "timestamp": "2025-06-11T09:01"})
    read = [m for n, r in enumerate(days) for m in FORMATS["messages"](r, f"f:{n}", UTC)]
    found = ordered_history(m for m in read if isinstance(m, Message))
    assert [m.content for m in found.messages] == ["Good morning", "Tea?", "Good morning"]
    assert [m.position for m in found.messages] == [0, 1, 2]
    assert found.duplicates == 1  # the one of the same time


def test_sessions_are_ordered_by_their_first_time(message: Make):
    rows = [
        message("later", 0, "a", said_at=50),
        message("long", 1, "z", said_at=99),
        message("earlier", 0, "z", said_at=10),
    ]
    assert texts(rows) == ["earlier", "long", "later"]


def test_equal_times_keep_the_order_of_the_source(unplaced: Make):
    rows = [unplaced(f"line {line}", 0, line) for line in (8, 9, 10, 11, 100)]
    assert texts(rows) == texts(rows[::-1]) == [f"line {n}" for n in (8, 9, 10, 11, 100)]


def test_sessions_that_start_together_keep_an_order(message: Make):
    rows = [message("b", 0, "s2", said_at=7), message("a", 0, "s1", said_at=7)]
    assert texts(rows) == texts(rows[::-1]) == ["a", "b"]


def test_a_message_read_twice_at_its_position_is_a_duplicate(message: Make):
    twice = [message("a", 0), message("b", 1), message("a", 0, source="copy.jsonl:1")]
    found = ordered_history(twice)
    assert ([m.content for m in found.messages], found.duplicates) == (["a", "b"], 1)


def test_a_message_without_position_read_twice_is_a_duplicate(unplaced: Make):
    found = ordered_history([unplaced("a", 1), unplaced("b", 2), unplaced("a", 1, 9)])
    assert ([m.content for m in found.messages], found.duplicates) == (["a", "b"], 1)


@pytest.mark.parametrize(
    "other", [{"said_at": 2}, {"content": "b"}, {"role": "assistant"}, {"name": "Bob"}]
)
def test_what_differs_is_no_duplicate(unplaced: Make, other: dict):
    row = {"content": "a", "said_at": 1}
    found = ordered_history([unplaced(**row), unplaced(**row | other)])
    assert (len(found.messages), found.duplicates) == (2, 0)


def test_the_same_words_in_two_sessions_are_two_messages(unplaced: Make):
    found = ordered_history([unplaced("a", 1, session="s1"), unplaced("a", 1, session="s2")])
    assert len({m.id for m in found.messages}) == 2


def test_a_changed_text_at_the_same_position_is_another_message(message: Make):
    found = ordered_history([message("draft", 0), message("final", 0)])
    assert len({m.id for m in found.messages}) == 2
    assert found.duplicates == 0


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["s1", "s2", "s3"]),
        st.sampled_from([UNPLACED, UNPLACED, 0, 1, 2]),
        st.integers(0, 3),
        st.sampled_from("abc"),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, seed=st.integers())
def test_any_input_order_gives_the_same_history(rows: list[tuple], seed: int, message: Make):
    read = [
        message(text, position, session, said_at=at, source=f"f:{line}")
        for line, (session, position, at, text) in enumerate(rows, 1)
    ]
    shuffled = Random(seed).sample(read, len(read))
    found = ordered_history(read)
    assert ordered_history(shuffled) == found
    assert len(found.messages) + found.duplicates == len(read)
    assert len({m.id for m in found.messages}) == len(found.messages)
    assert all(m.position >= 0 for m in found.messages)


def test_replay_gives_the_same_history(unplaced: Make):
    rows = [unplaced(text, at) for text, at in [("a", 3), ("b", 1), ("c", 1)]]
    assert ordered_history(rows) == ordered_history(rows)


def test_a_message_without_position_keeps_its_id_when_more_of_its_session_is_read():
    def said(at: int, content: str) -> Message:
        return Message("ada", "s1", UNPLACED, "user", content, at)

    def ids(*messages: Message) -> dict[str, str]:
        return {m.content: m.id for m in ordered_history(messages).messages}

    partly, whole = ids(said(1, "a"), said(3, "c")), ids(said(1, "a"), said(2, "b"), said(3, "c"))
    assert partly.items() <= whole.items()
    again = ordered_history([said(1, "hi"), said(86_400_001, "hi")])
    assert len({m.id for m in again.messages}) == 2
