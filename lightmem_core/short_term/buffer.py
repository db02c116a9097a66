"""The buffer stage: segments of one user are packed, in order, up to th tokens per LLM call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightmem_core.types import Buffer, Message, Segment, SegmentedHistory


class Buffering:
    """Pack segments into buffers of at most `tokens` compressed tokens.

    Buffers span sessions and never users. A segment larger than a buffer is split between
    messages; a single message larger than a buffer has one of its own.
    """

    def __init__(self, tokens: int):
        self.tokens = tokens

    def __call__(self, rows: Sequence[SegmentedHistory]) -> list[Buffer]:
        return [buffer for row in rows for buffer in self._buffers(row)]

    def _buffers(self, row: SegmentedHistory) -> Iterator[Buffer]:
        duplicates, held, size = row.duplicates, [], 0
        for segment in (part for s in row.segments for part in self._parts(s)):
            if held and size + segment.tokens > self.tokens:
                yield Buffer(row.user_id, tuple(held), duplicates)
                duplicates, held, size = 0, [], 0
            held.append(segment)
            size += segment.tokens
        if held or duplicates:
            yield Buffer(row.user_id, tuple(held), duplicates)

    def _parts(self, segment: Segment) -> Iterator[Segment]:
        held: list[Message] = []
        size = 0
        for message in segment.messages:
            if held and size + message.compressed_tokens > self.tokens:
                yield Segment(tuple(held))
                held, size = [], 0
            held.append(message)
            size += message.compressed_tokens
        yield Segment(tuple(held))
