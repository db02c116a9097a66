"""What a filter's tests compare: the fields of an entry, and values of one kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightmem_core.formats.timestamps import parse_time
from lightmem_core.metadata import DAY_MS, parsed
from lightmem_core.types import Entry

_DAY = re.compile(r"\s*\d{4}[-/]\d{1,2}[-/]\d{1,2}\s*", re.ASCII)
FIELDS: dict[str, Callable[[Entry], Any]] = {
    "user_id": lambda e: e.user_id,
    "agent_id": lambda e: e.agent_id,
    "run_id": lambda e: e.session_id,
    "session_id": lambda e: e.session_id,
    "topic": lambda e: e.topic,
    "speaker": lambda e: e.speaker,
    "created_at": lambda e: e.stored_at,
    "updated_at": lambda e: e.changed_at or e.stored_at,
    "said_at": lambda e: e.said_at,
    "event_at": lambda e: e.event_at,
}


@dataclass(frozen=True, slots=True)
class Span:
    """A time as it was given, in milliseconds, both included: a day is all of it."""

    first: int
    last: int


def span_of(value: Any) -> Span:
    """Raise ValueError for what is no time."""
    try:
        first = parse_time(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    whole_day = isinstance(value, str) and _DAY.fullmatch(value)
    return Span(first, first + DAY_MS - 1 if whole_day else first)


def field_of(entry: Entry, key: str) -> Any:
    """The value that a filter's key names, None where the entry has none."""
    if key in FIELDS:
        value = FIELDS[key](entry)
        return None if value == "" else value
    return _found(parsed(entry.metadata), key.removeprefix("metadata."))


def _found(tree: Any, path: str) -> Any:
    if not isinstance(tree, dict):
        return None
    if path in tree:
        return tree[path]
    head, dot, rest = path.partition(".")
    return _found(tree.get(head), rest) if dot else None


def _same(found: Any, wanted: Any) -> bool:
    """A list is the same as each of its items. Flags are no numbers."""
    if isinstance(found, list):
        return any(_same(one, wanted) for one in found if not isinstance(one, list))
    if isinstance(wanted, Span):
        return found is not None and wanted.first <= found <= wanted.last
    return isinstance(found, bool) == isinstance(wanted, bool) and found == wanted


def _contains(found: Any, wanted: str) -> bool:
    if isinstance(found, list):
        return wanted in [one for one in found if isinstance(one, str)]
    return isinstance(found, str) and wanted in found


def _folded(found: Any) -> Any:
    if isinstance(found, list):
        return [_folded(one) for one in found]
    return found.casefold() if isinstance(found, str) else found


def _before(found: Any, wanted: Any) -> bool:
    return _comparable(found, wanted) and found < wanted


def _comparable(left: Any, right: Any) -> bool:
    if isinstance(left, str) or isinstance(right, str):
        return isinstance(left, str) and isinstance(right, str)
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in (left, right))


def _first(wanted: Any) -> Any:
    return wanted.first if isinstance(wanted, Span) else wanted


def _last(wanted: Any) -> Any:
    return wanted.last if isinstance(wanted, Span) else wanted


def _not_after(found: Any, wanted: Any) -> bool:
    return _comparable(found, wanted) and found <= wanted


COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "eq": _same,
    "ne": lambda found, wanted: not _same(found, wanted),
    "in": lambda found, wanted: any(_same(found, one) for one in wanted),
    "nin": lambda found, wanted: not any(_same(found, one) for one in wanted),
    "gt": lambda found, wanted: _before(_last(wanted), found),
    "gte": lambda found, wanted: _not_after(_first(wanted), found),
    "lt": lambda found, wanted: _before(found, _first(wanted)),
    "lte": lambda found, wanted: _not_after(found, _last(wanted)),
    "contains": _contains,
    "icontains": lambda found, wanted: _contains(_folded(found), wanted.casefold()),
    "any": lambda found, _: found is not None,
}
