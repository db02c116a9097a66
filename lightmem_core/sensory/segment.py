"""The segmentation stage: a history becomes segments, each within one session, on one topic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise

from lightmem_core.protocols import Segmenter
from lightmem_core.types import History, Message, Segment, SegmentedHistory, stable_id


class Segmentation:
    """Cut all sessions of a batch of histories together, so that the model sees full batches.

    A session break always ends a segment: splitting the input there changes nothing.
    """

    def __init__(self, segmenter: Segmenter):
        self.segmenter = segmenter

    def __call__(self, rows: Sequence[History]) -> list[SegmentedHistory]:
        sessions = [_sessions(row.messages) for row in rows]
        cuts = iter(self.segmenter.cut([s for of_row in sessions for s in of_row]))
        return [
            SegmentedHistory(
                row.user_id,
                tuple(segment for session in of_row for segment in _segments(session, next(cuts))),
                row.duplicates,
            )
            for row, of_row in zip(rows, sessions, strict=True)
        ]


class FixedSegmenter:
    """Cut every `size` messages. A baseline, and the segmenter that needs no model."""

    def __init__(self, size: int = 6):
        self.size = size

    def cut(self, sessions: Sequence[Sequence[Message]]) -> list[list[int]]:
        return [list(range(self.size, len(session), self.size)) for session in sessions]


def _sessions(messages: Sequence[Message]) -> list[tuple[Message, ...]]:
    return [tuple(group) for _, group in groupby(messages, key=lambda m: m.session_id)]


def _segments(session: Sequence[Message], cuts: Sequence[int]) -> list[Segment]:
    return [_segment(session[a:b]) for a, b in pairwise([0, *cuts, len(session)])]


def _segment(messages: Sequence[Message]) -> Segment:
    segment_id = stable_id("segment", messages[0].id)
    return Segment(tuple(replace(m, segment_id=segment_id) for m in messages))
