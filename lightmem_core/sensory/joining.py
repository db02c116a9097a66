"""Kept words back into text, as they stood in the source."""

from __future__ import annotations

from collections.abc import Iterable


def join(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """The spans of a text, in order: those that touched still touch, others are one space apart.

    Spans may share characters, as the tokens of one character do: it is written once.
    """
    pieces, last = [], 0
    for first, end in spans:
        start = max(first, last)
        if start >= end:
            continue
        if pieces and start > last:
            pieces.append(" ")
        pieces.append(text[start:end])
        last = end
    return "".join(pieces)


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without the white space at its ends, if it holds anything else."""
    if text[start:end].isspace():
        return start, end
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
