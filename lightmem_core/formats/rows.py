"""One message row as a Message, or the reason why it is none."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import tzinfo

from lightmem_core.formats.fields import (
    BadField,
    Reason,
    clean,
    content,
    encode,
    identifier,
    kind,
    metadata,
    optional_text,
    position,
    role,
    said_at,
)
from lightmem_core.types import Message

RAW_LIMIT = 2_000
DETAIL_LIMIT = 300


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is no message. `source` is "file:line"; `raw` is the start of the row."""

    source: str
    reason: Reason
    detail: str
    raw: str


def rejected(source: str, reason: Reason, detail: str, row: object) -> Rejected:
    """Reject a row, given as its text or as what was read from it."""
    raw = row if isinstance(row, str) else encode(row)
    return Rejected(source, reason, clean(detail[:DETAIL_LIMIT]), clean(raw[:RAW_LIMIT]))


def message(row: object, source: str, timezone: tzinfo) -> Message | Rejected:
    """Read one row with the keys of the `messages` format. Without a position it is -1."""
    if not isinstance(row, dict):
        return rejected(source, "wrong_type", f"a message is an object, not {kind(row)}", row)
    try:
        return Message(
            user_id=identifier(row, "user_id", "missing_user"),
            session_id=identifier(row, "session_id", "missing_session"),
            position=position(row),
            role=role(row),
            content=content(row),
            said_at=said_at(row, timezone),
            name=optional_text(row, "name"),
            agent_id="" if row.get("agent_id") in (None, "") else identifier(row, "agent_id"),
            metadata="" if row.get("metadata") is None else metadata(row["metadata"]),
            source=source,
        )
    except BadField as error:
        return rejected(source, error.reason, error.detail, row)
