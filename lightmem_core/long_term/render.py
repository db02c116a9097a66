"""The texts made from an entry: the line that is shown, and what the embedder reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from lightmem_core.types import Entry

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def day(at: int) -> str:
    """The UTC day of a time as "8 May 2023", whatever the locale."""
    date = EPOCH + timedelta(milliseconds=at)
    return f"{date.day} {MONTHS[date.month - 1]} {date.year}"


def moment(at: int) -> str:
    """A time in ISO 8601, to the millisecond: changes can follow each other within a second."""
    return (EPOCH + timedelta(milliseconds=at)).isoformat(timespec="milliseconds")


def entry_line(entry: Entry) -> str:
    """The line that stands for an entry in a context, and whose tokens are counted."""
    return f"{day(entry.said_at)} {entry.speaker}: {entry.text}"


def embedding_text(entry: Entry) -> str:
    """What is embedded. Dates are left out: they draw entries of one day together."""
    return f"{entry.speaker}: {entry.text}"
