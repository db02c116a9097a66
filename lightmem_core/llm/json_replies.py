"""Read JSON out of a model's reply: as it stands, without what is said around it, or repaired."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

QUOTE = re.compile(r'\\.|"', re.DOTALL)
CUT = re.compile(r'\s*,|[^"{\[]*["{\[]')  # what follows the last bracket where more was to come
CLOSING = "` \t\r\n"  # what may follow a reply that is complete
DECODER = json.JSONDecoder(strict=False)  # raw control characters may stand in strings
WORDS = 200  # characters of a problem that are shown to the model


@dataclass(frozen=True, slots=True)
class Found:
    """An object with the key that was looked for. If it is not `whole`, the reply ended before it
    was complete, and what was cut in two is left out."""

    value: dict[str, Any]
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Problem:
    """What does not fit a schema: where, as keys and places from 0, and why."""

    path: tuple[str | int, ...]
    words: str


def find(text: str, key: str, cut: bool = False) -> Found | None:
    """The last JSON object of a reply that has `key`: models may think aloud before it, in JSON
    too, and what they end with counts though it be broken. `cut` says that the reply was ended from
    outside: then nothing but closed JSON at its end is whole."""
    found, end = _last_decoded(text, key)
    begun = [match.start() for match in _beginning(key).finditer(text, end)]
    if found is not None and not begun:
        return Found(found, whole=not (cut and text[end:].strip(CLOSING)))
    return _repaired(text[begun[-1] if begun else max(text.find("{"), 0) :], key, cut)


def _last_decoded(text: str, key: str) -> tuple[dict[str, Any] | None, int]:
    """The last object with `key` that stands as it should, and where it ends."""
    found, after = None, 0
    start = text.find("{")
    while start >= 0:
        value, end = _decoded(text, start)
        if isinstance(value, dict) and key in value:
            found, after = value, end
        else:
            end = start + 1
        start = text.find("{", end)
    return found, after


def _decoded(text: str, start: int) -> tuple[Any, int]:
    try:
        return DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start


@lru_cache(maxsize=16)
def _beginning(key: str) -> re.Pattern[str]:
    """Where an object with `key` begins."""
    return re.compile(rf"""\{{[^{{}}]*?(["']){re.escape(key)}\1\s*:""")


def _repaired(body: str, key: str, cut: bool) -> Found | None:
    from json_repair import repair_json

    end = max(body.rfind("}"), body.rfind("]")) + 1
    whole = not cut and end > 0 and not _in_string(body[:end]) and not CUT.match(body, end)
    body = body[:end] if whole else _before_the_cut(body)
    try:
        value = repair_json(body, return_objects=True, skip_json_loads=True)
    except (ValueError, RecursionError):
        return None
    return Found(value, whole) if isinstance(value, dict) and key in value else None


def _before_the_cut(body: str) -> str:
    """All up to the last object that was completed."""
    for end in _from_the_end(body, "}"):
        if not _in_string(body[: end + 1]):
            return body[: end + 1]
    return ""


def _from_the_end(body: str, char: str) -> Iterator[int]:
    place = body.rfind(char)
    while place >= 0:
        yield place
        place = body.rfind(char, 0, place)


def _in_string(body: str) -> bool:
    return QUOTE.findall(body).count('"') % 2 == 1


def problems(value: Any, schema: str) -> list[Problem]:
    """What of the value does not fit the schema, in its order."""
    errors = _validator(schema).iter_errors(value)
    return [Problem(tuple(error.absolute_path), error.message[:WORDS]) for error in errors]


@lru_cache(maxsize=256)
def _validator(schema: str) -> Draft202012Validator:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema))


def strict_object(properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object with these properties, all of them, and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
