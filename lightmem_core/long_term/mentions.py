"""Where a user is named: in rows, in JSON, and in the raw text of what could not be read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lightmem_core.types import stable_id

OWNERS = ("user_id", "sample_id", "question_id")  # the keys that name a row's user, by format
FILES = "sources"  # the key of file names: those are no user ids
SHORTEST_START = 16  # letters of an id, cut off by the end of a raw text, that count as the id


def pseudonym(user_id: str) -> str:
    """What stands for a user who is erased: the same each time, and not the id."""
    return f"erased-{stable_id('erased', user_id)[:16]}"


def texts_in(value: Any) -> Iterator[str]:
    """Every text and integer in a JSON value, the keys of its objects too."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from texts_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_in(item)
    elif isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        yield str(value)


def redacted(value: Any, user_id: str, key: str = "") -> Any:
    """The JSON value of a key with a user's id replaced where it is a value, stands quoted in a
    text, or is a key of what is told by user. The names of input files stay as they are."""
    hidden = pseudonym(user_id)
    if isinstance(value, str):
        return hidden if value == user_id else value.replace(repr(user_id), repr(hidden))
    if isinstance(value, list) and key != FILES:
        return [redacted(item, user_id, key) for item in value]
    if isinstance(value, dict):
        return {
            hidden if name == user_id and "user" in key else name: redacted(item, user_id, name)
            for name, item in value.items()
        }
    return value


@dataclass(frozen=True, slots=True)
class Traces:
    """What tells a user's rows: the id, and the places in the input that the messages came from."""

    user_id: str
    sources: frozenset[str] = frozenset()

    def owns(self, row: Mapping[str, Any]) -> bool:
        """Whether a row goes with the user. One without an owner goes if it names the user or
        comes from where a message of the user came from."""
        if row.get("user_id") is not None:
            return str(row["user_id"]) == self.user_id
        values = [_parsed(text) for text in row.values() if isinstance(text, str)]
        owners = {
            str(v[key]) for v in values if isinstance(v, dict) for key in OWNERS if v.get(key)
        }
        if owners:
            return self.user_id in owners
        return row.get("source") in self.sources or any(map(self._named, (*values, *row.values())))

    def _named(self, value: Any) -> bool:
        if not isinstance(value, str):
            return self.user_id in texts_in(value)
        return value == self.user_id or any(
            encoded in value or _starts(encoded, value) for encoded in _encodings(self.user_id)
        )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _encodings(user_id: str) -> set[str]:
    return {json.dumps(user_id), json.dumps(user_id, ensure_ascii=False)}


def _starts(encoded: str, text: str) -> bool:
    """Whether a text was cut off within an encoded id."""
    starts = encoded[:SHORTEST_START]
    at = text.rfind(starts) if len(encoded) > SHORTEST_START else -1
    return at >= 0 and encoded.startswith(text[at:])
