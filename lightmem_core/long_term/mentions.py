"""Where a user is named: in rows, in JSON, and in the raw text of what could not be read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lightmem_core.types import stable_id

OWNERS = ("user_id", "sample_id", "question_id")  # the keys that name a row's user, by format
FILES = "sources"  # the key of file names: those are no user ids
ERASED = "erased with a user"
SHORTEST_SAYING = 4  # letters of a text that are looked for: shorter ones stand everywhere
KIND = re.compile(r"\w+(\(\w+\))?")  # of an error, as a report begins with it
IMPERSONAL = ("StoreError", "ConfigError", "InputError", "ReconcileError", "BudgetError")
SHORTEST_START = 16  # letters of an id, cut off by the end of a raw text, that count as the id


def pseudonym(user_id: str, salt: str) -> str:
    """What stands for a user who is erased: the same each time in a store, and not the id."""
    return f"erased-{stable_id('erased', salt, user_id)[:16]}"


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


@dataclass(frozen=True, slots=True)
class Redaction:
    """What stands for a user's id where JSON values name it, and the texts that are `telling` of
    the user, which go whole."""

    user_id: str
    hidden: str
    telling: frozenset[str] = frozenset()

    def of(self, value: Any, key: str = "") -> Any:
        """The value of a key with the id replaced where it is a value, stands quoted in a text, or
        is a key of what is told by user. The names of input files stay as they are."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, list) and key != FILES:
            return [self.of(item, key) for item in value]
        if isinstance(value, dict):
            return {
                self._key(name, within=key): self.of(item, name) for name, item in value.items()
            }
        return value

    def _text(self, text: str) -> str:
        if text in self.telling:
            return ERASED
        if text == self.user_id:
            return self.hidden
        return text.replace(repr(self.user_id), repr(self.hidden))

    def _key(self, name: str, within: str) -> str:
        if name == self.user_id and "user" in within:
            return self.hidden
        return ERASED if name in self.telling else name


def telling_of(texts: Iterable[str], said: Iterable[str]) -> frozenset[str]:
    """The texts that hold something that was said, also as JSON or Python would show it."""
    left, telling = set(texts), set[str]()
    for saying in said:
        if len(saying) < SHORTEST_SAYING:
            continue
        shown = (saying, repr(saying)[1:-1], json.dumps(saying)[1:-1])
        found = {text for text in left if any(part in text for part in shown)}
        telling |= found
        left -= found
    return frozenset(telling)


def without_error(report: dict[str, Any]) -> dict[str, Any]:
    """A run's report without an error that may repeat anybody's text: of those that are not raised
    for the store or the request the kind alone stays."""
    kind, _, message = str(report.get("error", "")).partition(": ")
    if not message.strip() or not KIND.fullmatch(kind) or kind in IMPERSONAL:
        return report
    return {**report, "error": f"{kind}: {ERASED}"}


@dataclass(frozen=True, slots=True)
class Traces:
    """What tells a user's rows: the id, and the places in the input that the messages came from.
    `hidden` takes the id's place where it stands in what is not the user's."""

    user_id: str
    sources: frozenset[str] = frozenset()
    hidden: str = ""

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
