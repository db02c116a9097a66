from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightmem_core.errors import ComponentError
from lightmem_core.short_term.buffer import Buffering
from lightmem_core.short_term.extract import Extraction, VerbatimGenerator
from lightmem_core.types import (
    Buffer,
    Entry,
    Extracted,
    Fact,
    Message,
    Segment,
    SegmentedHistory,
    Source,
)

Make = Callable[..., Message]


def segmented(make: Make, user: str, *segments: Sequence[int], duplicates: int = 0):
    """A history of segments, each given by the tokens of its messages; two to a session."""
    rows, position = [], 0
    for number, tokens in enumerate(segments):
        messages = []
        for size in tokens:
            text = f"{user} says {position}"
            session = f"s{number // 2}"
            messages.append(make(text, position, session, user_id=user, compressed_tokens=size))
            position += 1
        rows.append(Segment(tuple(messages)))
    return SegmentedHistory(user, tuple(rows), duplicates)


def sizes(buffers: Sequence[Buffer]) -> list[list[list[int]]]:
    """Per buffer and segment, the tokens of the messages."""
    return [
        [[m.compressed_tokens for m in segment.messages] for segment in buffer.segments]
        for buffer in buffers
    ]


# --- buffers -----------------------------------------------------------------------------------


def test_a_buffer_is_filled_up_to_its_tokens(message: Make):
    row = segmented(message, "ada", [4, 2], [4], [1], [9])
    assert sizes(Buffering(10)([row])) == [[[4, 2], [4]], [[1], [9]]]


def test_a_buffer_spans_sessions(message: Make):
    (buffer,) = Buffering(10)([segmented(message, "ada", [1], [1], [1])])
    assert [m.session_id for m in buffer.messages] == ["s0", "s0", "s1"]


def test_a_buffer_never_spans_users(message: Make):
    rows = [segmented(message, "ada", [1]), segmented(message, "bob", [1])]
    buffers = Buffering(10)(rows)
    assert [(b.user_id, {m.user_id for m in b.messages}) for b in buffers] == [
        ("ada", {"ada"}),
        ("bob", {"bob"}),
    ]


def test_a_segment_larger_than_a_buffer_is_split_between_messages(message: Make):
    row = segmented(message, "ada", [3], [4, 4, 4, 4, 4], [2])
    assert sizes(Buffering(10)([row])) == [[[3], [4]], [[4, 4]], [[4, 4], [2]]]


def test_a_segment_is_split_only_where_much_of_a_buffer_is_free(message: Make):
    filled = [sizes(Buffering(10)([segmented(message, "ada", [n], [2, 2, 6])])) for n in (7, 8)]
    assert filled == [[[[7], [2]], [[2, 6]]], [[[8]], [[2, 2, 6]]]]


def test_a_message_larger_than_a_buffer_has_one_of_its_own(message: Make):
    row = segmented(message, "ada", [2, 50, 2])
    assert sizes(Buffering(10)([row])) == [[[2]], [[50]], [[2]]]


@settings(max_examples=100, deadline=None)
@given(
    tokens=st.lists(st.lists(st.integers(0, 15), min_size=1, max_size=5), max_size=8),
    size=st.integers(1, 12),
)
def test_buffers_lose_and_reorder_nothing_and_keep_their_size(
    tokens: list[list[int]], size: int, message: Make
):
    row = segmented(message, "ada", *tokens)
    buffers = Buffering(size)([row])
    assert [m for b in buffers for m in b.messages] == [m for s in row.segments for m in s.messages]
    for buffer in buffers:
        full = sum(m.compressed_tokens for m in buffer.messages)
        spoken = [m for m in buffer.messages if m.compressed_tokens]
        assert full <= size or len(spoken) == 1


@pytest.mark.parametrize("segments", [(), ([9], [9], [9])])
def test_duplicates_are_reported_once(message: Make, segments: tuple[list[int], ...]):
    buffers = Buffering(10)([segmented(message, "ada", *segments, duplicates=3)])
    assert [b.duplicates for b in buffers] == [3, 0, 0][: max(len(segments), 1)]


def test_a_history_without_messages_and_duplicates_gives_no_buffer(message: Make):
    assert Buffering(10)([segmented(message, "ada")]) == []


def test_buffers_do_not_depend_on_the_batch(message: Make):
    rows = [
        segmented(message, "ada", [4, 4], [4, 9], duplicates=1),
        segmented(message, "bob", duplicates=2),
        segmented(message, "eve", [30]),
    ]
    stage = Buffering(10)
    assert stage(rows) == [buffer for row in rows for buffer in stage([row])]
    assert stage([]) == []


# --- extraction --------------------------------------------------------------------------------


class Scripted:
    """A generator that gives the same answers whatever it is asked."""

    name = "scripted"

    def __init__(self, *answers: list[Fact] | str):
        self.answers = answers

    def generate(self, buffers: Sequence[Buffer]) -> list[list[Fact] | str]:
        return list(self.answers)


@pytest.fixture
def buffer(message: Make) -> Buffer:
    row = segmented(message, "ada", [1, 1], [1], duplicates=5)
    return Buffering(10)([row])[0]


def extracted(buffer: Buffer, *facts: Fact) -> Extracted:
    return Extraction(Scripted(list(facts)))([buffer])[0]


def test_every_message_ends_in_the_state_its_facts_give_it(buffer: Buffer):
    found = extracted(buffer, Fact("both", (0, 2)))
    assert [m.state for m in found.messages] == ["stored", "no_facts", "stored"]
    assert [m.id for m in found.messages] == [m.id for m in buffer.messages]
    assert (found.user_id, found.duplicates) == ("ada", 5)


def test_no_facts_is_an_answer(buffer: Buffer):
    found = extracted(buffer)
    assert [m.state for m in found.messages] == ["no_facts"] * 3
    assert found.entries == ()


def test_a_failed_buffer_is_quarantined_with_the_reason(buffer: Buffer):
    found = Extraction(Scripted("reply_is_no_json", [Fact("x", (0,))]))([buffer, buffer])
    assert [(m.state, m.reason) for m in found[0].messages] == [
        ("quarantined", "reply_is_no_json")
    ] * 3
    assert (found[0].entries, found[0].duplicates) == ((), 5)
    assert [m.state for m in found[1].messages] == ["stored", "no_facts", "no_facts"]


def test_an_entry_takes_its_place_from_its_first_source(buffer: Buffer):
    (entry,) = extracted(buffer, Fact("It rains.", (1, 2), "weather", 77)).entries
    first = buffer.messages[1]
    assert (entry.user_id, entry.session_id, entry.position, entry.said_at, entry.speaker) == (
        ("ada", first.session_id, first.position, first.said_at, "user")
    )
    assert (entry.text, entry.topic, entry.event_at, entry.writer) == (
        ("It rains.", "weather", 77, "scripted")
    )
    assert entry.sources == tuple(Source("s0", n, buffer.messages[n].id) for n in (1, 2))


def test_the_facts_of_one_message_are_numbered_and_differ(buffer: Buffer):
    facts = [Fact("same", (0,)), Fact("other", (1,)), Fact("same", (0,)), Fact("same", (0, 1))]
    entries = extracted(buffer, *facts).entries
    assert [e.ordinal for e in entries] == [0, 0, 1, 2]
    assert len({e.id for e in entries}) == 4


def ids(rows: Sequence[Extracted]) -> list[str]:
    return [e.id for row in rows for e in row.entries]


def test_ids_are_the_same_whatever_the_buffer(message: Make):
    row = segmented(message, "ada", [4, 4], [4, 4], [4])
    stage = Extraction(VerbatimGenerator())
    small, large = Buffering(4)([row]), Buffering(100)([row])
    assert (len(small), len(large)) == (5, 1)
    assert ids(stage(small)) == ids(stage(large))


@pytest.mark.parametrize("change", ["user_id", "session_id", "position", "text"])
def test_ids_tell_users_places_and_texts_apart(message: Make, change: str):
    plain = {"user_id": "ada", "session_id": "s", "position": 0, "text": "x"}
    changed = plain | {change: 1 if change == "position" else "other"}

    def made(row: dict) -> Entry:
        said = message("c", row["position"], row["session_id"], user_id=row["user_id"], said_at=0)
        fact = Fact(row["text"], (0,))
        return extracted(Buffer(row["user_id"], (Segment((said,)),)), fact).entries[0]

    assert made(plain).id == made(dict(plain)).id != made(changed).id


def test_extraction_does_not_depend_on_the_batch(message: Make):
    rows = [segmented(message, user, [3, 3], [3], duplicates=1) for user in ("ada", "bob")]
    stage, buffers = Extraction(VerbatimGenerator(fails_on="bob says 1")), Buffering(6)(rows)
    alone = [stage([b])[0] for b in buffers]
    assert ids(stage(buffers)) == ids(alone)
    assert [row.messages for row in stage(buffers)] == [row.messages for row in alone]
    assert stage([]) == []


def test_a_generator_that_loses_a_buffer_is_named(buffer: Buffer):
    with pytest.raises(ComponentError, match=r"Scripted.generate returned 1 answers for 2 buffers"):
        Extraction(Scripted([]))([buffer, buffer])


@pytest.mark.parametrize("sources", [(), (3,), (0, -1)])
def test_a_fact_from_nowhere_is_refused(buffer: Buffer, sources: tuple[int, ...]):
    with pytest.raises(ComponentError, match=r"Scripted gave a fact the sources .* 3 messages"):
        extracted(buffer, Fact("x", sources))
