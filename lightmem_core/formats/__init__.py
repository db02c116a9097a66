"""Files of chat history in, messages out: one item for each message, readable or rejected.

`parse_file` reads a file of any format in FORMATS; a new format is one function in that table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, tzinfo
from itertools import chain
from typing import BinaryIO

from lightmem_core.errors import InputError
from lightmem_core.formats import chats, locomo, longmemeval, messages
from lightmem_core.formats.detect import detect_records, known_formats
from lightmem_core.formats.fields import Reason
from lightmem_core.formats.read import read_records
from lightmem_core.formats.rows import Rejected
from lightmem_core.formats.timestamps import parse_time
from lightmem_core.types import Message

__all__ = ["FORMATS", "Reason", "Rejected", "detect_file", "parse_file", "parse_time"]

Parse = Callable[[object, str, tzinfo], Iterator[Message | Rejected]]

FORMATS: dict[str, Parse] = {
    "messages": messages.parse,
    "chats": chats.parse,
    "locomo": locomo.parse,
    "longmemeval": longmemeval.parse,
}


def parse_file(
    file: BinaryIO, path: str, format: str | None = None, timezone: tzinfo = UTC
) -> Iterator[Message | Rejected]:
    """Read a file, found out or named to be of a format, and close it. `path` names it in sources.

    Raise InputError if there is no such format, or if the file shows none of ours.
    """
    records = read_records(file, path)
    if format is None:
        format, head = detect_records(records, path)
        records = chain(head, records)
    if format not in FORMATS:
        raise InputError(f"there is no format {format!r}; the formats are: {known_formats()}")
    for record, source in records:
        if isinstance(record, Rejected):
            yield record
        else:
            yield from FORMATS[format](record, source, timezone)


def detect_file(file: BinaryIO, path: str) -> str:
    """The format of a file, from its first records. Raise InputError if it is none of ours."""
    return detect_records(read_records(file, path), path)[0]
