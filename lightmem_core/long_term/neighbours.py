"""The messages around those that entries were written from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.tables import of_users, quoted, read
from lightmem_core.schema import from_table
from lightmem_core.types import Entry, Message

STRETCHES_PER_FILTER = 50


@dataclass(frozen=True, slots=True, order=True)
class Stretch:
    """Positions of a session, both ends included."""

    session_id: str
    first: int
    last: int


def neighbours(
    shard: Shard,
    entries: Sequence[Entry],
    reach: int,
    waiting: Sequence[Message] = (),
    as_of: int | None = None,
) -> list[tuple[Message, ...]]:
    """For each entry of a user its source messages and those at most `reach` places from one, in
    their order; of what waits to be stored too. `as_of`: only what was stored by then."""
    if not entries:
        return []
    wanted = [[_around(s.session_id, s.position, reach) for s in e.sources] for e in entries]
    found = list(_stored(shard, entries[0].user_id, joined(s for w in wanted for s in w), as_of))
    found += [message for message in waiting if message.id not in {m.id for m in found}]
    by_place: dict[tuple[str, int], list[Message]] = {}
    for message in sorted(found, key=lambda m: (m.said_at, m.id)):
        by_place.setdefault((message.session_id, message.position), []).append(message)
    return [tuple(_within(by_place, joined(stretches))) for stretches in wanted]


def joined(stretches: Iterable[Stretch]) -> list[Stretch]:
    """The same places without repeats, in order: stretches that meet become one."""
    found: list[Stretch] = []
    for next_ in sorted(stretches):
        last = found[-1] if found else None
        if last and last.session_id == next_.session_id and next_.first <= last.last + 1:
            found[-1] = Stretch(last.session_id, last.first, max(last.last, next_.last))
        else:
            found.append(next_)
    return found


def _around(session_id: str, position: int, reach: int) -> Stretch:
    return Stretch(session_id, max(position - reach, 0), position + reach)


def _within(
    by_place: dict[tuple[str, int], list[Message]], stretches: Iterable[Stretch]
) -> Iterator[Message]:
    for stretch in stretches:
        for position in range(stretch.first, stretch.last + 1):
            yield from by_place.get((stretch.session_id, position), ())


def _stored(
    shard: Shard, user_id: str, stretches: Sequence[Stretch], as_of: int | None
) -> Iterator[Message]:
    known = of_users([user_id]) + ("" if as_of is None else f" AND stored_at <= {as_of:d}")
    for start in range(0, len(stretches), STRETCHES_PER_FILTER):
        part = stretches[start : start + STRETCHES_PER_FILTER]
        where = f"{known} AND ({' OR '.join(map(_filter, part))})"
        yield from from_table(read(shard.messages, where), Message)


def _filter(stretch: Stretch) -> str:
    session = f"session_id = {quoted(stretch.session_id)}"
    return f"({session} AND position BETWEEN {stretch.first:d} AND {stretch.last:d})"
