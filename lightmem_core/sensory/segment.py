"""The segmentation stage: a history becomes segments, each within one session, on one topic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise

from lightmem_core.errors import ComponentError
from lightmem_core.protocols import Segmenter
from lightmem_core.types import History, Message, Segment, SegmentedHistory, stable_id


class Segmentation:
    """Cut all sessions of a batch of histories together, so that the model sees full batches.

    A session break always ends a segment: splitting the input there changes nothing.
    """

    def __init__(self, segmenter: Segmenter):
        self.segmenter = segmenter

    def __call__(self, rows: Sequence[History]) -> list[SegmentedHistory]:
        sessions = [sessions_of(row.messages) for row in rows]
        cuts = iter(self._cuts([session for of_row in sessions for session in of_row]))
        return [
            SegmentedHistory(
                row.user_id,
                tuple(segment for session in of_row for segment in _segments(session, next(cuts))),
                row.duplicates,
            )
            for row, of_row in zip(rows, sessions, strict=True)
        ]

    def _cuts(self, sessions: Sequence[Sequence[Message]]) -> list[list[int]]:
        cuts = self.segmenter.cut(sessions)
        name = f"{type(self.segmenter).__name__}.cut"
        if len(cuts) != len(sessions):
            raise ComponentError(
                f"{name} returned {len(cuts)} lists for {len(sessions)} sessions, expected as many"
            )
        for found, session in zip(cuts, sessions, strict=True):
            if list(found) != sorted({k for k in found if 0 < k < len(session)}):
                raise ComponentError(
                    f"{name} returned {list(found)} for a session of {len(session)} messages, "
                    f"expected ascending places from 1 to {len(session) - 1}"
                )
        return cuts


class FixedSegmenter:
    """Cut every `size` messages. A baseline, and the segmenter that needs no model."""

    def __init__(self, size: int = 6):
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = size

    def cut(self, sessions: Sequence[Sequence[Message]]) -> list[list[int]]:
        return [list(range(self.size, len(session), self.size)) for session in sessions]


def sessions_of(messages: Sequence[Message]) -> list[tuple[Message, ...]]:
    return [tuple(group) for _, group in groupby(messages, key=lambda m: m.session_id)]


def _segments(session: Sequence[Message], cuts: Sequence[int]) -> list[Segment]:
    return [_segment(session[a:b]) for a, b in pairwise([0, *cuts, len(session)])]


def _segment(messages: Sequence[Message]) -> Segment:
    segment_id = stable_id("segment", messages[0].id)
    return Segment(tuple(replace(m, segment_id=segment_id) for m in messages))
