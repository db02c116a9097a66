"""The part of a session that new messages are compared with. It does not grow with the session."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from lightmem_core.history import UNPLACED, identified
from lightmem_core.long_term.shard import IDS_PER_FILTER, Shard
from lightmem_core.long_term.tables import among, of_users, quoted, read
from lightmem_core.online.inbox import Inbox
from lightmem_core.online.sessions import Posted, Session, is_keyed, is_plain
from lightmem_core.schema import from_table
from lightmem_core.types import Message

COLUMNS = [
    *("id", "user_id", "session_id", "position", "role", "content", "said_at", "name"),
    *("agent_id", "metadata", "source", "state"),
]
Name = tuple[str, str]


def sessions_of(
    shard: Shard, inbox: Inbox, requests: Sequence[Posted], now: int, span: float
) -> dict[Name, Session]:
    """The sessions of some requests, as far as they matter. The inbox is read first: a message that
    leaves it in between is found among those stored."""
    users = sorted({request.user_id for request in requests})
    waiting = _by_session(row.message for row in inbox.rows(users))
    some = sorted({request.session_id for request in requests})
    where = f"{of_users(users)} AND {among('session_id', some)}"
    following = _following(shard, where)
    wanted = _wanted(requests, following, max(0, int(now - span)))
    rows = read(shard.messages, f"{where} AND ({' OR '.join(wanted)})", COLUMNS)
    stored = _by_session(from_table(rows, Message))
    names = {request.name for request in requests}
    return {n: Session(stored[n], waiting[n], following.get(n, 0), span) for n in names}


def _following(shard: Shard, where: str) -> dict[Name, int]:
    """The place after the last one of each session."""
    places = read(shard.messages, where, ["user_id", "session_id", "position"])
    last = places.group_by(["user_id", "session_id"]).aggregate([("position", "max")])
    rows = zip(*(last[name].to_pylist() for name in last.column_names), strict=True)
    found = (dict(zip(last.column_names, row, strict=True)) for row in rows)
    return {(row["user_id"], row["session_id"]): row["position_max"] + 1 for row in found}


def _wanted(requests: Sequence[Posted], following: dict[Name, int], since: int) -> list[str]:
    """Conditions, one of which holds for each message that one of a request may be."""
    messages = [message for request in requests for message in request.messages]
    keyed = [m for m in messages if is_keyed(m)]
    placed = [m for m in messages if not (is_keyed(m) or is_plain(m))]
    timed = [m for m in placed if m.position == UNPLACED]
    wanted = [f"said_at >= {since:d}"] if len(placed) < len(messages) else []
    wanted += _among("source", [quoted(m.source) for m in keyed])
    wanted += _among("id", [quoted(identified(m).id) for m in placed])
    wanted += _among("said_at", [f"{m.said_at:d}" for m in timed])
    for request in requests:
        if request.plain:
            user, session = map(quoted, request.name)
            first = following.get(request.name, 0) - request.plain
            wanted.append(f"(user_id = {user} AND session_id = {session} AND position >= {first})")
    return wanted


def _among(column: str, values: Sequence[str]) -> Iterator[str]:
    some = sorted(set(values))
    for start in range(0, len(some), IDS_PER_FILTER):
        yield f"{column} IN ({', '.join(some[start : start + IDS_PER_FILTER])})"


def _by_session(messages: Iterable[Message]) -> defaultdict[Name, list[Message]]:
    found: defaultdict[Name, list[Message]] = defaultdict(list)
    for message in messages:
        found[message.user_id, message.session_id].append(message)
    return found
