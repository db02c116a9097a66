"""`chats`: one session a row, its messages in OpenAI's shape.

Keys: user_id, session_id, timestamp, messages: [{role, content, name?, timestamp?, metadata?}];
optional agent_id and metadata. What a message lacks it takes from its session, except that its
position is its place in the list. A session_id is required: unnamed sessions would be one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import tzinfo

from lightmem_core.formats.fields import kind
from lightmem_core.formats.rows import Rejected, message, rejected
from lightmem_core.types import Message

SHARED = ("timestamp", "agent_id", "metadata")


def parse(record: object, source: str, timezone: tzinfo) -> Iterator[Message | Rejected]:
    turns = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(turns, list):
        detail = f"a chat is an object with a list of messages, its messages are {kind(turns)}"
        yield rejected(source, "wrong_type", detail, record)
        return
    shared = {key: record.get(key) for key in SHARED}
    owner = {"user_id": record.get("user_id"), "session_id": record.get("session_id")}
    for position, turn in enumerate(turns):
        if isinstance(turn, dict):
            said = {key: value for key, value in turn.items() if value not in (None, "")}
            turn = {**shared, **said, **owner, "position": position}
        yield message(turn, source, timezone)
