"""The sensory buffer: messages until their tokens fill it; it is cut, and its tail carried on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Span = tuple[int, int, int]  # a session, and the messages [start, stop) of it that fill a buffer


def cut_in_lockstep(
    lengths: Sequence[Sequence[int]],
    capacity: int,
    cut: Callable[[list[Span]], Sequence[Sequence[int]]],
) -> list[list[int]]:
    """Cut sessions, each through a buffer of its own, all of them a buffer at a time.

    `lengths` are the tokens of each session's messages. `cut` is given one full buffer of every
    session that is not at its end, and says where topics start in it, counted from its start and
    without 0. The messages after the last of these places open the next buffer; a buffer without
    one is a topic. The messages that end a session are cut though they fill no buffer.
    """
    places: list[list[int]] = [[] for _ in lengths]
    going = [_filled(session, lengths[session], 0, capacity) for session in range(len(lengths))]
    going = [span for span in going if span[2]]
    while going:
        following = []
        for (session, start, stop), found in zip(going, cut(going), strict=True):
            places[session].extend(start + place for place in found)
            if stop < len(lengths[session]):
                opens = start + found[-1] if found else stop
                if not found:
                    places[session].append(stop)
                following.append(_filled(session, lengths[session], opens, capacity))
        going = following
    return places


def _filled(session: int, lengths: Sequence[int], start: int, capacity: int) -> Span:
    """The messages from `start` that the buffer holds: at least one, if there is one."""
    stop, tokens = start, 0
    while stop < len(lengths) and (stop == start or tokens + lengths[stop] <= capacity):
        tokens += lengths[stop]
        stop += 1
    return session, start, stop


def fitted(group: Sequence[Sequence[int]], room: int) -> list[Sequence[int]]:
    """The token ids of texts, the longest cut to the one length with which all fit in `room`."""
    lengths = sorted(len(text) for text in group)
    left, longest = room, lengths[-1] if lengths else 0
    for rank, length in enumerate(lengths):
        share = left // (len(lengths) - rank)
        if length > share:
            longest = max(share, 1)
            break
        left -= length
    return [text[:longest] for text in group]
