"""Which format a file has, told by the keys of its first records."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from lightmem_core.errors import InputError
from lightmem_core.formats.rows import Rejected

SAMPLE = 100
SHAPES = {
    "messages": "one message a row: user_id, session_id, role, content, timestamp",
    "chats": "one session a row: user_id, session_id, timestamp, messages",
    "locomo": "items with sample_id and conversation, as in locomo10.json",
    "longmemeval": "items with question_id and haystack_sessions",
}
TELLTALE = {
    "haystack_sessions": "longmemeval",
    "content": "messages",
    "messages": "chats",
    "conversation": "locomo",
}

Record = tuple[object, str]


def detect(record: object) -> str | None:
    """The format that a record has, if its keys say so."""
    if not isinstance(record, dict):
        return None
    return next((name for key, name in TELLTALE.items() if key in record), None)


def detect_records(records: Iterator[Record], path: str) -> tuple[str, list[Record]]:
    """The format, and the records consumed to find it. Raise InputError if it has none of ours."""
    head: list[Record] = []
    for record, source in islice(records, SAMPLE):
        head.append((record, source))
        if name := detect(record):
            return name, head
    if len(head) < SAMPLE and all(isinstance(record, Rejected) for record, _ in head):
        return "messages", head  # whatever it was, no record of it can be read
    raise InputError(
        f"{path} has no known format: {seen(head)}. Name one with --format: {known_formats()}"
    )


def known_formats() -> str:
    return "; ".join(f"{name} ({shape})" for name, shape in SHAPES.items())


def seen(head: list[Record]) -> str:
    record = next((record for record, _ in head if not isinstance(record, Rejected)), None)
    if record is None:
        return f"none of its first {SAMPLE} rows can be read"
    if isinstance(record, dict):
        return f"its first record has the keys {', '.join(map(str, record))[:200] or '(none)'}"
    return f"its first record is no object but a {type(record).__name__}"
