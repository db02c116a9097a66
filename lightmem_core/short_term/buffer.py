"""The buffer stage: segments of one user are packed, in order, up to th tokens per LLM call."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from lightmem_core.types import Buffer, Message, Segment, SegmentedHistory

SPLIT_FROM = 0.3  # of a buffer left free, a segment that does not fit is split to fill it


class Buffering:
    """Pack segments into buffers of at most `tokens` compressed tokens.

    Buffers span sessions and never users. A segment is split between messages where it is larger
    than a buffer, or would leave much of one empty: each buffer is a call that is paid for. A
    single message larger than a buffer has one of its own.
    """

    def __init__(self, tokens: int):
        self.tokens = tokens

    def __call__(self, rows: Sequence[SegmentedHistory]) -> list[Buffer]:
        return [buffer for row in rows for buffer in self._buffers(row)]

    def _buffers(self, row: SegmentedHistory) -> Iterator[Buffer]:
        duplicates, held, free = row.duplicates, [], self.tokens
        for segment in row.segments:
            rest = segment.messages
            while rest:
                taken = self._fitting(rest, free, empty=not held)
                if not taken:
                    yield Buffer(row.user_id, tuple(held), duplicates)
                    duplicates, held, free = 0, [], self.tokens
                    continue
                part, rest = Segment(rest[:taken]), rest[taken:]
                held.append(part)
                free -= part.tokens
        if held or duplicates:
            yield Buffer(row.user_id, tuple(held), duplicates)

    def _fitting(self, messages: Sequence[Message], free: int, empty: bool) -> int:
        """How many of a segment's messages go into a buffer with so many tokens `free`."""
        ends = list(accumulate(m.compressed_tokens for m in messages))
        fitting = bisect_right(ends, free)
        if fitting == len(messages):
            return fitting
        if empty:
            return max(fitting, 1)
        return fitting if free >= SPLIT_FROM * self.tokens else 0
