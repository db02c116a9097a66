"""`messages`: one message a row.

Keys: user_id, role, content, timestamp; optional session_id, position (or turn_index), name,
agent_id, metadata. Rows without a session_id form the session "default" of their user, in the order
of their times: a position counts within a session, and those of several would meet there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import tzinfo

from lightmem_core.formats.rows import Rejected, message
from lightmem_core.history import UNPLACED
from lightmem_core.types import Message

DEFAULT_SESSION = "default"


def parse(record: object, source: str, timezone: tzinfo) -> Iterator[Message | Rejected]:
    if not isinstance(record, dict) or record.get("session_id") not in (None, ""):
        yield message(record, source, timezone)
        return
    found = message({**record, "session_id": DEFAULT_SESSION}, source, timezone)
    yield replace(found, position=UNPLACED) if isinstance(found, Message) else found
