"""`longmemeval`: one question with its haystack of sessions an item, one user per question.

The user is the question_id. Sessions come in the order of their dates; a session id that a
haystack holds twice names the later session "id#2". metadata keeps has_answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import tzinfo
from math import inf

from lightmem_core.formats.fields import kind
from lightmem_core.formats.rows import Rejected, message, rejected
from lightmem_core.formats.timestamps import parse_time
from lightmem_core.types import Message


def parse(record: object, source: str, timezone: tzinfo) -> Iterator[Message | Rejected]:
    haystack = record.get("haystack_sessions") if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(haystack, list):
        detail = f"an item is an object with haystack_sessions, which are {kind(haystack)}"
        yield rejected(source, "wrong_type", detail, record)
        return
    dates = padded(record.get("haystack_dates"), len(haystack))
    ids = padded(record.get("haystack_session_ids"), len(haystack))
    taken: set[object] = set()
    for place in sorted(range(len(haystack)), key=lambda n: time_or_last(dates[n], timezone)):
        owner = {
            "user_id": record.get("question_id"),
            "session_id": unique(ids[place], taken),
            "timestamp": dates[place],
        }
        yield from session(haystack[place], owner, source, timezone)


def session(
    turns: object, owner: dict[str, object], source: str, timezone: tzinfo
) -> Iterator[Message | Rejected]:
    if not isinstance(turns, list):
        detail = f"a session is a list of turns, not {kind(turns)}"
        yield rejected(source, "wrong_type", detail, {**owner, "turns": turns})
        return
    for position, turn in enumerate(turns):
        if isinstance(turn, dict):
            answer = turn.get("has_answer")
            known = None if answer is None else {"has_answer": answer}
            said = {"role": turn.get("role"), "content": turn.get("content"), "metadata": known}
            turn = {**owner, "position": position, **said}
        yield message(turn, source, timezone)


def padded(values: object, length: int) -> Sequence[object]:
    """As many values as there are sessions; the missing ones are None, and then rejected."""
    given = values if isinstance(values, list) else []
    return [*given[:length], *[None] * (length - len(given))]


def time_or_last(date: object, timezone: tzinfo) -> float:
    try:
        return parse_time(date, timezone)
    except (ValueError, OverflowError):
        return inf


def unique(session_id: object, taken: set[object]) -> object:
    """The id, or the id with the first number that makes it new."""
    if not isinstance(session_id, (str, int)) or session_id == "":
        return session_id
    name, count = session_id, 1
    while name in taken:
        count += 1
        name = f"{session_id}#{count}"
    taken.add(name)
    return name
