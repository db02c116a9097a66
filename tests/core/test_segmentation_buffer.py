from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lightmem_core.sensory.sensory_buffer import Span, cut_in_lockstep, fitted

lengths = st.lists(st.lists(st.integers(0, 9), max_size=20), max_size=5)


def places(span: Span, every: int) -> list[int]:
    """Some cuts that depend on the place alone."""
    _, start, stop = span
    return [k - start for k in range(start + 1, stop) if k % every == 0]


@given(lengths, st.integers(1, 30), st.integers(2, 7))
def test_sessions_are_cut_as_if_each_were_alone(sessions: list, capacity: int, every: int):
    def cut(spans: list[Span]) -> list[list[int]]:
        return [places(span, every) for span in spans]

    found = cut_in_lockstep(sessions, capacity, cut)
    assert found == [cut_in_lockstep([session], capacity, cut)[0] for session in sessions]
    for session, of_session in zip(sessions, found, strict=True):
        assert of_session == sorted({k for k in of_session if 0 < k < len(session)})


@given(lengths, st.integers(1, 30), st.integers(2, 7))
def test_a_buffer_holds_what_fits_and_the_tail_opens_the_next(
    sessions: list, capacity: int, every: int
):
    read: dict[int, list[tuple[Span, list[int]]]] = {s: [] for s in range(len(sessions))}

    def cut(spans: list[Span]) -> list[list[int]]:
        found = [places(span, every) for span in spans]
        for span, of_span in zip(spans, found, strict=True):
            read[span[0]].append((span, of_span))
        return found

    cut_in_lockstep(sessions, capacity, cut)
    for number, session in enumerate(sessions):
        for (_, start, stop), _ in read[number]:
            assert sum(session[start:stop]) <= capacity or stop == start + 1
            assert stop == len(session) or sum(session[start : stop + 1]) > capacity
        for ((_, start, stop), found), ((_, following, _), _) in pairwise(read[number]):
            assert following == (start + found[-1] if found else stop)
        assert not session or read[number][-1][0][2] == len(session)


def test_all_sessions_advance_together():
    calls = []

    def cut(spans: list[Span]) -> list[list[int]]:
        calls.append(spans)
        return [[] for _ in spans]

    assert cut_in_lockstep([[5] * 4, [5] * 2, [], [5] * 3], 10, cut) == [[2], [], [], [2]]
    assert calls == [[(0, 0, 2), (1, 0, 2), (3, 0, 2)], [(0, 2, 4), (3, 2, 3)]]


@given(st.lists(st.lists(st.integers(), max_size=30), max_size=8), st.integers(8, 60))
def test_texts_that_do_not_fit_lose_the_end_of_the_longest(texts: list, room: int):
    found = fitted(texts, room)
    assert [text[: len(part)] for text, part in zip(texts, found, strict=True)] == found
    assert sum(map(len, found)) <= room
    longest = max(map(len, found), default=0)
    for text, part in zip(texts, found, strict=True):
        assert len(part) == min(len(text), longest)
    if found != texts:
        assert sum(min(len(text), longest + 1) for text in texts) > room
