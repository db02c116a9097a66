"""What a caller noted beside a message or an entry: a JSON object, kept as text."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

DAY_MS = 86_400_000
EXPIRATION = "expiration_date"
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


def parsed(metadata: str) -> dict[str, Any]:
    """The object; an empty one for a text that holds none."""
    try:
        found = json.loads(metadata) if metadata else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def expired(metadata: str, at: int) -> bool:
    """Whether the day that the metadata names as the last one, YYYY-MM-DD, lies before the UTC day
    of a time."""
    if EXPIRATION not in metadata:
        return False
    day = parsed(metadata).get(EXPIRATION)
    return isinstance(day, str) and bool(_DAY.fullmatch(day)) and day < _day_of(at)


def _day_of(at: int) -> str:
    return str((datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at)).date())
