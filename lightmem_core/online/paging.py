"""Where a page goes on: behind the last entry of the page before, whatever became of it since."""

from __future__ import annotations

from collections.abc import Sequence

from lightmem_core.errors import RequestError
from lightmem_core.long_term.shard import Shard
from lightmem_core.types import Entry, Source


def behind(newest: Sequence[Entry], after: str, user_id: str, shard: Shard) -> int:
    """The place after `after` in entries that begin with the newest; 0 if it is "".

    It may have been a message that waited: then it is behind what was extracted from it, or, if
    nothing was, behind what was said after it. Raise RequestError if there was no such entry.
    """
    if not after:
        return 0
    place = _place(newest, after)
    if place is not None:
        return place + 1
    (message, *_) = shard.sources(user_id, [Source("", 0, after)]) or (None,)
    if message is None:
        raise RequestError(
            f"there is no memory {after!r:.60} to go on after: begin with the first page"
        )
    said = (message.said_at, message.session_id, message.position, 0)
    return sum(entry.order >= said for entry in newest)


def _place(newest: Sequence[Entry], after: str) -> int | None:
    for place, entry in enumerate(newest):
        if entry.id == after:
            return place
    for place, entry in enumerate(newest):
        if any(source.message_id == after for source in entry.sources):
            return place
    return None
