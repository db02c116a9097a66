"""`messages`: one message a row.

Keys: user_id, role, content, timestamp; optional session_id, position (or turn_index), name,
agent_id, metadata. Rows without a session_id form the session "default" of their user.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import tzinfo

from lightmem_core.formats.rows import Rejected, message
from lightmem_core.types import Message

DEFAULT_SESSION = "default"


def parse(record: object, source: str, timezone: tzinfo) -> Iterator[Message | Rejected]:
    if isinstance(record, dict) and record.get("session_id") in (None, ""):
        record = {**record, "session_id": DEFAULT_SESSION}
    yield message(record, source, timezone)
